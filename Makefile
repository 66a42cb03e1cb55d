PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
WORKERS ?= 2

.PHONY: demo test test-all check bench figures clean

# Everything a fresh machine needs; torch first, so that no other package picks its version.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/genmeasure demo

# The fast tests and the style check.
test: check
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

# With the slow ones; those on real checkpoints are skipped without the data pack.
test-all: check
	$(BIN)/python -m pytest -n $(WORKERS)

check: $(INSTALLED)
	$(BIN)/ruff check .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/curvature.py

# Studies first; what they have measured before is used again.
figures: $(INSTALLED)
	$(BIN)/genmeasure run analysis/digits.py --out out/digits
	$(BIN)/genmeasure run analysis/resnet20_noise.py --out out/resnet20_noise
	for script in figures/[a-z]*.py; do case $$script in */style.py) ;; *) $(BIN)/python $$script || exit 1 ;; esac; done

clean:
	rm -rf .venv out
