# The two commands: `make demo` and `make test`. Everything lives in .venv; PYTHON may name any Python >= 3.11,
# and VENV another folder for it: `make test PYTHON=python3.12 VENV=.venv-3.12` leaves .venv alone.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# A long-lived heap of huge pages: XLA's CPU buffers are otherwise mapped and unmapped at every step.
MALLOC = MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

.PHONY: demo rl-demo memory-demo test test-newest test-tpu test-gpu transformers4 lint base clean

demo: $(VENV)/installed
	$(MALLOC) $(BIN)/python launch/demo.py --config=configs/demo.py

rl-demo: $(VENV)/installed
	$(MALLOC) $(BIN)/python launch/rl_demo.py --config=configs/rl_demo.py

memory-demo: $(VENV)/installed
	$(MALLOC) $(BIN)/python launch/memory_demo.py --config=configs/memory_demo.py

# Without the 0.5B checkpoint, and without the tool that makes it, the tests on the real model are left out, and said so.
REAL = $(HOME)/.cache/lt_jax/qwen2.5-coder-0.5b-instruct/model.safetensors ../shared/tools/real_model.py
BACKENDS = not tpu_backend and not gpu_backend and not triton_interpreted
WITHOUT = $(BACKENDS)$(if $(wildcard $(REAL)),, and not real_model)
# Most of a test is tracing and compiling, which keep one core busy: two processes, each with whole files of tests.
JOBS ?= 2
TOGETHER = -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Where it is set, every process that a test starts reads and parses the sources of jax and transformers anew.
unexport PYTHONDONTWRITEBYTECODE

test: $(VENV)/installed-dev transformers4
	$(if $(wildcard $(REAL)),,@echo "no real checkpoint here: tests marked real_model are left out")
	$(MALLOC) $(BIN)/python -m pytest $(TOGETHER) -m "$(WITHOUT)"

# Transformers 4 beside the 5 that we use: what we export must load in both. The rest of what it needs is there.
transformers4: build/transformers4/installed

build/transformers4/installed: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --upgrade --target build/transformers4 \
		transformers==4.57.6 tokenizers==0.22.2 huggingface-hub==0.36.2
	touch $@

# A few tests of every room, for a second Python and so for the other end of the pins: `make test-newest
# PYTHON=python3.12` gets the newest jax that pyproject.toml allows. All tests of it are `make test` with that PYTHON.
NEWEST = .venv-newest
FEW = test_attention.py::test_rows_without_since test_cache.py::test_compact_for_each_layer_and_head \
	test_pallas_cache.py::test_every_bit_moves_to_its_slot_and_other_rows_stay \
	test_pallas_decode.py::test_copies_are_as_long_as_the_keys_and_never_race test_decode.py::test_compressed_prompt \
	test_checkpoint.py::test_a_stopped_run_goes_on_bit_for_bit \
	test_export.py::test_the_newest_checkpoint_is_what_the_run_exported

test-newest:
	$(MAKE) --no-print-directory $(NEWEST)/installed VENV=$(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --no-compile pytest pytest-xdist
	$(NEWEST)/bin/python -c "import platform, jax; print('Python', platform.python_version(), 'with jax', jax.__version__)"
	XLA_FLAGS= $(MALLOC) $(NEWEST)/bin/python -m pytest $(TOGETHER) -m "$(BACKENDS)" $(addprefix tests/,$(FEW))

# What is compiled for TPUs, with the real compiler and without a TPU. It comes with 137 MB of libtpu, and so apart. It
# wants to be loaded by one process at a time, as a TPU would need; and its programs cannot be read from a compile cache.
test-tpu: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --no-compile -e ".[tpu]"
	XLA_FLAGS= JAX_PLATFORMS=cpu ALLOW_MULTIPLE_LIBTPU_LOAD=1 JAX_ENABLE_COMPILATION_CACHE=false \
		$(BIN)/python -m pytest $(TOGETHER) -m tpu_backend

# What is for GPUs, without a GPU: the kernels under Triton's interpreter, and whole programs compiled for an H100 by
# XLA's own compiler. Its packages (450 MB) stay outside of $(VENV), whose other programs would look for a driver.
CUDA = build/cuda
test-gpu: $(CUDA)/installed
	PYTHONPATH=$(CUDA) JAX_PLATFORMS=cpu TRITON_INTERPRET=1 $(BIN)/python -m pytest $(TOGETHER) -m triton_interpreted
	XLA_FLAGS= PYTHONPATH=$(CUDA) JAX_PLATFORMS=cpu $(BIN)/python -m pytest $(TOGETHER) -m gpu_backend

$(CUDA)/installed: $(VENV)/installed-dev
	jax=$$($(BIN)/python -c "import jaxlib; print(jaxlib.__version__)"); $(BIN)/python -m pip install --quiet \
		--no-compile --no-deps --upgrade --target $(CUDA) triton==3.9.0 jax-cuda13-pjrt==$$jax jax-cuda13-plugin==$$jax
	touch $@

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
	rm -rf $(VENV) $(NEWEST) runs build *.egg-info
