# Everything a person or CI does here. `make help` lists it.
VENV := .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest
SEEDS ?= 20
LIMIT ?= 200
CUTS ?= 20
SECONDS ?= 60

.PHONY: help setup install demo demo-stop test check crash power sim model mutants fuzz bench ci

help:
	@echo 'make setup       system packages, virtual environment, build: leaves $(VENV)/bin/snapfs'
	@echo 'make install     as root: lets mount(8), fstab and systemd mount stores'
	@echo 'make demo        the main job on a real mount, which stays for you to explore'
	@echo 'make demo-stop   end the demonstration and remove its store'
	@echo 'make test        all tests, mounts included (8 to 12 minutes on two cores)'
	@echo 'make check       format, lint, types, layers, quick tests (one to two minutes)'
	@echo 'make crash       power cuts at every sync and commit; SEEDS=n for more'
	@echo 'make power       as root: real power cuts on ext4 and xfs in loop devices; CUTS=n of each'
	@echo 'make sim         random histories with crashes and faults; SEEDS=n for more'
	@echo 'make model       search the deletion protocol, with all rules and with each taken away (minutes)'
	@echo 'make mutants     small mistakes in the deletion code: none may lose data; LIMIT=n, 0 for all (hours)'
	@echo 'make fuzz        every decoder against hostile bytes, guided by coverage; SECONDS=n for each; needs atheris'
	@echo 'make bench       measure against the null filesystem and what else is installed'
	@echo 'make ci          what CI runs'

setup:
	@./packaging/setup.sh $(VENV)

install: setup
	./packaging/install-helpers $(VENV)/bin units

demo: setup
	@$(PY) -m tools.demo

demo-stop: setup
	@$(PY) -m tools.demo --stop

test: setup
	$(PYTEST) -q -n 3 --dist loadfile --cov --cov-report=term:skip-covered --durations=25 tests

check: setup
	$(VENV)/bin/ruff format --check -q .
	$(VENV)/bin/ruff check -q .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PYTEST) -q -n 2 -m 'not slow' tests/unit tests/golden tests/contract

crash: setup
	SNAPFS_SEEDS=$(SEEDS) $(PYTEST) -q -n 2 tests/crash

power: setup
	$(PY) -m tests.power --cuts $(CUTS)

sim: setup
	SNAPFS_SEEDS=$(SEEDS) $(PYTEST) -q -n 2 tests/property tests/sim

model: setup
	$(PY) -m tests.model

mutants: setup
	$(PY) -m tools.mutants --limit $(LIMIT)

fuzz: setup
	$(PY) -m tools.fuzz all --seconds $(SECONDS)

bench: setup
	$(PY) -m tools.bench

ci:
	@./.ci/run
