# Two commands for everyone: `make demo` and `make test`. Each does its own set-up in .venv; the second time that is done already.
# `make test-colab` runs the tutorials with the versions that Colab has, in .venv-colab (Python 3.13, as root; see tests/colab/run.py).
# PIP_FLAGS goes to pip; on Linux without a GPU, PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" avoids gigabytes of CUDA.
PYTHON ?= python3
PYTHON313 ?= python3.13
PIP_FLAGS ?=
BIN := .venv/bin
META := settings.ini pyproject.toml setup.py

.PHONY: demo test test-all test-colab test-oldest test-newest bench doctor-bench readme docs docs-links clean
.DELETE_ON_ERROR:

demo: .venv/.package
	@$(BIN)/charrnn demo --run runs/demo

# One thread each, for models are small here. Four tests at a time: many of them wait, for a disk that is slow or a process that is killed.
test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist worksteal -m 'not hunt'

# What hunts, for hours: every planted mistake, kills, fuzzing, checks taken away, the oldest and newest versions.
# EVERY=20 takes each twentieth of them and leaves the versions out, as .ci/run does.
EVERY ?= 1
test-all: .venv/.dev
	EVERY=$(EVERY) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist worksteal -m hunt
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python kills.py --forks $$((900/$(EVERY))) --fresh $$((100/$(EVERY))) --long $$((20/$(EVERY))) --machines $$((60/$(EVERY)))
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python fuzz.py $$((20000/$(EVERY)))
	$(BIN)/python tests/mutants.py --every $(EVERY)
	if [ $(EVERY) = 1 ]; then $(MAKE) test-oldest test-newest; fi

test-colab:
	@PYTHON313="$(PYTHON313)" PIP_FLAGS="$(PIP_FLAGS)" OMP_NUM_THREADS=1 $(PYTHON) tests/colab/run.py

# The tests with the lowest, and with the highest versions that settings.ini admits, in .venv-oldest and .venv-newest
test-oldest test-newest:
	PIP_FLAGS="$(PIP_FLAGS)" $(PYTHON) tests/versions.py $(@:test-%=%)

# Ratios against named references, side by side: half an hour on a machine with nothing else to do.
BENCHMARKS := fit_overhead doctor_cost import_time start step generation neighbours on_time fastai_text save_overhead
bench: .venv/.package
	@for o in $(BENCHMARKS); do echo; echo "benchmarks/$$o.py"; $(BIN)/python benchmarks/$$o.py || exit 1; done

# What the doctor finds in all programs of tests/planted, beside three other tools: an hour or more.
RIVALS := torchtest2==0.1.0 neural-net-checklist==1.1.0 torch-audit==0.3.0
doctor-bench: .venv/.dev
	$(BIN)/python -m pip install -q --no-deps $(PIP_FLAGS) $(RIVALS)
	$(BIN)/python benchmarks/doctor_bench.py --jobs 2

# README.md and its picture from the stored outputs of nbs/index.ipynb
readme: .venv/.dev
	$(BIN)/python tests/readme.py > README.md.new && mv README.md.new README.md

# The site, in _docs/html. A warning of Sphinx's is an error, such as a link within the site that leads nowhere; `docs-links` asks the others.
SPHINX = $(BIN)/python -m sphinx -q -W --keep-going -c docs -d _docs/read _docs/pages
docs: .venv/.docs
	@rm -rf _docs
	OMP_NUM_THREADS=1 $(BIN)/python docs/pages.py _docs/pages
	$(SPHINX) _docs/html

docs-links: docs
	$(SPHINX) -b linkcheck _docs/links

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; name one with: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@

.venv/.package: .venv/.python $(META)
	$(BIN)/python -m pip install -q $(PIP_FLAGS) -e .
	@touch $@

.venv/.dev: .venv/.python $(META)
	$(BIN)/python -m pip install -q $(PIP_FLAGS) -e '.[dev]'
	@touch .venv/.package $@

.venv/.docs: .venv/.dev $(META)
	$(BIN)/python -m pip install -q $(PIP_FLAGS) -e '.[docs]'
	@touch $@

clean:
	rm -rf .venv .venv-colab .venv-oldest .venv-newest build dist *.egg-info _docs
