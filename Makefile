# make demo   train a network on handwritten digits, put it on two chips, compare; writes out/demo/
# make docs   build the site, reference and gallery included; open out/site/index.html
# make test   lint, types, tests with oracles, docs examples, wheel; under 15 minutes
# Each builds what it needs in .venv; Lava and sinabs get environments of their own.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN = .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo docs test test-all lint types format oracles browser clean

demo: .venv/.demo
	$(BIN)/nirdeploy demo

# NO_MKDOCS_2_WARNING leaves out what the theme says about a tool that is not used here
docs: .venv/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -W error -m mkdocs build --strict

# a file of tests stays in one process: what it builds once is built once; the long ones stand first
PYTEST = $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: .venv/.test oracles browser lint types
	$(PYTEST) -m "not long"

test-all: .venv/.test oracles browser lint types
	$(PYTEST)

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.test
	$(BIN)/mypy

format: .venv/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/.torch: constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with venv found; set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	@touch $@

.venv/.demo: .venv/.torch pyproject.toml
	$(PIP) -e '.[demo]'
	@touch $@

.venv/.test: .venv/.torch pyproject.toml
	$(PIP) -e '.[test]'
	@touch $@ .venv/.demo

# the vendors' software that tests are held against; skipped, saying so, where it cannot be had
oracles: .venv/.test
	$(BIN)/python tests/golden/environments.py

# a browser for the tests of the page; installed where that needs nobody's password, else those tests are skipped
browser:
	@which chromium chromium-browser google-chrome google-chrome-stable 2>/dev/null | grep -q . \
	|| { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	|| echo "no Chromium here: the tests of the page in a browser are skipped"

clean:
	rm -rf .venv .venv-lava .venv-lava-dl .venv-nir104 .venv-sinabs .venv-with-* out dist build
