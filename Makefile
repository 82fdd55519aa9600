# Two commands for a newcomer: make demo, make test. Everything else is named in CONTRIBUTING.md.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= python3
OUT ?= demo

# a finding is repeated by: make fuzz FUZZ="--border npy --at 4711"
FUZZ ?= --count 1000000
CHAOS ?=

.PHONY: demo test whole slow check bench leaks fuzz chaos format clean

demo: $(READY)
	$(BIN)/callosum demo --out $(OUT)

test: $(READY)
	$(BIN)/pytest -q -n 3 --dist loadfile

whole: $(READY)
	$(BIN)/pytest -q -n 3 --dist loadfile -m 'whole and not slow and not gpu'

slow: $(READY)
	$(BIN)/pytest -q -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# `make bench wire` prints one table, `make bench` all of them
TABLES := federation loading averaging checking coverage registration sites wire deployment families private secure audit synthesis pages
.PHONY: $(TABLES)
bench: $(READY)
	$(BIN)/python -m tests.bench $(filter $(TABLES),$(MAKECMDGOALS))
$(TABLES):
	@:

leaks: $(READY)
	$(BIN)/python -m tests.attacks.leaks

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz $(FUZZ)

chaos: $(READY)
	$(BIN)/python -m tests.chaos $(CHAOS)

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	  || { echo "Python 3.11 or 3.12 is needed; found: $$($(PYTHON) --version)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "venv is missing; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info
