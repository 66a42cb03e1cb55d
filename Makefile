PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
WORKERS ?= 2
STUDIES := digits self_labeling
PACK_STUDIES := resnet20_noise measure_vs_gap_conv measure_vs_gap_resnet measure_vs_gap_text bound_comparison \
    noise_stability_vs_hessian six_times layer_distances three_starts regularization few_shot text label_noise nso
FIGURES := digits label_noise self_labeling nso resnet20_noise measure_vs_gap bound_comparison \
    noise_stability_vs_hessian six_times layer_distances three_starts regularization few_shot text

.PHONY: demo test test-all check bench studies figures clean

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

# Runs what has no readings yet, or has changed; hours on two cores. Some need the data pack.
studies: $(INSTALLED)
	for study in $(STUDIES); do $(BIN)/genmeasure run analysis/$$study.py --out out/$$study || exit 1; done
	if $(BIN)/genmeasure data path aka_resnet20 >/dev/null; then for study in $(PACK_STUDIES); do \
	    $(BIN)/genmeasure run analysis/$$study.py --out out/$$study || exit 1; done; \
	else echo "left out, because the data pack is not here: $(PACK_STUDIES)"; fi

# Redraws from readings that are there, of a study or of several that begin with its name; without torch.
figures: $(INSTALLED)
	for figure in $(FIGURES); do \
	    if ls out/$$figure/readings.csv out/$${figure}_*/readings.csv 2>/dev/null | grep -q .; then \
	        $(BIN)/python figures/$$figure.py || exit 1; \
	    else echo "figures/$$figure.py is left out: its study has no readings in out; make studies takes them"; fi; \
	done

clean:
	rm -rf .venv out
