# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.
# The supported versions, the newest first: make takes the first that works, or `make PYTHON=…`.
PYTHONS := 3.14 3.13 3.12 3.11
# Succeeds where a Python is supported and can make .venv; a name without a Python behind it (pyenv has some) fails.
PROBE := import ensurepip, sys, venv; sys.exit("%d.%d" % sys.version_info[:2] not in "$(PYTHONS)".split())
PYTHON ?= $(shell for python in $(PYTHONS:%=python%) python3; do \
	if $$python -c '$(PROBE)' >/dev/null 2>&1; then echo $$python; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
# A .venv of another version is emptied first: mixed, neither Python finds its library.
STALE := import os, sys; os.path.exists("$(BIN)/python%d.%d" % sys.version_info[:2]) or print("--clear")
# Where PyTorch comes from, if not from where all else does: https://download.pytorch.org/whl/cpu has the CPU build.
TORCH_INDEX ?=
DEMO_OUTPUT ?= demo-output
# A file's tests share what they make, so they stay together; tests/conftest.py puts the long files first.
TEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: help install demo test test-quick check format docs demo-figures quality-demo quality-profiles bench bench-2b bench-export bench-rotary bench-growth chaos fuzz mutants load clean

help:  ## List the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## Make .venv with the tested versions

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(PROBE)' || \
		{ echo "batchcap is tested with Python $(lastword $(PYTHONS)) to $(firstword $(PYTHONS)), and needs its venv module:" \
		"make PYTHON=/path/to/python$(firstword $(PYTHONS)) $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $$($(PYTHON) -c '$(STALE)') $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install  ## Caption sample_data with the embedded demo model and show the result
	$(BIN)/batchcap caption sample_data --model demo --output $(DEMO_OUTPUT) --show 12

test: install  ## Run the tests, two at once
	$(TEST) --durations 10

test-quick: install  ## Run the tests but the slow ones
	$(TEST) -m 'not slow'

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

chaos: install  ## 300 jobs of all kinds of inputs that a fault happens to at a random moment: nothing may be lost; takes half an hour
	$(BIN)/python -m tests.chaos

fuzz: install  ## Inputs and job files damaged by chance, alone and as whole jobs: none may crash; takes 25 minutes
	$(BIN)/python -m tests.fuzz

mutants: install  ## Bugs put in on purpose: the tests must find each; takes five minutes
	$(BIN)/python -m tests.mutants

clean:  ## Remove what the targets made
	rm -rf $(VENV) $(DEMO_OUTPUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
