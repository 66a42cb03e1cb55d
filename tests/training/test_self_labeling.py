"""Self-labeling: worked values, its rules against a literal twin, its record, and runs of it."""

import math

import pytest
import torch
from torch import nn

from genmeasure.data.batches import Batch
from genmeasure.data.label_noise import noisy_labels
from genmeasure.errors import InputError
from genmeasure.losses import cross_entropy
from genmeasure.training.algorithm import get_algorithm
from genmeasure.training.context import Context
from genmeasure.training.loop import Settings, fine_tune
from genmeasure.training.losses.self_labeling import Correction, SelfLabeling, temperature

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def prepared(**given):
    examples = Batch((torch.zeros(6, 2),), LABELS, rows=torch.arange(6))
    return SelfLabeling(**given).prepare(Context.of(nn.Linear(2, 3), examples=examples))


def scores(*rows):
    """Outputs whose probabilities are the rows."""
    return torch.tensor(rows, dtype=torch.float64).log()


def outputs_with_losses(losses):
    """Outputs of two classes whose cross-entropies on label 0 are the losses."""
    losses = torch.tensor(losses, dtype=torch.float64)
    return torch.stack([-losses, torch.log(-torch.expm1(-losses))], 1)


@pytest.mark.parametrize(("tau", "weights", "loss"), [
    (1.0, (.6841850, .2781689, .0376461), .4595255828), (2.0, (.5341314, .3405772, .1252914), .7698644467)])
def test_weights_golden(tau, weights, loss):
    piece = prepared(temperature=tau, reweight_from=1)
    piece.begin_epoch(1, None)
    outputs = outputs_with_losses([.1, 1, 3]).requires_grad_()
    losses = piece(outputs, torch.zeros(3, dtype=torch.int64))
    assert losses.mean().item() == pytest.approx(loss, abs=1e-9)
    assert (losses.detach() / 3 / torch.tensor([.1, 1, 3])).tolist() == pytest.approx(weights, abs=5e-8)
    losses.mean().backward()
    plain = outputs.detach().requires_grad_()
    (torch.tensor(weights) * cross_entropy(plain, torch.zeros(3, dtype=torch.int64))).sum().backward()
    torch.testing.assert_close(outputs.grad, plain.grad, rtol=1e-6, atol=1e-9)  # the weights take no gradient


def test_temperature_golden():
    recipe = SelfLabeling(temperature=2.0, reweight_from=5)
    found = [temperature(recipe, epoch) for epoch in range(4, 15)]
    assert found == pytest.approx([2, 2, 1.809675, 1.637462, 1.481636, 1.340640, 1.213061, 1.097623, 1, 1, 1], abs=5e-7)


def test_before_reweighting_the_mean_is_plain():
    piece = prepared(reweight_from=3)
    outputs, targets = outputs_with_losses([.1, 1, 3]), torch.zeros(3, dtype=torch.int64)
    for epoch in (1, 2):
        piece.begin_epoch(epoch, None)
        assert torch.equal(piece(outputs, targets), cross_entropy(outputs, targets))
    piece.begin_epoch(3, None)
    assert not torch.equal(piece(outputs, targets), cross_entropy(outputs, targets))


def test_weights_over_the_data_do_not_depend_on_the_batch():
    piece = prepared(reweight_from=1, normalization="data", correction=False, temperature=2.0)
    outputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    piece.begin_epoch(1, lambda: outputs)
    losses = cross_entropy(outputs, LABELS)
    weights = torch.exp(-losses / 2)
    whole = piece(outputs, LABELS)
    torch.testing.assert_close(whole, weights / weights.mean() * losses)
    torch.testing.assert_close(torch.cat([piece(outputs[:4], LABELS[:4]), piece(outputs[4:], LABELS[4:])]), whole)


P = ([.05, .93, .02], [.95, .03, .02], [.89, .06, .05], [.97, .02, .01], [.02, .97, .01], [.92, .04, .04])


def test_corrections_are_made_and_recorded():
    piece = prepared(correct_from=2, threshold=0.9)
    piece.begin_epoch(1, None)
    assert piece.corrections == []
    piece.begin_epoch(2, lambda: scores(*P))
    assert piece.labels.tolist() == [1, 0, 2, 0, 1, 0]  # row 2 is not sure enough, rows 3 and 4 are right already
    found = piece.corrections
    assert [(c.epoch, c.row, c.before, c.after) for c in found] == [(2, 0, 0, 1), (2, 1, 1, 0), (2, 5, 2, 0)]
    assert [c.confidence for c in found] == pytest.approx([.93, .95, .92])
    batch = Batch((torch.zeros(2, 2),), LABELS[[5, 3]], rows=torch.tensor([5, 3]))
    assert piece.draw(batch).targets.tolist() == [0, 0]
    assert torch.equal(piece.given, LABELS)
    back = [list(row) for row in P]
    back[0] = [.99, .005, .005]
    piece.begin_epoch(3, lambda: scores(*back))
    assert piece.labels.tolist() == [0, 0, 2, 0, 1, 0]
    assert piece.corrections[3] == Correction(3, 0, 1, 0, pytest.approx(.99))


def test_limit_takes_the_most_confident_first_and_lets_labels_come_back():
    piece = prepared(correct_from=1, limit=1 / 3)
    piece.begin_epoch(1, lambda: scores(*P))
    assert [c.row for c in piece.corrections] == [0, 1]
    piece.begin_epoch(2, lambda: scores(*P))
    assert len(piece.corrections) == 2
    back = [[.99, .005, .005], *P[1:]]
    piece.begin_epoch(3, lambda: scores(*back))  # row 0 takes its own label again, which makes room for row 5
    assert [(c.row, c.after) for c in piece.corrections[2:]] == [(0, 0), (5, 0)]
    assert (piece.labels != LABELS).sum() == 2


def test_averaged_probabilities():
    """A single sure epoch is not enough when the past counts for half."""
    unsure = [[1 / 3] * 3] * 6
    piece = prepared(correct_from=1, averaging=0.5)
    piece.begin_epoch(1, lambda: scores(*unsure))
    for epoch, confidence in enumerate((.5 * .95 + .5 / 3, .75 * .95 + .25 / 3, .875 * .95 + .125 / 3,
                                        .9375 * .95 + .0625 / 3), 2):
        piece.begin_epoch(epoch, lambda: scores(*[[.025, .95, .025]] * 6))
        changed = {c.row: c.confidence for c in piece.corrections}
        assert (0 in changed) == (confidence > 0.9)
    assert changed[0] == pytest.approx(confidence)


def test_halves():
    outputs = scores(*P)
    only_weights = prepared(correct_from=1, reweight_from=1, correction=False)
    only_weights.begin_epoch(1, None)
    assert only_weights.corrections == []
    assert not torch.equal(only_weights(outputs, LABELS), cross_entropy(outputs, LABELS))
    only_corrections = prepared(correct_from=1, reweight_from=1, reweighting=False)
    only_corrections.begin_epoch(1, lambda: outputs)
    assert len(only_corrections.corrections) == 3
    assert torch.equal(only_corrections(outputs, LABELS), cross_entropy(outputs, LABELS))


def test_resumed_it_goes_on():
    given = {"correct_from": 1, "reweight_from": 1, "normalization": "data", "averaging": 0.2}
    one, other = prepared(**given), prepared(**given)
    one.begin_epoch(1, lambda: scores(*P))
    state = one.state()
    other.load(state)
    for piece in (one, other):
        piece.begin_epoch(2, lambda: scores(*reversed(P)))
    within = prepared(**given)
    within.load(one.state())  # within an epoch, which is not begun again
    for piece in (other, within):
        assert piece.corrections == one.corrections
        assert torch.equal(piece.labels, one.labels)
        assert torch.equal(piece(scores(*P), LABELS), one(scores(*P), LABELS))
    assert len(one.corrections) > 3


def noisy(train, rate=0.3):
    from genmeasure.data.batches import Batches
    labels = noisy_labels(f"symmetric:rate={rate}", train.labels, 10, seed=0).labels
    inputs = torch.cat([batch.inputs[0] for batch in train])
    return Batches.from_arrays(inputs, labels, train.labels)


def test_a_run_keeps_the_record_and_the_ball(net, train):
    parameters = {"correct_from": 4, "reweight_from": 3, "threshold": 0.6, "radius": 1.2, "head_radius": 4.0}
    settings = Settings(epochs=8, learning_rate=1e-2, device="cpu")
    data = noisy(train)
    before = data.labels.clone()
    result = fine_tune(net, get_algorithm("self-labeling", **parameters), data, settings=settings)
    loss = result.algorithm.loss
    assert len(loss.corrections) > 5
    assert min(c.epoch for c in loss.corrections) >= 4
    assert min(c.confidence for c in loss.corrections) > 0.6
    assert torch.equal(data.labels, before)
    assert torch.equal(loss.given, before)
    replayed = before.clone()
    for c in loss.corrections:
        assert replayed[c.row] == c.before
        replayed[c.row] = c.after
    assert torch.equal(replayed, loss.labels)
    assert (loss.labels != train.labels).sum() < (before != train.labels).sum()  # more was mended than was spoilt
    moved = (result.model.conv1.weight - net.conv1.weight).norm().item()
    assert moved <= 1.2 + 1e-5
    assert result.model.head.weight.norm().item() <= 4.0 + 1e-5


def test_decided_in_evaluation_mode(net, train):
    """The probabilities are those of the model at the end of the epoch before, without dropout or batch statistics."""
    parameters = {"correct_from": 3, "threshold": 0.3, "radius": None, "reweighting": False}
    data, settings = noisy(train), Settings(epochs=2, learning_rate=1e-2, device="cpu")
    model = fine_tune(net, "plain", data, settings=settings).model.eval()
    with torch.no_grad():
        confidence, best = model(torch.cat([batch.inputs[0] for batch in data])).softmax(1).max(1)
    expected = ((confidence > 0.3) & (best != data.labels)).nonzero().squeeze(1)
    longer = Settings(epochs=3, learning_rate=1e-2, device="cpu")
    result = fine_tune(net, get_algorithm("self-labeling", **parameters), data, settings=longer)
    found = result.algorithm.loss.corrections
    assert [c.row for c in found] == expected.tolist()
    assert [c.confidence for c in found] == pytest.approx(confidence[expected].tolist(), rel=1e-5)


def test_the_constraint_can_be_left_out():
    assert get_algorithm("self-labeling", radius=None).constraint is None
    assert get_algorithm("self-labeling").constraint.radius == 8.0


@pytest.mark.parametrize(("given", "end"), [
    ({"threshold": 1.5}, "it must lie between 0 and 1"),
    ({"limit": -0.1}, "it must lie between 0 and 1"),
    ({"averaging": math.nan}, "it must lie between 0 and 1"),
    ({"correct_from": 0}, "epochs count from 1"),
    ({"temperature": 0.0}, "it must be above 0"),
    ({"normalization": "bach"}, "did you mean 'batch'?"),
])
def test_bad_parameters(given, end):
    with pytest.raises(InputError) as caught:
        SelfLabeling(**given)
    assert str(caught.value).endswith(end)


@pytest.mark.parametrize(("call", "end"), [
    (lambda: SelfLabeling().prepare(Context.of(nn.Linear(2, 3))), "Context.of(…, examples=…)"),
    (lambda: prepared().draw(Batch((torch.zeros(6, 2),), LABELS)), "their positions in the training data"),
])
def test_refused(call, end):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value).endswith(end)
