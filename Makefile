# Every target does the set-up it needs. `make help` lists them.
PYTHON ?= python3
N_JOBS ?= 2
OUT ?= outputs/default
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.ready  ## Make .venv with everything pinned in constraints.txt

# torch first and alone: any other order lets pip choose a CUDA build of several GB.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[grid,model,report,wandb,slurm,dev]'
	touch $@

grid: setup  ## Train the default grid on the real Gemma 3 270M and print its onset table
	$(BIN)/python -m src.run -m +experiment=default hydra.launcher.n_jobs=$(N_JOBS)

report: setup  ## Say what the default grid shows: verdict, page, executed notebook (OUT=outputs/default)
	$(BIN)/python -m src.report $(OUT)

smoke: setup  ## A grid of four tiny cells, under a minute
	$(BIN)/python -m src.run -m +experiment=smoke hydra.launcher.n_jobs=$(N_JOBS)

test: setup  ## Run the tests, a real-Gemma cell among them
	$(BIN)/pytest -n $(N_JOBS) --dist loadfile

test-slurm: setup  ## Run a grid on a real Slurm of one node (apt-get install slurmctld slurmd slurm-client munge)
	$(BIN)/pytest -m slurm -s tests/slurm

lint: setup  ## Style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p nangrid -p hydra_plugins.nangrid_launcher
	$(BIN)/mypy src/run.py src/status.py src/replay.py src/report.py src/diagnose.py src/check.py
	$(BIN)/mypy sweeps/dashboard.py
	$(BIN)/mypy sweeps/design.py
	$(BIN)/lint-imports

bench: setup  ## Run the benchmarks; results go to bench/results/
	$(BIN)/python bench/half_products.py
	$(BIN)/python bench/cell_cost.py
	$(BIN)/python bench/wandb_cost.py
	$(BIN)/python bench/search_cells.py
	$(BIN)/python bench/report_scale.py

clean:  ## Remove what the targets made, never outputs/
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help setup grid report smoke test test-slurm lint bench clean
