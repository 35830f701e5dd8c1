# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUTPUT ?= demo-output

.PHONY: help install demo test check format docs demo-figures quality-demo quality-profiles bench bench-2b bench-export bench-rotary bench-growth chaos fuzz mutants load clean

help:  ## List the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## Make .venv with the tested versions

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "batchcap is tested with Python 3.11 to 3.13: make PYTHON=/path/to/python3.13 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install  ## Caption sample_data with the embedded demo model and show the result
	$(BIN)/batchcap caption sample_data --model demo --output $(DEMO_OUTPUT) --show 12

test: install  ## Run the tests, two at once
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: install  ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## Write docs/commands.md, docs/job.schema.json and docs/model.svg again
	$(BIN)/python docs/make_commands.py
	$(BIN)/python docs/make_schema.py
	$(BIN)/python docs/make_figure.py

demo-figures: install  ## Exact-match figures of the demo model on 1,000 unseen scenes
	$(BIN)/python -m training.evaluate

quality-demo: install  ## What rounding costs the demo model, by algorithm, block size, 8-bit matrices and scaling
	$(BIN)/python -m benchmarks.quality

quality-profiles: install  ## What each profile costs the demo model: exact captions on 1,000 unseen scenes; takes ten minutes
	$(BIN)/python -m benchmarks.profiles

bench: install  ## The same 64 images through batchcap, OpenVINO, llama.cpp and transformers; 25 GiB in benchmarks/work
	$(BIN)/python benchmarks/bench.py $(BENCH_OPTIONS)

bench-2b: install  ## Caption 64 photographs with a random model of 2B size; makes 6 GiB in benchmarks/work
	$(BIN)/python benchmarks/real_size.py

bench-export: install  ## Time and memory of exports of 4B and 8B with random weights; takes 44 GiB in benchmarks/work
	$(BIN)/python benchmarks/export_memory.py

bench-rotary: install  ## The rotary table beside computing it anew
	$(BIN)/python benchmarks/rotary.py

load: install  ## 10,000 images with 4 decoders, two worker kills a minute: all rows right, memory flat; takes half an hour
	$(BIN)/python benchmarks/load.py

bench-growth: install  ## Rows a second, memory and resume of jobs of up to 1,000,000 rows without a model; takes half an hour
	$(BIN)/python benchmarks/growth.py

chaos: install  ## 300 jobs that a fault happens to at a random moment: nothing may be lost; takes half an hour and more
	$(BIN)/python -m tests.chaos

fuzz: install  ## Images, Parquet and job files damaged by chance: none may crash; takes six minutes
	$(BIN)/python -m tests.fuzz

mutants: install  ## Bugs put in on purpose: the tests must find each; takes ten minutes and more
	$(BIN)/python -m tests.mutants

clean:  ## Remove what the targets made
	rm -rf $(VENV) $(DEMO_OUTPUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
