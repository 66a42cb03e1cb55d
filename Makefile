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

# Studies first; what they have measured before is used again. One of them needs the data pack.
figures: $(INSTALLED)
	for study in digits label_noise self_labeling nso; do \
	    $(BIN)/genmeasure run analysis/$$study.py --out out/$$study && $(BIN)/python figures/$$study.py || exit 1; \
	done
	if $(BIN)/genmeasure data path aka_resnet20 >/dev/null; then \
	    $(BIN)/genmeasure run analysis/resnet20_noise.py --out out/resnet20_noise && \
	    $(BIN)/python figures/resnet20_noise.py; \
	else echo "figures/resnet20_noise.py is left out: without the data pack there is no aka_resnet20"; fi

clean:
	rm -rf .venv out
