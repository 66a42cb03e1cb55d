import math

import pytest
import torch

from genmeasure.errors import InputError
from genmeasure.losses import LOSSES, SMALLEST_PROBABILITY, Loss, get_loss

OUTPUTS = torch.tensor([[2.0, 0.0, -1.0], [-30.0, 30.0, 0.0]], dtype=torch.float64)


def test_clamped_cross_entropy_is_scaled_and_stays_in_its_range():
    """-ln max(p, p_min) / ln(1 / p_min)."""
    loss = get_loss("clamped-cross-entropy")
    p = OUTPUTS.softmax(1)
    truth = [-math.log(max(p[i, y].item(), SMALLEST_PROBABILITY)) / -math.log(SMALLEST_PROBABILITY)
             for i, y in enumerate((0, 0))]
    assert loss(OUTPUTS, torch.tensor([0, 0])).tolist() == pytest.approx(truth, rel=1e-12)
    assert loss(OUTPUTS, torch.tensor([0, 0]))[1] == loss.upper == 1


def test_squared_loss_is_half_the_squared_distance_for_both_shapes_of_targets():
    loss = get_loss("squared")
    assert loss(OUTPUTS, torch.zeros(2, 3)).tolist() == [2.5, 900.0]
    assert loss(OUTPUTS[:, :1], torch.tensor([1.0, 0.0])).tolist() == [0.5, 450.0]


def test_every_loss_is_per_example_and_not_negative():
    for loss in LOSSES.values():
        targets = torch.tensor([1, 2]) if loss.classification else torch.ones(2, 3)
        values = loss(OUTPUTS, targets)
        assert values.shape == (2,)
        assert (values >= 0).all()
        assert loss.upper is None or (values <= loss.upper).all()


def test_a_loss_of_ones_own_is_passed_through_and_an_unknown_name_is_refused():
    own = Loss("own", lambda outputs, targets: outputs[:, 0])
    assert get_loss(own) is own
    with pytest.raises(InputError, match=r"did you mean 'cross-entropy'\?$"):
        get_loss("crossentropy")
