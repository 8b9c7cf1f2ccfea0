# `make demo` and `make test` need no other set-up: each creates .venv and installs its packages.
# Packages are installed again only when a requirements file changes. `make help` lists all targets.
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
PROMPT ?= a red mushroom with a white stem
ARGS ?=
# One process a core, up to 8; the tests of a file stay together, so that they share their fixtures.
PARALLEL := -n logical --maxprocesses 8 --dist loadfile
VENV := .venv
RUN := $(VENV)/bin/python
TOO_OLD := VP3D needs Python 3.11 or newer: make PYTHON=/path/to/python3.11

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PROMPT

.PHONY: demo test serve vendor container-env soak fuzz test-all mutants peers-export lint format types docs reference wheel train doctor clean help
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed  ## make an asset; PROMPT="..." and ARGS="--preset draft" change it
	$(RUN) launch.py "$$PROMPT" $(ARGS)

test: $(VENV)/.installed-dev  ## run the tests but the slow ones; ARGS=--shuffle in random order
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(PARALLEL) $(ARGS)

serve: $(VENV)/.installed-serve  ## start the web page and the REST service; ARGS="--port 9000"
	$(RUN) launch.py serve $(ARGS)

vendor: $(VENV)/.installed  ## fetch model-viewer for the page, and axe-core for its tests, by npm
	$(RUN) -m vp3d.serve.vendor --tests tests/serve/vendor

container-env:  ## build what the container's image contains, in build/container; no Docker needed
	PYTHON="$(PYTHON)" docker/install.sh cpu build/container

soak: $(VENV)/.installed-dev $(VENV)/.installed-serve  ## kill the service at random, and more; hours
	for row in "kills --full" submits streams stops fuzz answers guards idle flows first \
	"previews --full" "eta --full"; do $(RUN) -m tests.serve.soak $$row || failed=1; done; \
	exit $${failed:-0}

fuzz: $(VENV)/.installed-dev  ## read thousands of damaged files; a few minutes
	$(RUN) -m pytest -m "" tests/fuzz

test-all: $(VENV)/.installed-dev  ## run every test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "" $(PARALLEL) $(ARGS)

mutants: $(VENV)/.installed-dev  ## change the package line by line and see whether tests notice
	OMP_NUM_THREADS=1 $(RUN) -m tests.mutation.run $(ARGS)

peers-export: $(VENV)/.installed-dev  ## have other programs read exported files; ARGS="RUN..."
	$(RUN) -m tests.peers.export $(ARGS)

lint: $(VENV)/.installed-dev  ## check style, formatting, import contracts and dependencies
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/deptry .

format: $(VENV)/.installed-dev  ## sort the imports and format the code
	$(RUN) -m ruff check --select I --fix .
	$(RUN) -m ruff format .

types: $(VENV)/.installed-dev  ## check the type annotations
	$(RUN) -m mypy

docs: $(VENV)/.installed-docs  ## build the documentation site into site/ and check its links
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

reference: $(VENV)/.installed  ## rewrite the generated pages of docs/reference/
	$(RUN) docs/generate_reference.py

wheel: $(VENV)/.installed-dev  ## build dist/vp3d-*.whl, with models and recipes inside
	rm -rf build vp3d.egg-info dist/vp3d-*.whl
	$(RUN) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build vp3d.egg-info

train: $(VENV)/.installed  ## retrain every embedded weight; takes many hours
	$(RUN) -m vp3d.embedded.train

doctor: $(VENV)/.installed  ## report what works on this machine
	$(RUN) launch.py doctor

clean:  ## remove the environment, the caches and the built files; outputs/ and models/ stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	rm -rf build dist site vp3d.egg-info

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(RUN):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(TOO_OLD)")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(RUN)
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	touch $@

$(VENV)/.installed-serve: requirements-serve.txt $(VENV)/.installed
	$(RUN) -m pip install --quiet -r requirements-serve.txt
	touch $@

$(VENV)/.installed-docs: requirements-docs.txt | $(RUN)
	$(RUN) -m pip install --quiet -r requirements-docs.txt
	touch $@
