# One command sets up everything and does the work: `make demo`, `make test`, `make lint`.
PYTHON ?= python3
VENV := .venv
SPARROW := $(VENV)/bin/sparrow
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-docker lint mypy docs types setup system predictor devices fuzz clean

demo: setup
	$(SPARROW) demo -o demo

test: setup predictor
	$(VENV)/bin/python -m pytest -n 2

# Builds and runs the toolchain image in an engine of its own, as root on Debian, which takes many minutes.
test-docker: setup
	SPARROW_TEST_DOCKER=1 $(VENV)/bin/python -m pytest tests/docker

# libFuzzer on the parsers in C and changed ONNX files, FUZZ_SECONDS in all; build/fuzz/findings gets what breaks them.
FUZZ_SECONDS ?= 600
fuzz: setup
	$(VENV)/bin/python tests/fuzz/fuzz.py --seconds $(FUZZ_SECONDS)

lint: setup mypy
	$(VENV)/bin/ruff check .
	git ls-files '*.c' '*.h' '*.cpp' | xargs $(VENV)/bin/clang-format --dry-run --Werror
	$(VENV)/bin/hadolint docker/Dockerfile

mypy: types
	MYPYPATH=build/types $(VENV)/bin/mypy -p sparrow

docs: setup types
	$(VENV)/bin/mkdocs build
	@echo "build/docs/index.html"

# The folders as the package `sparrow`, for tools that do not follow an editable install.
types:
	mkdir -p build/types/sparrow
	for top in benchmarks deploy kernels models quantize; do ln -sfn ../../../$$top build/types/sparrow/$$top; done

setup: system $(INSTALLED)

# Debian's packages, only those that are missing.
#   qemu-user     runs aarch64 programs here: every check before a phone is in the room
#   python3-venv  keeps the Python packages in this folder
system:
	@missing=; \
	command -v qemu-aarch64 >/dev/null || missing="$$missing qemu-user"; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -n "$$missing" ]; then \
	  echo "installing Debian packages:$$missing (to run aarch64 programs, and to keep Python packages here)"; \
	  if [ "$$(id -u)" = 0 ]; then run=; else run=sudo; fi; \
	  $$run apt-get update -qq && $$run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; \
	fi

# LLVM's pipeline models of the cores, for predicted cycles. Without them counts work all the same and a few tests say
# that they were skipped, so a distribution that lacks the package is no error.
predictor:
	@command -v llvm-mca-19 >/dev/null || { \
	  echo "installing the Debian package llvm-19 (pipeline models for predicted cycles)"; \
	  if [ "$$(id -u)" = 0 ]; then run=; else run=sudo; fi; \
	  { $$run apt-get update -qq && $$run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq llvm-19 >/dev/null; } \
	  || echo "llvm-19 could not be installed: predicted cycles are left out"; }

# Clients and a server for the tests of measuring over adb and ssh, and the emulator of whole machines. Not part of
# `make test`: on a desk, openssh-server would begin to listen; without these packages the tests say that they were
# skipped.
devices:
	@command -v adb >/dev/null && command -v ssh >/dev/null && test -x /usr/sbin/sshd && \
	command -v qemu-system-aarch64 >/dev/null || { \
	  echo "installing the Debian packages adb, openssh-client, openssh-server and qemu-system-arm (tests on devices)"; \
	  if [ "$$(id -u)" = 0 ]; then run=; else run=sudo; fi; \
	  { $$run apt-get update -qq && $$run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	      adb openssh-client openssh-server qemu-system-arm >/dev/null; } \
	  || echo "they could not be installed: tests of adb, ssh and whole machines are skipped"; }

# Python packages at the versions of constraints.txt: torch trains, onnx and onnxruntime are the reference, apache-tvm
# compiles graphs, ziglang is the cross compiler.
$(INSTALLED): setup.py constraints.txt
	@echo "installing Python packages into $(VENV): torch, onnx, onnxruntime, apache-tvm, ziglang and what they need"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(INSTALLED)

clean:
	rm -rf build dist demo *.egg-info
