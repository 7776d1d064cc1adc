# make demo    set up what is missing and run the main job
# make test    set up what is missing and pass the whole suite, the lab (tests/lab) included
# make lab     and pass only what runs in the lab, a booted kernel

VENV := .venv
BIN := $(VENV)/bin

# What the compiled parts are made of: a change builds them again.
SOURCES := pyproject.toml setup.py scripts/setup \
	$(shell find virtiopy/_native guest_drivers -name '*.[chS]' -o -name '*.ld' \
		-o -name Makefile -o -name build.py)

.PHONY: demo test lab lint setup nightly clean

demo: $(VENV)/ready-run
	scripts/demo

test: $(VENV)/ready-dev lint
	$(BIN)/pytest

lab: $(VENV)/ready-dev
	$(BIN)/pytest -m 'lab and not nightly'

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The property tests with 10,000 examples each, and the tests of VMs that take minutes.
nightly: $(VENV)/ready-dev
	HYPOTHESIS_PROFILE=nightly $(BIN)/pytest --timeout 7200 tests/unit
	$(BIN)/pytest -m nightly tests/guest

setup: $(VENV)/ready-run

$(VENV)/ready-run: $(SOURCES)
	scripts/setup run

$(VENV)/ready-dev: $(SOURCES)
	scripts/setup dev

clean:
	rm -rf $(VENV) build virtiopy/guests virtiopy.egg-info
	find virtiopy -name '*.so' -delete
