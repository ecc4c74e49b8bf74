# `make demo` and `make test` are all a new machine needs: git, make, Python 3.11+ with venv and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint soak exits clean

demo: $(VENV)/installed
	$(BIN)/helios-batch models fetch smollm2-135m
	$(BIN)/python -m helios_batch.samples data
	$(BIN)/helios-batch run jobs/stdlib_summaries.yaml --show 3
	$(BIN)/helios-batch run jobs/stdlib_summaries_exit.yaml --show 3

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# ten minutes of random faults; SOAK="--minutes 3 --seed 1" replays a shorter one
soak: $(VENV)/installed-test
	$(BIN)/python -m tests.soak $(SOAK)

# the exits that come with smollm2-135m, made anew in out/exits
exits: $(VENV)/installed
	$(BIN)/helios-batch models fetch smollm2-135m
	$(BIN)/python -m helios_batch.tune.prompts data
	$(BIN)/helios-batch models tune smollm2-135m --data data/chats.parquet --data data/texts.parquet \
		--exits 10,15,20 --rows 2000 --tail 4 --rank 48 --minutes 32 --memory 4GiB --out out/exits

# the stamps are younger than pyproject.toml: a second run installs nothing
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
