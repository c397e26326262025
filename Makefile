# Everything runs in .venv, which is made on first use from the versions in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)/.peers
SEEDS ?= 1
DEMO ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
OUT ?= runs/gpu

.PHONY: demo test test-all gpu lint docs install peers clean help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv and install the package with its extras

# torch first and by its pin: a range would let a dependency choose another build.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, $(PYTHON) is older; use make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench,dev,docs]'
	@touch $@

demo: $(STAMP) ## train and compare four mixers on real ARC-AGI-1 tasks, write a report (SEEDS=3 for three seeds)
	$(BIN)/python -m benchmarks arc compare --preset demo --arms plain identity sinkhorn cayley --seeds $(SEEDS) --out $(DEMO)

# Two workers of one thread each finish sooner than one of two threads: most tests are small.
test: export OMP_NUM_THREADS = 1
test: $(PEERS) ## run the tests
	$(BIN)/python -m pytest -n 2

test-all: export OMP_NUM_THREADS = 1
test-all: $(PEERS) ## run the tests, slow ones included
	$(BIN)/python -m pytest -n 2 -m ''

# Where no environment can be made, for want of a network, the Python of the machine will do.
gpu: ## test and time a GPU in some 14 minutes at most, logs and results in OUT (STEPS="layer blocks" for some)
	PYTHON="$(or $(wildcard $(BIN)/python),$(PYTHON))" benchmarks/gpu.sh $(OUT) $(STEPS)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(PEERS) ## build the documentation, warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

peers: $(PEERS) ## add the libraries that benchmarks and tests compare with

# arcle holds the files of Mini-ARC; it is never imported, so what it depends on is left out. So it is for timm: a
# torchvision that was built for another torch keeps parts of Transformers from being imported.
$(PEERS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps arcle timm
	@touch $@

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist docs/_build docs/auto_examples docs/mixers/pictures .pytest_cache .mypy_cache .ruff_cache .hypothesis
