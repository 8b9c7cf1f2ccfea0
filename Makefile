# `make demo` and `make test` are all the set-up there is: each makes .venv and installs what it needs, once.
# Packages are installed again only when a requirements file changes.
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
PROMPT ?= a red mushroom with a white stem
ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PROMPT

.PHONY: demo test test-all lint types train doctor clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed  ## text -> 3D asset in outputs/; PROMPT="..." for another, ARGS="--preset draft" for options
	$(RUN) launch.py "$$PROMPT" $(ARGS)

test: $(VENV)/.installed-dev  ## the tests, without the slow ones
	$(RUN) -m pytest

test-all: $(VENV)/.installed-dev  ## every test
	$(RUN) -m pytest -m ""

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/deptry .

types: $(VENV)/.installed-dev
	$(RUN) -m mypy

train: $(VENV)/.installed  ## make every embedded weight anew
	$(RUN) -m vp3d.embedded.train

doctor: $(VENV)/.installed  ## what works on this machine
	$(RUN) launch.py doctor

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

$(RUN):
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "VP3D needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(RUN)
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	touch $@
