"""The loop: order of a step, selection, schedules, data that do not fit."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from genmeasure.data.batches import Batches
from genmeasure.errors import InputError
from genmeasure.training.algorithm import Algorithm, get_algorithm
from genmeasure.training.evaluate import evaluate
from genmeasure.training.examples import shuffled_rows, whole
from genmeasure.training.loop import Epoch, Settings, fine_tune
from genmeasure.training.pieces import Constraint, Penalty, TrainLoss
from genmeasure.training.schedules import learning_rate
from genmeasure.training.selection import BestValidation, LastEpoch


def test_plain_against_a_literal_loop(net, train, settings):
    """Twin: the same order of examples, an ordinary loop."""
    net.drop.p = 0.0
    result = fine_tune(net, "plain", train, settings=replace(settings, optimizer="sgd", learning_rate=0.05))
    x, y = torch.cat([b.inputs[0] for b in train]), torch.cat([b.targets for b in train])
    order = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    net.train()
    for _ in range(2):
        for rows in shuffled_rows(len(y), 32, order):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    for name, p in net.named_parameters():
        torch.testing.assert_close(result.model.get_parameter(name), p, rtol=1e-4, atol=1e-5)


def test_order_inside_a_step(net, train, settings):
    calls = []

    class Loss(TrainLoss):
        def draw(self, batch, generator=None, model=None):
            calls.append("draw")
            return batch

        def __call__(self, outputs, targets):
            calls.append("loss")
            return nn.functional.cross_entropy(outputs, targets, reduction="none")

    class Pull(Penalty):
        def __call__(self, model):
            calls.append("penalty")
            self.at = model.head.weight.detach().clone()
            return model.head.weight.sum()

    class Box(Constraint):
        def __call__(self, model):
            calls.append("constraint")
            assert not torch.equal(model.head.weight, pull.at)  # the optimizer has stepped

    pull = Pull()
    fine_tune(net, Algorithm(loss=Loss(), penalty=pull, constraint=Box()), train,
              settings=replace(settings, epochs=1, batch_size=193))
    assert calls == ["draw", "loss", "penalty", "constraint"]


def test_history_and_evaluation(net, train, validation, settings):
    result = fine_tune(net, "plain", train, validation, settings=settings)
    assert [e.number for e in result.history] == [1, 2]
    assert result.chosen == 2
    last = result.history[-1]
    assert (last.validation_loss, last.validation_error) == evaluate(result.model, validation)
    assert last.learning_rate == settings.learning_rate
    assert 0 < sum(e.seconds for e in result.history) < result.seconds
    result.model.eval()
    x, y = torch.cat([b.inputs[0] for b in validation]), validation.labels
    with torch.no_grad():
        assert last.validation_loss == pytest.approx(nn.functional.cross_entropy(result.model(x), y).item(), rel=1e-5)
        assert last.validation_error == pytest.approx((result.model(x).argmax(1) != y).double().mean().item())


def test_without_validation_figures_are_nan(net, train, settings):
    history = fine_tune(net, "plain", train, settings=settings).history
    assert all(math.isnan(e.validation_loss) and math.isnan(e.validation_error) for e in history)


def test_best_epoch_is_returned(net, train, validation, settings):
    settings = replace(settings, epochs=5, learning_rate=0.05, select="loss")
    result = fine_tune(net, "plain", train, validation, settings=settings)
    losses = [e.validation_loss for e in result.history]
    assert result.chosen == losses.index(min(losses)) + 1
    assert evaluate(result.model, validation)[0] == min(losses)


def test_early_stopping_ends(net, train, validation, settings):
    algorithm = get_algorithm("early-stopping", patience=2)
    settings = replace(settings, epochs=50, learning_rate=0.05)
    result = fine_tune(net, algorithm, train, validation, settings=settings)
    assert len(result.history) == result.chosen + 2 < 50
    assert evaluate(result.model, validation)[0] == result.history[result.chosen - 1].validation_loss


def test_selection_rules():
    def history(*figures):
        return [Epoch(i + 1, 0.0, f, 1 - f, 0.1, 0.0) for i, f in enumerate(figures)]
    assert LastEpoch().chosen(history(0.1, 0.5)) == 2
    assert BestValidation().chosen(history(0.5, 0.1, 0.1)) == 2
    assert BestValidation("error").chosen(history(0.5, 0.1, 0.7)) == 3
    assert BestValidation().chosen(history(math.nan, 0.1)) == 2
    assert not BestValidation(patience=2).stop(history(0.1, 0.5))
    assert BestValidation(patience=2).stop(history(0.1, 0.5, 0.6))
    assert not BestValidation().stop(history(*[0.1] * 100))


def test_schedules():
    def rates(**given):
        return [learning_rate(e, Settings(epochs=4, learning_rate=1.0, **given)) for e in (1, 2, 3, 4)]
    assert rates() == [1, 1, 1, 1]
    assert rates(schedule="step", step_epochs=2) == pytest.approx([1, 1, 0.1, 0.1])
    assert rates(schedule="cosine") == pytest.approx([1, 0.5 + 0.25 * math.sqrt(2), 0.5, 0.5 - 0.25 * math.sqrt(2)])


@pytest.mark.parametrize(("examples", "batch_size", "sizes"), [
    (10, 4, [4, 4, 2]), (9, 4, [4, 5]), (1, 4, [1]), (4, 4, [4]), (3, 1, [1, 1, 1]), (5, 4, [5])])
def test_no_minibatch_of_one(examples, batch_size, sizes):
    rows = list(shuffled_rows(examples, batch_size, torch.Generator().manual_seed(0)))
    assert [len(r) for r in rows] == sizes
    assert torch.cat(rows).sort().values.tolist() == list(range(examples))


def test_batch_norm_survives_a_leftover_example(settings):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = torch.randn(33, 3, generator=torch.Generator().manual_seed(0))
    result = fine_tune(model, "sam", Batches.from_arrays(x, (x[:, 0] > 0).long()), settings=settings)
    assert result.model[1].num_batches_tracked == 2


def test_keyword_inputs(settings):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, values, mask, note):
            assert note == "as it is"
            return self.head(values * mask)
    g = torch.Generator().manual_seed(0)
    batches = Batches([{"values": torch.randn(8, 3, generator=g, dtype=torch.float64), "note": "as it is",
                        "mask": torch.ones(8, 3, dtype=torch.int64), "labels": torch.arange(8) % 2} for _ in range(2)])
    assert len(whole(batches)) == 16
    assert len(fine_tune(Model(), "nso", batches, settings=settings).history) == 2


def test_algorithm_as_prepared_tells_what_was_constrained(net, train, settings):
    result = fine_tune(net, get_algorithm("layer-ball", radius=0.05), train, settings=settings, head="head")
    for row in result.algorithm.constraint.report():
        if row["rule"] == "ball" and row["about"] == "start":
            distance = (result.model.get_parameter(row["name"]) - net.get_parameter(row["name"])).norm().item()
            assert distance <= 0.05 * (1 + 1e-4)


def error_of(*arguments, **given):
    with pytest.raises(InputError) as caught:
        fine_tune(*arguments, **given)
    return str(caught.value)


def test_divergence_names_the_epoch_and_the_remedy(net, train, settings):
    message = error_of(net, "plain", train, settings=replace(settings, optimizer="sgd", learning_rate=1e30))
    assert message.startswith("training diverged in epoch 1")
    assert message.endswith("use a smaller learning rate")


def test_missing_validation(net, train, settings):
    assert error_of(net, "early-stopping", train, settings=settings).endswith("pass validation=… or select='last'")


def test_labels_out_of_range(net, settings):
    x = torch.zeros(4, 1, 8, 8)
    for labels in (torch.tensor([0, 1, 2, 10]), torch.tensor([0, -1, 2, 3]), torch.tensor([0.0, 1, 2, 3])):
        message = error_of(net, "plain", Batches.from_arrays(x, labels), settings=settings)
        assert message.endswith("they must be whole numbers from 0 to 9, one for each example")


def test_shapes_that_differ(net, settings):
    batches = Batches([(torch.zeros(2, 1, s, 8), torch.tensor([0, 1])) for s in (8, 9)])
    assert error_of(net, "plain", batches, settings=settings).endswith("for texts by padding to one length")


def test_nothing_to_train(net, train, settings):
    assert error_of(net.requires_grad_(False), "plain", train,
                    settings=settings).endswith("set requires_grad on those to be trained")


def test_no_classifier(train, settings):
    assert error_of(nn.Conv2d(1, 2, 3), "plain", train,
                    settings=settings).endswith("must give one row of class scores for each example")


@pytest.mark.parametrize(("given", "end"), [
    ({"epochs": 0}, "epochs=0 came; it must be at least 1"),
    ({"learning_rate": -1.0}, "it must be at least 0"),
    ({"learning_rate": math.nan}, "it must be at least 0"),
    ({"optimizer": "sdg"}, "did you mean 'sgd'?"),
    ({"schedule": "cosin"}, "did you mean 'cosine'?"),
    ({"select": "los"}, "did you mean 'loss'?"),
    ({"patience": 3}, "patience goes with select='loss' or select='error'"),
])
def test_bad_settings(given, end):
    with pytest.raises(InputError) as caught:
        Settings(**given)
    assert str(caught.value).endswith(end)
