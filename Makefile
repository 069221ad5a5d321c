# README.md, docs/install.md and CONTRIBUTING.md say what the targets are for.
UV := $(or $(shell command -v uv),python3 -m uv)

# Kernels write no warning about debugging.
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: setup quickstart test lab report bench lint lock
.DEFAULT_GOAL := quickstart

setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	$(UV) --version || python3 -m pip install uv || python3 -m pip install --user --break-system-packages uv
	$(UV) venv --allow-existing --python '>=3.11,<3.15' .venv
	$(UV) pip sync --python .venv --require-hashes requirements.lock
	$(UV) pip install --python .venv --no-deps --editable .
	touch .venv/.ready

quickstart: setup
	.venv/bin/resnetlib run lite -p dataset digits -p lr 0.1

test: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile

lab: setup
	.venv/bin/jupyter lab notebooks

bench: setup
	.venv/bin/python benchmarks/throughput.py

report: setup
	.venv/bin/python -m resnetlib.reports.leaderboard README.md

lint: setup
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

lock:
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --upgrade --extra dev --output-file requirements.lock pyproject.toml
