# Each target installs what it needs into .venv; nothing is installed outside it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Versions known to work together, so that a release of another project breaks nothing here;
# `make test CONSTRAINTS=` in a clean clone takes the newest there are.
CONSTRAINTS ?= constraints.txt
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check \
  $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
OUT ?= runs/wearable_activity
# Most of the tests wait for brokers and processes: two at a time take half the time.
WORKERS ?= 2
ARM ?= arm64 arm64-trixie armhf

.PHONY: demo test unit check fix test-arm test-install coverage bench brokers constraints wheel clean

demo: .venv/.fleet
	.venv/bin/fedge fleet run examples/wearable_activity.yaml --out $(OUT)

# TensorFlow and tflite-runtime do not share a process: two calls of pytest.
test: .venv/.dev
	.venv/bin/pytest tests --ignore=tests/tensorflow -n $(WORKERS) --dist loadfile
	.venv/bin/pytest tests/tensorflow -n $(WORKERS) --dist loadfile

# No broker and no TensorFlow.
unit: .venv/.check
	.venv/bin/pytest tests/unit tests/conformance -m 'not broker' -n $(WORKERS) --dist loadfile

# Installs in a Debian of its own: root, a network, debootstrap and systemd-container; minutes.
test-install: .venv/.dev wheel
	FEDGE_INSTALL_TESTS=1 .venv/bin/pytest tests/install --timeout=1800

# Debian for Arm, emulated: takes root, debootstrap and qemu-user-static (docs/runtimes.md).
test-arm: .venv/.dev wheel
	.venv/bin/python -m tests.arm.root dist/*.whl $(ARM)
	FEDGE_ARM='$(ARM)' .venv/bin/pytest tests/arm --timeout=1800

check: .venv/.check
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/mypy benchmarks
	.venv/bin/lint-imports

fix: .venv/.check
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

coverage: .venv/.check
	.venv/bin/pytest tests --ignore=tests/tensorflow --cov --cov-report=term-missing:skip-covered

bench: .venv/.dev
	for script in benchmarks/*.py; do .venv/bin/python $$script || exit 1; done

# A newer Mosquitto beside the installed one: the attacks are tried on both.
brokers:
	tests/brokers/fetch.sh testing .brokers

# The newest of everything, in an environment made anew: then `make check test`, then commit.
constraints:
	rm -rf .venv
	$(MAKE) .venv/.dev CONSTRAINTS=
	.venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "constraints.txt is for Python 3.11"; exit 2; }
	{ echo "# Made by 'make constraints'; other versions of Python take the newest."; \
	  .venv/bin/python -m pip freeze --exclude-editable | sed "s/$$/ ; python_version == '3.11'/"; \
	} > constraints.txt

wheel: .venv/bin/python
	rm -rf dist
	.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:
	rm -rf .venv dist runs

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "fedge needs Python 3.11 to 3.13, $(PYTHON) is another: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "no venv module: apt install python3-venv"; exit 2; }

.venv/.fleet: pyproject.toml $(CONSTRAINTS) | .venv/bin/python
	@echo "installing into .venv ..."
	$(PIP) -e '.[fleet]'
	@touch $@

.venv/.check: pyproject.toml $(CONSTRAINTS) | .venv/bin/python
	@echo "installing into .venv: tests and checks, without TensorFlow ..."
	$(PIP) -e '.[test,check]'
	@touch $@ .venv/.fleet

.venv/.dev: pyproject.toml $(CONSTRAINTS) | .venv/bin/python
	@echo "installing into .venv, with TensorFlow for the exporter's tests (1.6 GB) ..."
	$(PIP) -e '.[dev]'
	@touch $@ .venv/.check .venv/.fleet
