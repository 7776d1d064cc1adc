# make demo    set up what is missing and run the main job
# make check   set up what is missing; lint, unit tests, conformance: minutes, for every commit
# make test    set up what is missing and pass the whole suite, the lab (tests/lab) included
# make lab     only what runs in the lab, a booted kernel

VENV := .venv
BIN := $(VENV)/bin

# What the compiled parts are made of: a change builds them again.
SOURCES := pyproject.toml setup.py scripts/setup \
	$(shell find virtiopy/_native guest_drivers -name '*.[chS]' -o -name '*.ld' \
		-o -name Makefile -o -name build.py)

# What the slowest tests cost stands at the end of each stage: cuts follow figures.
PYTEST := $(BIN)/pytest --durations=25 --durations-min=1

.PHONY: demo check test quick parallel vms guests commands kernels lab lint setup nightly clean

# Stages come one after the other, as they would disturb one another's times; -k goes on to the next
# when one has failed. But for the last three, which boot VMs and often wait for them.
ifndef SIDE_BY_SIDE
.NOTPARALLEL:
endif

demo: $(VENV)/ready-run
	scripts/demo

check: lint quick

test: lint parallel vms

# One more process than there are CPUs: many tests wait for what a broken device does not do. What
# is longest comes first, and a process without tests takes some of another's.
PARALLEL := --numprocesses $(shell expr $$(nproc) + 1) --dist worksteal \
	tests/conformance tests/unit

quick: $(VENV)/ready-dev
	HYPOTHESIS_PROFILE=quick $(PYTEST) -m 'not thorough and not nightly' $(PARALLEL)

parallel: $(VENV)/ready-dev
	$(PYTEST) $(PARALLEL)

# These boot VMs and make taps, each row one after the other: guests of our own, what their users'
# commands say and do, and whole kernels. The rows are of much the same length, for what stands in
# them besides: the lab, sanitizers and fuzzers.
vms: $(VENV)/ready-dev
	@echo 'Three rows of tests run side by side for some 13 minutes. What each says comes at its end.'
	$(MAKE) SIDE_BY_SIDE=1 --jobs 3 --keep-going --output-sync=target guests commands kernels

COMMANDS := $(patsubst %,tests/guest/test_%.py, bad_input check_cli check_pytest cli docs \
	driver_check exits exits_page options) tests/sanitizers tests/lab
KERNELS := tests/linux tests/vm_linux tests/package tests/fuzz

guests: $(VENV)/ready-dev
	$(PYTEST) tests --ignore tests/conformance --ignore tests/unit \
		$(patsubst %,--ignore %,$(COMMANDS) $(KERNELS))

commands: $(VENV)/ready-dev
	$(PYTEST) $(COMMANDS)

kernels: $(VENV)/ready-dev
	$(PYTEST) $(KERNELS)

lab: $(VENV)/ready-dev
	$(BIN)/pytest -m 'lab and not nightly'

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The property tests with 10,000 examples each, and the tests of VMs that take minutes.
nightly: $(VENV)/ready-dev
	HYPOTHESIS_PROFILE=nightly $(BIN)/pytest --timeout 7200 tests/unit
	$(BIN)/pytest -m nightly tests --ignore tests/conformance --ignore tests/unit
	$(BIN)/pytest -m nightly --numprocesses auto tests/conformance

setup: $(VENV)/ready-run

$(VENV)/ready-run: $(SOURCES)
	scripts/setup run

$(VENV)/ready-dev: $(SOURCES)
	scripts/setup dev

clean:
	rm -rf $(VENV) build virtiopy/guests virtiopy.egg-info
	find virtiopy -name '*.so' -delete
