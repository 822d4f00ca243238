# make help says what there is. Run it with VENV=<folder> or PYTHON=<interpreter> to choose others.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
OUT    ?= data/runs
# What a notebook prints, and nothing of papermill's own.
QUIET  := --no-progress-bar --log-level WARNING --stdout-file - --stderr-file -
# Chapters keep their outputs in git, and nbdev_test runs them; all other notebooks are committed without, and pytest runs them.
CHAPTERS    := $(sort $(wildcard nbs/*/[0-9][0-9]_*.ipynb))
FIGURES     := $(sort $(wildcard nbs/figures/*.ipynb))
# Two test processes share the cores: one thread each, or they slow each other down.
ONE_THREAD  := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help env train test tidy types test-slow site gpu export notebooks figures pictures clean

help:
	@echo "make train      train on the embedded digits and say where the pictures are (ARGS='-p steps 100': other settings)"
	@echo "make test       the gate: tidy and types, then nbdev_test, then pytest"
	@echo "make tidy       lint, spelling, notebooks clean and in sync with modules; make types: mypy"
	@echo "make test-slow  all of pytest, with what takes minutes: kills, packaging, compiled steps"
	@echo "make site       the notebooks, run, with an API reference, as pages to browse without a network"
	@echo "make figures    every figure from its record (FIGURES=nbs/figures/cost.ipynb: one)"
	@echo "make export     modules from notebooks, notebooks cleaned"
	@echo "make notebooks  the chapters, executed in place"
	@echo "make pictures   nbs/images/ drawn anew (NAMES='explore figures/cost': some)"
	@echo "make gpu        what waits for a GPU, within 25 minutes; needs torch, NumPy and IMAGES=<array file> alone"
	@echo "make env        .venv with everything; make clean removes what was made"

env: $(VENV)/.installed

$(VENV)/.installed: settings.ini setup.py pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("wwgan needs Python 3.10 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[all]"
	@touch $@

train: env
	@mkdir -p $(OUT)
	@$(BIN)/papermill nbs/train.ipynb $(OUT)/train.ipynb $(QUIET) $(ARGS)
	@echo "The executed notebook, with all plots: $(BIN)/jupyter lab $(OUT)/train.ipynb"

test: env
	$(MAKE) --no-print-directory -j 2 tidy types
	$(ONE_THREAD) $(BIN)/nbdev_test --n_workers 2 --do_print --timing --file_re '^[0-9][0-9]_'
	$(ONE_THREAD) $(BIN)/pytest -n 2 --dist worksteal -m "not slow" --ignore tests/test_notebooks.py

tidy: env
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/codespell
	$(ONE_THREAD) $(BIN)/pytest -q tests/test_notebooks.py

types: env
	$(BIN)/mypy

test-slow: env
	$(BIN)/pytest

# SITE_FLAGS="-D nb_execution_mode=off" leaves the notebooks that git holds without outputs without them, in seconds.
site: env
	rm -rf _docs
	$(ONE_THREAD) $(BIN)/sphinx-build -W --keep-going -q -j 2 -c nbs/_site -d _docs/doctrees $(SITE_FLAGS) nbs _docs/html
	@echo "The site begins at _docs/html/index.html."

export: env
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

notebooks: env
	for nb in $(CHAPTERS); do IN_TEST=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace $$nb || exit 1; done
	$(BIN)/nbdev_clean

figures: env
	mkdir -p $(OUT)
	for nb in $(FIGURES); do $(BIN)/papermill $$nb $(OUT)/$$(basename $$nb) || exit 1; done

pictures: env
	$(BIN)/python nbs/_site/pictures.py $(NAMES)

# Without .venv, for a machine that has a GPU, torch and NumPy: IMAGES is a file that --prepare wrote elsewhere.
IMAGES ?= data/cifar10-train-32.npy
gpu:
	$(PYTHON) -m wwgan.evidence.gpu data/results/gpu --images $(IMAGES)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .hypothesis _proc _docs nbs/api
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +
