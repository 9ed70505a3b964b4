## make table1   train DiffusionDPO and BalancedDPO in the icon world, generate, score, and save the paper's Table I
## make export   write the package from the notebooks and clean them: after every edit in nbs
## make format   format notebooks, tests and benchmarks, and mend what ruff can mend
## make test     every test: format, lint and types, notebooks, package, wheel
## make quick    the tests of the rooms that you have changed
## make docs     write the pages that repeat what stands elsewhere, and build the site of documentation: build/site/html/index.html
## make bench    our speed beside that of the public ways, on this machine: at most 15 minutes on two cores, rows in runs/benchmarks
## They make the environment (.venv) first if it is not there. Options: PYTHON=python3.12  VENV=/elsewhere  SCALE=smoke  PIP_FLAGS=...

PYTHON    ?= python3
VENV      ?= .venv
SCALE     ?= icons
PIP_FLAGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK = 1

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet $(PIP_FLAGS) -c constraints.txt
RUFF := $(VENV)/bin/ruff
TYPES := $(VENV)/bin/pyrefly check --output-format min-text
CODE := nbs tests benchmarks docs

.PHONY: help install table1 export format test quick docs bench notebooks clean

help:
	@sed -n "s/^## //p" Makefile

install: $(VENV)/.installed

# The stamp is written last, so an interrupted installation is taken up again. PyPI has torchvision for a CUDA torch alone: beside a CPU build of
# torch it cannot be imported, and with it accelerate launch and diffusers. There the last step declares two operators in torchvision's own file.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "balanceddpo needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[dev]"
	$(RUN) -c 'from balanceddpo.core.devices import mend_torchvision; print(mend_torchvision())'
	@touch $@

# hpsv2 pins an old pytest and protobuf and does not need them for its scoring function: installed alone, for the test that compares with it.
$(VENV)/.hpsv2: $(VENV)/.installed
	$(PIP) --no-deps hpsv2
	@touch $@

table1: $(VENV)/.installed
	$(VENV)/bin/balanceddpo reproduce table1 --scale $(SCALE)
	@cat paper_figures/$(SCALE)/table1/table1.md paper_figures/$(SCALE)/table1/gains.md

bench: $(VENV)/.installed
	$(RUN) -m benchmarks

# The notebooks are the source: balanceddpo/ is written from them and never edited.
export: $(VENV)/.installed
	$(VENV)/bin/nbdev-export
	$(VENV)/bin/nbdev-clean
	$(RUN) docs/make.py

format: $(VENV)/.installed
	$(RUFF) format $(CODE)
	$(RUFF) check --fix $(CODE)

# Every cell of every source notebook is a test. nbs/repro is left to pytest, which runs it at its smallest scale.
NBTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 MPLBACKEND=agg $(VENV)/bin/nbdev-test --n-workers 2 --do-print

notebooks: $(VENV)/.installed
	$(RUN) -m pytest tests/repository/test_repository.py -k export_and_clean
	$(NBTEST)

# All parts run even if one fails; the last lines say which did.
test: $(VENV)/.installed $(VENV)/.hpsv2
	@failed=; \
	$(RUFF) format --check $(CODE) || failed="$$failed format"; \
	$(RUFF) check $(CODE) || failed="$$failed lint"; \
	$(TYPES) || failed="$$failed types"; \
	$(NBTEST) || failed="$$failed source-notebooks"; \
	$(RUN) -m pytest -n 2 --dist loadgroup || failed="$$failed pytest"; \
	[ -z "$$failed" ] || { echo "Failed, see above:$$failed"; exit 1; }

# The rooms in which something differs from the last commit.
ROOMS = $(shell git status --porcelain -- nbs tests | sed -nE 's,^.* (nbs|tests)/([a-z_]+)/.*,tests/\2,p' | sort -u)

quick: $(VENV)/.installed
	@echo 'tests of: $(or $(wildcard $(ROOMS)),nothing, for nothing has changed)'
	@$(if $(wildcard $(ROOMS)),$(RUN) -m pytest -n 2 --dist loadgroup $(wildcard $(ROOMS)))

# REPOSITORY=OWNER/NAME adds badges for Colab and links to the source.
docs: $(VENV)/.installed
	$(RUN) docs/make.py
	$(RUN) docs/gather.py build/site/source
	$(RUN) -m sphinx -q -j 2 -W --keep-going -c docs/site -d build/site/doctrees build/site/source build/site/html

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache _proc _docs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
