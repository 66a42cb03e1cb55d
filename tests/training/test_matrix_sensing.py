"""Noise in pairs against one-sided noise, where the answer is known (Zhang, Li, Ju 2024, arXiv:2306.08553)."""

from pathlib import Path

import pytest
import torch

from genmeasure.training.probes.noise import Noise


@pytest.fixture
def study(monkeypatch):
    """The script of the study."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "analysis")
    import matrix_sensing
    return matrix_sensing


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_gradient_of_matrix_sensing(study):
    """(1/m) sum_i <A_i, U U' - X> A_i U."""
    model = study.Sensing(5, 2, range(3), torch.device("cpu"))
    model().backward()
    for u, a, x, found in zip(model.factor.detach(), model.training_set, model.hidden, model.factor.grad, strict=True):
        a = a.reshape(-1, 5, 5)
        misfit = torch.einsum("nij,ij->n", a, u @ u.T - x)
        torch.testing.assert_close(found, torch.einsum("n,nij->ij", misfit, a) @ u / len(a))
        assert torch.equal(a, a.mT)
        assert torch.linalg.matrix_rank(x) == 2


@pytest.mark.slow
def test_pairs_come_closer_to_the_hidden_matrix_than_one_sided_noise(study):
    one_sided, pairs = (
        torch.tensor(study.trained(Noise(0.08, two_point=two_point), 12, 1, 2000, range(3), torch.device("cpu")))
        for two_point in (False, True))
    assert (pairs < one_sided).all()
