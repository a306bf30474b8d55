# The two commands of a fresh machine: `make demo` and `make test`. `make` alone lists the rest.
# Another environment than .venv: make check VENV=/path (it must have `pip install -e .[dev]`).

VENV   ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(shell \
	$(p) -c 'import sys; print("ok" if sys.version_info >= (3, 11) else "")' 2>/dev/null),$(p))))
BIN    := $(VENV)/bin
SOURCES := settings.ini setup.py

# make demo: the images to look at, where the runs go, and any further key=value
DEMO_DATA  := demo/input
INPUT_DIR  ?= $(DEMO_DATA)
OUTPUT_DIR ?= demo/output
RUN        := $(shell date +%Y-%m-%d_%H-%M-%S)
ARGS       ?=

# cheapest first; the first that fails is named
QUICK := gates sync
CHECK := $(QUICK) readme-check lint types notebooks tests

.PHONY: help setup runtime git-setup demo test quick check check-all $(CHECK) smoke readme export clean docs outputs
.DEFAULT_GOAL := help

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | awk -F: '{printf "make %-12s%s\n", $$1, $$2}'

# --- environment ------------------------------------------------------------------------------------------------
$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "no Python 3.11 or newer found; install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is not there or older than Python 3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv "$(VENV)"

$(VENV)/.runtime-ready: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev-ready: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.runtime-ready

runtime: $(VENV)/.runtime-ready
git-setup:
	@if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then git config --local include.path ../.gitconfig; fi
setup: $(VENV)/.dev-ready git-setup  ## virtual environment with all that development needs, merge driver, commit hook

# --- use --------------------------------------------------------------------------------------------------------
demo: runtime    ## run the main job on sample images, or on yours: make demo INPUT_DIR=...
	@[ "$(INPUT_DIR)" != "$(DEMO_DATA)" ] || $(BIN)/python tools/make_demo_data.py "$(INPUT_DIR)"
	$(BIN)/lightly-curate "input_dir=$(INPUT_DIR)" "output_dir=$(OUTPUT_DIR)" run_directory=$(RUN) \
		stopping_condition.n_samples=0.2 $(ARGS)
	@echo
	@echo "report:          $(OUTPUT_DIR)/$(RUN)/report.pdf (and report.html and explore.html beside it)"
	@echo "selected images: $(OUTPUT_DIR)/$(RUN)/filenames/sampled_filenames.txt"

# --- checks -----------------------------------------------------------------------------------------------------
test: setup      ## set up, then all of check
	@$(MAKE) --no-print-directory check

quick:           ## under 5 s, changes nothing: gates and sync
	@$(call each,$(QUICK))

check:           ## everything a change must pass
	@$(call each,$(CHECK))

GPU := $(if $(shell command -v nvidia-smi),gpu)  # its cells run only where there is one

check-all: check ## check, and all that is slow or needs a GPU or a network
	$(BIN)/nbdev_test --flags 'slow net $(GPU)' --timing
	$(BIN)/python -m pytest -q -m slow
	$(BIN)/python tools/run_tutorials.py
	@$(MAKE) --no-print-directory docs

define each
[ -x $(BIN)/python ] || { echo "no environment in $(VENV), run: make setup"; exit 1; }; \
for step in $(1); do echo "--- make $$step"; $(MAKE) --no-print-directory $$step || \
	{ echo "failed at: make $$step"; exit 1; }; done
endef

gates:           ## rules for notebooks that nbdev does not check
	@$(BIN)/python tools/check_nbs.py
	@$(BIN)/python tools/check_imports.py
sync:            ## notebooks are clean and the modules are what they export
	@$(BIN)/python tools/check_sync.py
readme-check:    ## README.md is what nbs/index.ipynb says
	@$(BIN)/python tools/make_readme.py --check
lint:            ## ruff on notebooks, modules, tests and tools
	@$(BIN)/python -m ruff check nbs lightly_curate tests tools benchmarks setup.py
	@if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint Dockerfile; else echo "hadolint: no wheel for this machine, Dockerfile not linted"; fi
types:           ## mypy on the package
	@$(BIN)/python -m mypy
notebooks:       ## run every cell of every notebook
	@$(BIN)/nbdev_test --timing
tests:           ## pytest, the smoke tests included
	@$(BIN)/python -m pytest -q -m 'not slow' --numprocesses 2
smoke:           ## only the tests that run the program as a user does
	@$(BIN)/python -m pytest -q -m smoke

# --- making things ----------------------------------------------------------------------------------------------
export:          ## notebooks to modules, stale modules removed
	@$(BIN)/python tools/check_sync.py --write
clean:           ## strip from the notebooks what does not belong into git
	@$(BIN)/nbdev_clean
outputs:         ## fill in the outputs of one library notebook: make outputs NB=nbs/50_select/51_coreset.ipynb
	@$(BIN)/python tools/make_outputs.py $(NB)
readme:          ## README.md from nbs/index.ipynb
	@$(BIN)/python tools/make_readme.py
docs:            ## a page for each notebook in _docs, links checked
	@$(BIN)/python tools/make_docs.py
