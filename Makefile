# Set-up included: every target creates .venv, or reuses it, from .ci/constraints.txt.
#   make demo      train, evaluate and segment on made-up videos; report in demo/
#   make test      the tests                      make lint      style, types, import direction
#   make bench     benchmarks, tables and plots   make sanitize  native operators under ASan, UBSan, TSan
#   make fuzz      1000 malformed inputs, with a table of how each ended
#   make lower-bounds   install the oldest versions that pyproject.toml allows, try every command
#   make package   build wheel and sdist, install them elsewhere, try them
#   make gpu-model what the CUDA operators should cost on a GPU, from their machine code; needs nvcc
#   make gpu-model-changed   whether those that changed cost more than docs/gpu.md says
# PYTHON=... chooses the interpreter (3.11 or 3.12).

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(firstword $(foreach name,python3.12 python3.11 python3,\
	$(shell $(name) -c "$(SUPPORTED)" >/dev/null 2>&1 && echo $(name))))
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt
# Two processes, each with all of a file's tests. Threads that wait leave the cores to the others.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile
NATIVE_SOURCES := $(shell find csrc tests/race_check -name '*.h' -o -name '*.cpp')

.PHONY: demo test lint bench gpu-model gpu-model-changed sanitize fuzz lower-bounds package install clean
.DEFAULT_GOAL := test

install: .venv/installed

.venv/installed: pyproject.toml setup.py .ci/constraints.txt $(NATIVE_SOURCES)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) setuptools wheel ninja pybind11 torch torchvision triton numpy
	# compat: a folder on the path, which type checkers and editors see; an import hook they don't.
	$(PIP) --no-build-isolation --config-settings editable_mode=compat -e '.[train,export,dev]'
	$(BIN)/python -m vss_kernels.info
	touch $@

demo: install
	$(BIN)/vss demo --out demo --overwrite

test: install
	$(PYTEST)
	TRITON_INTERPRET=1 $(PYTEST) tests/interpreter tests/test_contract.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/wrap_markdown.py
	$(BIN)/clang-format --dry-run --Werror $(NATIVE_SOURCES)
	$(BIN)/python -m benchmarks.gpu_model.nvcc_check

bench: install
	$(BIN)/python -m pytest benchmarks/bench_*.py --results benchmarks/results/$(if $(shell command -v nvidia-smi),gpu,cpu).csv
	$(BIN)/python -m benchmarks.report

gpu-model: install
	$(BIN)/python -m benchmarks.gpu_model

gpu-model-changed: install
	$(BIN)/python -m benchmarks.gpu_model --only changed --record docs/gpu.md

sanitize: install
	.ci/sanitize

fuzz: install
	$(BIN)/python -m pytest -m slow -s tests/fuzz

lower-bounds: install
	.ci/check-lower-bounds

package: install
	.ci/check-package

clean:
	rm -rf build dist demo .venv *.egg-info
