"""Curvature against PyHessian 0.1, curvlinops, the papers' recipe and double backward example by example.

Both sides of a comparison take turns in one process, on the same data in the same batches, the same layers, dtype and
threads, after warming up on one batch. What the other side cannot reach in time is extrapolated, and says so.
"""

from __future__ import annotations

from cost import audit, growth
from eigenvalues import eigenvalues
from forms import forms_of_encoder, forms_of_relu, forms_of_smooth
from harness import main
from memory import memory
from traces import papers_recipe, traces_of_encoder, traces_of_relu, traces_of_smooth

COMPARISONS = {
    "traces-of-relu": traces_of_relu,
    "papers-recipe": papers_recipe,
    "traces-of-encoder": traces_of_encoder,
    "traces-of-smooth": traces_of_smooth,
    "forms-of-relu": forms_of_relu,
    "forms-of-encoder": forms_of_encoder,
    "forms-of-smooth": forms_of_smooth,
    "eigenvalues": eigenvalues,
    "audit": audit,
    "growth": growth,
    "memory": memory,
}

if __name__ == "__main__":
    raise SystemExit(main("curvature", __doc__.splitlines()[0], COMPARISONS))
