"""A module imports from its own row of the design or from below; figures and shown tables do without torch."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = (  # from the bottom
    {"errors", "estimate", "registry", "losses", "shared", "precision", "matrix_product"},
    {"engine", "checkpoints", "families", "data"},
    {"risk", "curvature", "layers", "norms", "spectral"},
    {"subject", "predictions", "symbolic", "path_norm", "lipschitz"},
    {"measures", "bounds", "training"},
    {"study", "demo", "plan", "fine_tuned"},
    {"report", "tables", "published", "plots", "correlate", "predictive", "readings"},
    {"publish", "train_command", "train_options", "cli", "__main__", "__init__"},
)
HEIGHT = {name: height for height, row in enumerate(ROWS) for name in row}
SHOWING = ROWS[6]
FILES = sorted((ROOT / "genmeasure").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it; `from genmeasure import x` counts as genmeasure.x."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            found |= {f"genmeasure.{a.name}" for a in node.names} if node.module == "genmeasure" else {node.module}
    return found


def part(module: str) -> str:
    """genmeasure.curvature.trace -> curvature."""
    return [*module.split("."), "__init__"][1]


def of(path: Path) -> str:
    return path.relative_to(ROOT / "genmeasure").with_suffix("").parts[0]


def roots(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imports(path)}


def ours(path: Path) -> set[str]:
    return {part(module) for module in imports(path) if module.split(".")[0] == "genmeasure"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    assert of(path) in HEIGHT, "give the module a row"
    upward = {m for m in ours(path) if HEIGHT.get(m, 99) > HEIGHT[of(path)]}
    assert not upward, f"{path.name} imports {sorted(upward)} from above"


def test_the_bottom_row_needs_torch_and_the_standard_library_only():
    for name in ROWS[0]:
        assert roots(ROOT / "genmeasure" / f"{name}.py") <= {"torch", "genmeasure", *sys.stdlib_module_names}, name


def test_what_is_shown_needs_no_torch_and_no_study():
    for path in FILES:
        if of(path) in SHOWING:
            assert "torch" not in roots(path), path.name
            assert ours(path) <= {*SHOWING, "errors"}, path.name


def test_measures_know_no_bounds_and_only_the_study_knows_tables():
    for path in FILES:
        if of(path) in ("measures", "training", "curvature"):
            assert "bounds" not in ours(path), path.name
        if of(path) in {*ROWS[4], *ROWS[3], *ROWS[2]}:
            assert "pandas" not in roots(path), path.name


def test_the_package_imports_neither_analysis_nor_figures():
    for path in FILES:
        assert not roots(path) & {"analysis", "figures", "benchmarks", "tests"}, path.name


def test_figures_import_neither_torch_nor_the_package():
    for path in (ROOT / "figures").rglob("*.py"):
        assert not roots(path) & {"torch", "genmeasure", "analysis"}, path.name


def test_analysis_does_not_import_figures():
    for path in (ROOT / "analysis").rglob("*.py"):
        assert "figures" not in roots(path), path.name


def test_no_mean_reduction_over_a_batch():
    """Losses are per example and divided once."""
    for path in FILES:
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.keyword)]
        assert not [k for k in calls if k.arg == "reduction" and getattr(k.value, "value", "") == "mean"], path.name
