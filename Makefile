# `make demo` and `make test` do all their set-up on a fresh Debian machine with Python, and nothing when it is done.
PYTHON ?= python3
# `make CPU=1 …` takes torch's CPU build from PyTorch's own index.
CPU ?=
TORCH_INDEX := $(if $(CPU),--index-url https://download.pytorch.org/whl/cpu)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench gpu-check clean

demo: $(READY)
	$(BIN)/fastload demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_resolves.py

bench: $(READY)
	$(BIN)/python -m fastload.bench

# Where all that is imported is there already (a GPU machine without a registry), nothing is installed.
gpu-check:
	@export PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}"; \
	if why=$$($(PYTHON) -c "from fastload.bench import gpu_check; gpu_check.import_all()" 2>&1); \
	then $(PYTHON) -m fastload.bench.gpu_check; \
	else echo "$(PYTHON) cannot run it as it is: $$(echo "$$why" | tail -n 1)"; unset PYTHONPATH; \
	  $(MAKE) --no-print-directory $(READY) && $(BIN)/python -m fastload.bench.gpu_check; fi

# torch comes first: the second line then keeps the build that is there. On Linux PyPI's torch is a CUDA build with 3 GB of
# NVIDIA's packages, also where there is no GPU; a CPU wheel of the same version that pip's own settings name is taken.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  { echo "fastload needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || \
	  { echo "Python's venv module is missing. On Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH_INDEX) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cuda13,test]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
