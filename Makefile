# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUTPUT ?= demo-output

.PHONY: help install demo test check format docs demo-figures bench-2b clean

help:  ## List the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## Make .venv with the tested versions

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install  ## Caption sample_data with the embedded demo model and show the result
	$(BIN)/batchcap caption sample_data --output $(DEMO_OUTPUT) --show 12

test: install  ## Run the tests
	$(BIN)/python -m pytest

check: install  ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## Write docs/commands.md anew from the program's help
	$(BIN)/python docs/make_commands.py

demo-figures: install  ## Exact-match figures of the demo model on 1,000 unseen scenes
	$(BIN)/python -m batchcap.demo.evaluate

bench-2b: install  ## Caption 64 photographs with a random model of 2B size; makes 6 GiB in benchmarks/work
	$(BIN)/python benchmarks/real_size.py

clean:  ## Remove what the targets made
	rm -rf $(VENV) $(DEMO_OUTPUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
