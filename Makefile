# Every target sets up what it needs. `make help` lists them.
PYTHON ?= python3
N_JOBS ?= 2
OUT ?= outputs/default
BIN := .venv/bin
PIP_FRESH = "$$env/bin/pip" install --quiet --no-compile --constraint constraints.txt
PEERS := sherlorch==0.1.0 trainscope==1.8.1 pytorch-lightning==2.6.6 lightning-utilities==0.15.3 torchmetrics==1.9.0
# DeepSpeed with what it needs, for the tests that use it alone: where it is installed, transformers always imports it.
APART := deepspeed einops hjson msgpack py-cpuinfo
FAST := tests/analysis tests/records tests/reporting tests/sweeps tests/watch tests/test_layout.py
export HF_HUB_OFFLINE ?= 1

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

setup: .venv/.ready  ## Create .venv with the versions pinned in constraints.txt

# torch first and alone: any other order lets pip choose a CUDA build of several GB.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[grid,model,report,wandb,slurm,dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps --upgrade --target .venv/apart $(APART)
	touch $@

grid: setup  ## Train the default grid on the real Gemma 3 270M and print its onset table
	$(BIN)/python -m src.run -m +experiment=default hydra.launcher.n_jobs=$(N_JOBS)

report: setup  ## Report on a grid: verdict, HTML page, executed notebook (OUT=outputs/default)
	$(BIN)/python -m src.report $(OUT)

smoke: setup  ## Train a grid of four tiny cells in under a minute
	$(BIN)/python -m src.run -m +experiment=smoke hydra.launcher.n_jobs=$(N_JOBS)

test: setup  ## Run all tests, including cells of the real Gemma 3 270M
	$(BIN)/pytest -n $(N_JOBS) --dist loadfile

test-slurm: setup  ## Run a grid on a one-node Slurm (needs slurmctld, slurmd, slurm-client, munge)
	$(BIN)/pytest -m slurm -s tests/slurm

test-cuda: setup  ## Run the tests that need a GPU, under 10 minutes
	$(BIN)/pytest tests/cuda

lint: setup  ## Check style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p nangrid -p hydra_plugins.nangrid_launcher
	$(BIN)/mypy src/run.py src/why.py src/status.py src/replay.py src/report.py src/diagnose.py src/check.py
	$(BIN)/mypy sweeps/dashboard.py
	$(BIN)/mypy sweeps/grid_report.py
	$(BIN)/mypy sweeps/design.py
	$(BIN)/lint-imports

test-fast: setup  ## Run the tests that start no cells and load no real model, under 3 minutes
	$(BIN)/pytest -n $(N_JOBS) --dist loadfile -m 'not real and not slurm' $(FAST)

# Several GB: PyPI has torch 2.11 for Linux with CUDA alone. It runs without a GPU all the same.
test-oldest: .venv-oldest/.ready  ## Run the tests with the oldest packages that pyproject allows
	.venv-oldest/bin/pytest -n $(N_JOBS) --dist loadfile

.venv-oldest/.ready: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --constraint constraints-oldest.txt \
		--editable '.[grid,model,report,wandb,slurm,dev]'
	.venv-oldest/bin/pip install --quiet --constraint constraints-oldest.txt --no-deps --upgrade --target .venv-oldest/apart $(APART)
	touch $@

# Fresh environments lie outside the checkout, so that nothing is imported from it; --no-compile halves their set-up.
test-core:  ## Check the package with its core dependencies alone, in a fresh environment
	@set -e; env=$$(mktemp -d); trap 'rm -rf "$$env"' EXIT; \
	$(PYTHON) -m venv "$$env"; \
	$(PIP_FRESH) torch; \
	$(PIP_FRESH) .; \
	"$$env/bin/python" -P tests/packaging/core_only.py

dist: setup  ## Build sdist and wheel, check their metadata, try the wheel in a fresh environment
	rm -rf dist
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	@set -e; env=$$(mktemp -d); trap 'rm -rf "$$env"' EXIT; \
	$(PYTHON) -m venv "$$env"; \
	$(PIP_FRESH) torch; \
	$(PIP_FRESH) "$$(ls dist/*.whl)[grid]"; \
	"$$env/bin/python" -P tests/packaging/wheel.py

bench: setup  ## Run the benchmarks and write bench/results/
	$(BIN)/python bench/half_products.py
	$(BIN)/python bench/cell_cost.py
	$(BIN)/python bench/wandb_cost.py
	$(BIN)/python bench/search_cells.py
	$(BIN)/python bench/report_scale.py

accuracy: .venv/.accuracy  ## Score nangrid and other tools on a sample of the bank of failures
	$(BIN)/python bench/accuracy score --sample --jobs $(N_JOBS)

accuracy-full: .venv/.accuracy  ## Prove the truth of the whole bank, score it, write bench/results/accuracy.md
	$(BIN)/python bench/accuracy check --jobs $(N_JOBS)
	$(BIN)/python bench/accuracy score --jobs $(N_JOBS) --rows outputs/accuracy.jsonl --result bench/results/accuracy.md

.venv/.accuracy: .venv/.ready
	$(BIN)/pip install --quiet --no-deps $(PEERS) || echo "A tool could not be installed, and is skipped."
	touch $@

docs: .venv/.docs  ## Build the documentation into site/, links checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/.docs: .venv/.ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:  ## Remove everything the targets made, except outputs/
	rm -rf .venv .venv-oldest build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.PHONY: help setup grid report smoke test test-fast test-core test-oldest test-slurm test-cuda lint dist bench accuracy accuracy-full docs clean
