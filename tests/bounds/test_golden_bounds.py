"""Golden numbers and sanity properties of bounds.md 7 and 8."""

import math

import pytest
import torch
from torch import nn

import genmeasure as gm
from genmeasure.bounds import li2021, neyshabur2018
from genmeasure.bounds.ju2022 import contribution
from genmeasure.data.batches import Batches
from genmeasure.errors import InputError
from genmeasure.norms import frobenius, mars, spectral, two_one
from genmeasure.subject import subject

W1, W2 = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])


def test_norms_of_the_two_matrices():
    assert (spectral(W1), spectral(W2)) == pytest.approx((3, 2))
    assert (frobenius(W1), frobenius(W2)) == pytest.approx((3.1622776602, 2.2360679775))
    assert (two_one(W1), two_one(W2)) == (4, 3)
    assert (mars(W1), mars(W2)) == (3, 2)


def test_neyshabur_table_and_certificate():
    ratios = [frobenius(W1) / 3, frobenius(W2) / 2]
    assert math.exp(neyshabur2018.log_table([3, 2], ratios, 1.0, 100)) == pytest.approx(0.9219544457, abs=1e-9)
    log_kl = neyshabur2018.log_divergence([3, 2], ratios, 1.0, 1.0, 2, math.log(6) / 2)
    assert math.exp(log_kl) == pytest.approx(1662887.812, rel=1e-9)
    found = math.exp(neyshabur2018.log_certified_complexity(log_kl, 2, 10**9, 0.05))
    assert found == pytest.approx(0.1631156252, abs=1e-9)


def test_the_grid_covers_beta_from_within_its_range():
    for beta in (0.3, 0.7, 1.5):
        low = (0.1 / 2) ** 0.5
        covered = math.exp(neyshabur2018.grid_log_beta(math.log(beta), 2, 0.1, 1.0, 10**4))
        assert abs(covered - beta) <= low / 2 + 1e-12 <= beta / 2 + 1e-12


def test_li_table():
    log = 0.5 * (li2021.log_complexity([1, 2], [0.5, 0.25]) - math.log(100)) - math.log(0.1)
    assert math.exp(log) == pytest.approx(2.0963137289, abs=1e-9)


def test_ju_assembly():
    assert contribution(4, 9, 100) + contribution(4, 16, 100) == pytest.approx(1.4)
    assert contribution(4, -1e-12, 100) == 0


def chain(scale=1.0, logit=1.0, moved=0.3, copies=1, classes=3):
    """A bias-free ReLU chain, its layers rescaled against each other (the start likewise)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, classes, bias=False)).double()
                for _ in range(2)]
        x = torch.randn(30, 4).double()
    net, start = nets
    for one, other in zip(start.parameters(), net.parameters(), strict=True):
        one.data = other.data + moved * one.data
    y = net(x).argmax(1)
    for n in nets:
        n[0].weight.data *= scale
        n[2].weight.data *= logit / scale
    data = Batches.from_arrays(x.repeat(copies, 1), y.repeat(copies))
    return subject(net, start, data, dtype="float64", device="cpu")


def total(s, name, **parameters):
    frame = gm.measure(s, name, **parameters)
    return frame.loc[frame["term"] == "total", "value"].item()


@pytest.mark.parametrize(("name", "parameters"), [
    ("neyshabur2018", {"variant": "table"}), ("neyshabur2018", {"variant": "code"}), ("ju2022", {})])
def test_moving_scale_between_layers_changes_nothing(name, parameters):
    assert total(chain(scale=10), name, **parameters) == pytest.approx(total(chain(), name, **parameters), rel=1e-8)


def test_scaling_the_logits_leaves_the_normalised_margin():
    assert total(chain(logit=7), "neyshabur2018", variant="table") == pytest.approx(
        total(chain(), "neyshabur2018", variant="table"), rel=1e-9)


@pytest.mark.parametrize(("name", "parameters"), [
    ("neyshabur2018", {"variant": "table"}), ("li2021", {"variant": "table"}), ("ju2022", {})])
def test_four_times_the_examples_halve_a_table_form(name, parameters):
    assert total(chain(copies=4), name, **parameters) == pytest.approx(total(chain(), name, **parameters) / 2, rel=1e-9)


@pytest.mark.parametrize(("name", "parameters"), [("li2021", {"variant": "table"}), ("ju2022", {}),
                                                  ("neyshabur2018", {"variant": "code"})])
def test_no_distance_gives_zero(name, parameters):
    assert total(chain(moved=0), name, **parameters) == 0
    assert total(chain(moved=0), "neyshabur2018", variant="table") > 0


def test_a_plain_chain_meets_the_assumption_and_keeps_the_certificate():
    frame = gm.measure(chain(), "neyshabur2018", input_norm=10.0)
    assert set(frame["kind"]) == {"certificate"}
    assumed = frame[frame["term"].str.startswith("assumes:")].set_index("term")["value"]
    assert dict(assumed) == {"assumes:feed-forward": 1, "assumes:known-modules": 1, "assumes:bounded-inputs": 1}
    assert frame.loc[frame["term"] == "vacuous", "value"].item() == 1


def test_a_bound_on_the_inputs_read_off_the_sample_certifies_nothing():
    frame = gm.measure(chain(), "neyshabur2018")
    assert set(frame["kind"]) == {"measure"}
    assert frame.loc[frame["term"] == "assumes:bounded-inputs", "value"].item() == 0
    with pytest.raises(InputError, match="give a bound that holds for every input$"):
        gm.measure(chain(), "neyshabur2018", input_norm=0.1)


def test_a_forward_pass_that_could_rescale_certifies_nothing():
    class Rescaling(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8, bias=False), nn.Linear(8, 3, bias=False)

        def forward(self, x):
            return self.last(torch.relu(self.first(100 * x)))
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    net = Rescaling()
    frame = gm.measure(subject(net, net, Batches.from_arrays(x, net(x).argmax(1)), device="cpu"), "neyshabur2018",
                       input_norm=10.0)
    assert set(frame["kind"]) == {"measure"}
    assert frame.loc[frame["term"] == "assumes:feed-forward", "value"].item() == 1
    assert frame.loc[frame["term"] == "assumes:known-modules", "value"].item() == 0


@pytest.mark.parametrize(("name", "parameters"), [
    ("neyshabur2018", {"delta": 2.0}), ("neyshabur2018", {"percentile": 10}), ("neyshabur2018", {"input_norm": -1})])
def test_parameters_out_of_range_are_refused(name, parameters):
    with pytest.raises(InputError, match="are probabilities, and the input norm is positive$"):
        gm.measure(chain(), name, **parameters)


def test_an_epsilon_or_a_loss_bound_of_zero_is_refused():
    with pytest.raises(InputError, match="delta is a probability and epsilon is positive$"):
        gm.measure(chain(), "li2021", epsilon=0)
    with pytest.raises(InputError, match="it must be positive$"):
        gm.measure(chain(), "ju2022", loss_upper=-1)


def test_a_certificate_can_be_smaller_than_one():
    """Tiny weights, a wide margin and very many examples: the complexity must fall with n."""
    ratios = [1.0]
    small = [math.exp(neyshabur2018.log_certified_complexity(
        neyshabur2018.log_divergence([1.0], ratios, 1.0, 1.0, 2, 0.0), 1, m, 0.05)) for m in (10**6, 10**8)]
    assert small[1] < small[0]
    assert small[1] < 1


def test_a_margin_that_is_not_positive_gives_an_infinite_table_value():
    s = chain()
    wrong = Batches([(b.inputs[0], (b.targets + 1) % 3) for b in s.train])
    worse = subject(s.model, dict(s.start), wrong, dtype="float64", device="cpu")
    assert total(worse, "neyshabur2018", variant="table") == math.inf


def test_loss_bound():
    s = chain()
    biggest = torch.nn.functional.cross_entropy(s.model(next(iter(s.train)).inputs[0]), s.train.labels,
                                                reduction="none").max().item()
    frame = gm.measure(s, "ju2022")
    assert frame.loc[frame["term"] == "loss-bound", "value"].item() == pytest.approx(biggest, rel=1e-9)
    assert total(s, "ju2022", loss_upper=4 * biggest) == pytest.approx(2 * total(s, "ju2022"), rel=1e-9)


def test_depth_one():
    """bounds.md T6: |W|_F / (gamma sqrt n) and D / (epsilon sqrt n)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, start = (nn.Linear(3, 2, bias=False).double() for _ in range(2))
        x = torch.randn(25, 3).double()
    s = subject(net, start, Batches.from_arrays(x, net(x).argmax(1)), dtype="float64", device="cpu")
    frame = gm.measure(s, "neyshabur2018", variant="table")
    gamma = frame.loc[frame["term"] == "margin", "value"].item()
    assert total(s, "neyshabur2018", variant="table") == pytest.approx(frobenius(net.weight.data) / (gamma * 5))
    distance = frobenius(net.weight.data - start.weight.data)
    assert total(s, "li2021", variant="table", epsilon=0.1) == pytest.approx(distance / 0.5)
