# What one does with a checkout. Every target makes .venv first when it needs it; `make help` lists them.
# TORCH=cpu|cuda|skip picks torch's build, PYTHON=… the interpreter, ARGS=… goes to the program.

# 3.11 first, because the pins are tested with it; a name that does not start (a version manager's shim) does not count.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
SYSTEM_LINE := apt install git make g++ python3-venv
BIN := .venv/bin
JOBS ?= 2
ARCHS ?= 90a
NVCC ?= $(or $(MPKLAB_NVCC),nvcc)
CPP_FILES = $(shell find csrc -name '*.h' -o -name '*.hpp' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-gpu fuzz lint format types nvcc host wheel lab pages pictures doctor ci clean distclean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

setup: ## make .venv with everything in it, once (the other targets do this for you)
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer was found; on Debian and Ubuntu: $(SYSTEM_LINE)" >&2; exit 1; }
	@$(PYTHON) tools/setup_env.py

demo: setup ## compile SmolLM2-135M to one persistent kernel, let it answer, leave pictures in out/
	@$(BIN)/python -m mpklab demo $(ARGS)

test: setup ## run the tests (JOBS=2 at a time; ARGS='-k name' picks some)
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-gpu: ## run the tests that need an NVIDIA GPU, with the Python at hand and nothing installed
	@PYTHONPATH=. python3 -m pytest tests/gpu $(ARGS)

fuzz: setup ## feed damaged recordings to every reader (ARGS='--seconds 600 chrome'; guided by coverage where atheris is)
	@PYTHONPATH=. $(BIN)/python tests/fuzz.py $(ARGS)

lint: setup ## check style: ruff for Python and notebooks, clang-format for C++ and CUDA
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(CPP_FILES),$(BIN)/clang-format --dry-run -Werror $(CPP_FILES),@echo "no C++ files yet")

format: setup ## put Python, notebooks, C++ and CUDA into the house style, strip notebook outputs
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CPP_FILES),$(BIN)/clang-format -i $(CPP_FILES))
	@find notebooks -name '*.ipynb' -exec $(BIN)/nbstripout {} + 2>/dev/null || true

types: setup ## check types with mypy
	$(BIN)/mypy

nvcc: ## compile every device header with nvcc (ARCHS='80 86 89 90a 100a 120' for all)
	@mkdir -p build
	$(NVCC) -std=c++20 -O1 -Icsrc/include -Xcompiler -Wall --threads 2 -c csrc/all.cu -o build/all.o \
		$(foreach arch,$(ARCHS),-gencode arch=compute_$(arch),code=sm_$(arch))

host: ## compile every host header with the C++ compiler at hand
	@$${MPKLAB_CXX:-g++} -std=c++20 -march=native -Wall -Wextra -Icsrc/include -fsyntax-only csrc/host_all.cpp

wheel: setup ## build sdist and wheel, install the wheel in an empty place, compile and run a graph there
	@$(BIN)/python tools/check_wheel.py

lab: setup ## open JupyterLab on the notebooks
	@$(BIN)/jupyter lab notebooks

pages: setup ## execute the notebooks and write them as HTML into build/pages (ARGS='00_tour' picks some)
	@$(BIN)/python tools/make_pages.py $(ARGS)

pictures: setup ## make the README's pictures anew, from the recordings in profiles/ (needs Chromium)
	@$(BIN)/python tools/make_pictures.py

doctor: setup ## say what is there, what is missing, and what would bring it
	@$(BIN)/python -m mpklab doctor $(ARGS)

ci: ## everything that continuous integration runs
	@.ci/run

clean: ## remove what was built here (not .venv, not the user's kernel cache)
	rm -rf build dist out .cache .pytest_cache .mypy_cache .ruff_cache
	find mpklab tests tools -name __pycache__ -type d -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## remove .venv as well
	rm -rf .venv
