# make demo   pretrain on handwritten digits, evaluate, write a report
# make slow   the tests marked slow, all or TESTS=FILE
# make docs   the pages, as build/site/index.html; make notebooks: of their text
# make test   style, imports and the test suite, but for what is marked slow or long
# Both set up everything in .venv first. PYTHON=... chooses the interpreter.

SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
BIN = .venv/bin
# A file of tests is a matter of one process; more of them need 4 GB each.
PARALLEL = -n 2 --dist loadfile

.PHONY: demo test slow format notebooks docs clean

demo: .venv/demo
	$(BIN)/python -m vicreg_jax.main --config=configs/digits.py
	$(BIN)/python -m vicreg_jax.main --config=configs/report.py --workdir=runs/digits

test: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q $(PARALLEL)

slow: .venv/test
	$(BIN)/python -m pytest -q $(PARALLEL) -m 'slow and not long' $(TESTS)

format: .venv/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

notebooks: .venv/test
	$(BIN)/jupytext --quiet --update --to ipynb notebooks/*.py

docs: .venv/test
	$(BIN)/mkdocs build --strict --site-dir build/site

clean:
	rm -rf .venv build *.egg-info

.venv/demo: pyproject.toml
	@$(MAKE) --no-print-directory environment EXTRA=demo SIZE=200
	@touch $@

.venv/test: pyproject.toml
	@$(MAKE) --no-print-directory environment EXTRA=test SIZE=750
	@touch $@

.PHONY: environment
environment:
	@if [ -z "$(PYTHON)" ]; then \
		echo "vicreg_jax needs Python 3.11, 3.12 or 3.13 and found" \
			"$$(python3 --version 2>&1); install one, or say make PYTHON=/its/path"; \
		exit 2; fi
	@if ! $(PYTHON) -c '$(SUPPORTED)'; then \
		echo "vicreg_jax needs Python 3.11, 3.12 or 3.13; $(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1)"; exit 2; fi
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu run:" \
			"sudo apt install python3-venv"; exit 2; fi
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@echo "installing into .venv, a download of about $(SIZE) MB ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRA)]"
