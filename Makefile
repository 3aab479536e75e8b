# Works on a clean clone with only python3 (3.11 or later) and the network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The tests compile far more than they compute. Less optimisation takes a fifth of their time away,
# XLA's older generator of code, in one piece, half of what is left. An XLA that does not know its
# flags does without. A worker that has none left takes half of the tests of the other: files stay
# together, as their fixtures want it, but for two or three.
LESS := --xla_backend_optimization_level=0
QUICK := $(LESS) --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow test-interop lint peers peers-scvi bench bench-scale bench-vae \
	bench-negbio gpu docs figures package

help: ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

venv: $(VENV)/.test ## make the environment .venv and install the package in it

demo: $(VENV)/.test ## fit simulated data whose truth is known; results in nbln_demo/
	$(BIN)/nbln demo

test: $(VENV)/.test ## run the tests on two workers
	@export XLA_FLAGS="$(QUICK)"; \
	$(BIN)/python -c "import jax; jax.devices()" 2> /dev/null || export XLA_FLAGS="$(LESS)"; \
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-slow: $(VENV)/.test ## run the tests that take long: hostile inputs, interruptions, exact arithmetic
	$(BIN)/python -m pytest -q -n 2 -m slow

test-interop: $(VENV)/.test ## run the tests with scanpy and MuData, which it installs in .venv
	@$(PIP) -e ".[interop]"
	$(BIN)/python -m pytest -q -m interop

lint: $(VENV)/.dev ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright nbln

peers: ## make .venv-peers with pyPLNmodels, which `make bench` runs beside nbln
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet 'setuptools<81' torch pyPLNmodels==1.0.10 pandas

bench: $(VENV)/.test ## measure recovery and speed beside other packages
	$(BIN)/python benchmarks/recovery.py
	$(BIN)/python benchmarks/likelihoods.py

peers-scvi: ## make .venv-scvi with scvi-tools, which `make bench-vae` runs beside nbln
	$(PYTHON) -m venv .venv-scvi
	.venv-scvi/bin/python -m pip install --quiet 'scvi-tools>=1.4' scib-metrics

bench-scale: $(VENV)/.test ## measure time and memory to 10^6 cells, in SCALE_FOLDER if it is given (4 GB)
	$(BIN)/python benchmarks/scale.py $(if $(SCALE_FOLDER),--folder $(SCALE_FOLDER))

gpu: $(VENV)/.test ## on a machine with a GPU or TPU: its tests, and how near an iteration comes to its peaks
	$(BIN)/python -m pytest -q -m gpu
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/recovery.py --sizes S M L

bench-vae: $(VENV)/.test ## measure scVI beside scvi-tools: make bench-vae COUNTS=counts.h5ad
	$(BIN)/python benchmarks/vae.py $(COUNTS)

bench-negbio: $(VENV)/.test ## measure codes of counts beside Gaussian, Poisson and other codes
	$(BIN)/python benchmarks/negbio.py cost replicate

docs: $(VENV)/.docs ## make the documentation in site/html; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -b html docs site/html

figures: $(VENV)/.test ## make the figures of the documentation anew
	$(BIN)/python docs/figures.py

package: ## build the package, install the wheel in an environment of its own, and use it
	$(PYTHON) -m venv --clear .venv-package
	.venv-package/bin/python -m pip install --quiet --disable-pip-version-check build twine
	rm -rf dist
	.venv-package/bin/python -m build --quiet
	.venv-package/bin/python -m twine check --strict dist/*
	.venv-package/bin/python -m pip install --quiet --disable-pip-version-check dist/nbln-*.whl
	.venv-package/bin/nbln --help > /dev/null
	.venv-package/bin/python -I .ci/packaged.py dist

# Stamps: installed again only when pyproject.toml has changed.
$(VENV)/.test: pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing nbln and its tests' packages in $(VENV) (minutes the first time)"
	@$(PIP) -e ".[test]"
	@touch $@

$(VENV)/.docs: $(VENV)/.test
	@echo "installing the documentation's packages in $(VENV)"
	@$(PIP) -e ".[docs]"
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@echo "installing the linters in $(VENV)"
	@$(PIP) -e ".[dev]"
	@touch $@
