# The two commands: `make demo` and `make test`. Everything lives in .venv; PYTHON may name any Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# A long-lived heap of huge pages: XLA's CPU buffers are otherwise mapped and unmapped at every step.
MALLOC = MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

.PHONY: demo test test-tpu transformers4 lint base clean

demo: $(VENV)/installed
	$(MALLOC) $(BIN)/python launch/demo.py --config=configs/demo.py

# Without the 0.5B checkpoint, and without the tool that makes it, the tests on the real model are left out, and said so.
REAL = $(HOME)/.cache/lt_jax/qwen2.5-coder-0.5b-instruct/model.safetensors ../shared/tools/real_model.py
WITHOUT = $(if $(wildcard $(REAL)),not tpu_backend,not tpu_backend and not real_model)

test: $(VENV)/installed-dev transformers4
	$(if $(wildcard $(REAL)),,@echo "no real checkpoint here: tests marked real_model are left out")
	$(MALLOC) $(BIN)/python -m pytest -m "$(WITHOUT)"

# Transformers 4 beside the 5 that we use: what we export must load in both. The rest of what it needs is there.
transformers4: build/transformers4/installed

build/transformers4/installed: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --upgrade --target build/transformers4 \
		transformers==4.57.6 tokenizers==0.22.2 huggingface-hub==0.36.2
	touch $@

# What is compiled for TPUs, with the real compiler and without a TPU. It comes with 137 MB of libtpu, and so apart.
test-tpu: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --no-compile -e ".[tpu]"
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m tpu_backend

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .

# The small base model that ships in lt_jax/assets/base: a quarter of an hour on two cores.
base: $(VENV)/installed
	$(MALLOC) $(BIN)/python launch/train.py --config=configs/base.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --no-compile -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-compile -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
