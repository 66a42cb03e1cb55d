import math

import pytest
import torch
import torch.nn.functional as F
from torch.func import hessian, jacfwd, jacrev, vmap

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
        values = loss(*example(loss))
        assert values.shape == (2,)
        assert (values >= 0).all()
        assert loss.upper is None or (values <= loss.upper).all()


def example(loss: Loss) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and targets of two examples; of the sequences, one has no label at all."""
    if loss.predictions is not None:
        outputs = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return outputs, torch.tensor([[0, 1, -100, 2], [-100, -100, -100, -100]])
    soft = torch.tensor([[0.0, 1.0, 0.3], [1.0, 1.0, 0.0]], dtype=torch.float64)
    return OUTPUTS, torch.tensor([1, 2]) if loss.classification else soft


each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda x: x.name)


@each_loss
def test_every_loss_has_second_derivatives_in_every_mode_and_for_single_examples(loss):
    outputs, targets = example(loss)

    def total(f):
        return loss(f, targets).sum()
    truth = torch.autograd.functional.hessian(total, outputs)
    for twice in (jacfwd(jacfwd(total)), jacfwd(jacrev(total)), jacrev(jacfwd(total)), jacrev(jacrev(total))):
        torch.testing.assert_close(twice(outputs), truth)
    blocks = vmap(hessian(lambda f, y: loss(f[None], y[None])[0]))(outputs, targets)
    for i in range(2):
        torch.testing.assert_close(blocks[i].squeeze(), truth.select(0, i).select(outputs.ndim - 1, i).squeeze())


@each_loss
def test_rows_of_logits_are_the_loss_and_can_be_taken_for_single_examples(loss):
    if loss.softmax_rows is None:
        assert loss.name in ("clamped-cross-entropy", "binary-cross-entropy", "squared")
        return
    outputs, targets = example(loss)
    logits, mask = loss.softmax_rows(outputs, targets)
    assert logits.shape[:2] == mask.shape
    labels = targets[:, -logits.shape[1]:] if outputs.ndim == 3 else targets[:, None]
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten().clamp(min=0), reduction="none").reshape(mask.shape)
    torch.testing.assert_close(torch.where(mask, each, 0).sum(1), loss(outputs, targets))
    single = vmap(lambda f, y: tuple(t[0] for t in loss.softmax_rows(f[None], y[None])))(outputs, targets)
    torch.testing.assert_close(single, (logits, mask))
    assert loss.predictions is None or loss.predictions(targets).tolist() == mask.sum(1).tolist()


def test_token_losses_are_those_of_torch_summed_over_the_labelled_tokens():
    outputs, targets = example(LOSSES["token-cross-entropy"])
    each = F.cross_entropy(outputs.mT, targets, ignore_index=-100, reduction="none")
    torch.testing.assert_close(LOSSES["token-cross-entropy"](outputs, targets), each.sum(1))
    shifted = F.cross_entropy(outputs[:, :-1].mT, targets[:, 1:], ignore_index=-100, reduction="none")
    torch.testing.assert_close(LOSSES["next-token-cross-entropy"](outputs, targets), shifted.sum(1))
    assert LOSSES["token-cross-entropy"].predictions(targets).tolist() == [3, 0]
    assert LOSSES["next-token-cross-entropy"].predictions(targets).tolist() == [2, 0]
    wrong = (outputs.argmax(-1) != targets) & (targets != -100)
    assert LOSSES["token-cross-entropy"].errors(outputs, targets).tolist() == wrong.sum(1).tolist()


def test_binary_cross_entropy_is_that_of_torch_summed_over_the_labels():
    loss = LOSSES["binary-cross-entropy"]
    outputs, targets = example(loss)
    each = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    torch.testing.assert_close(loss(outputs, targets), each.sum(1))
    whole = torch.tensor([[1, 0, 1], [0, 1, 1]])
    assert loss(outputs, whole).tolist() == loss(outputs, whole.double()).tolist()
    assert loss.errors(outputs, whole).tolist() == pytest.approx([1 / 3, 1 / 3])


def test_a_loss_of_ones_own_is_passed_through_and_an_unknown_name_is_refused():
    own = Loss("own", lambda outputs, targets: outputs[:, 0])
    assert get_loss(own) is own
    with pytest.raises(InputError, match=r"did you mean 'cross-entropy'\?$"):
        get_loss("crossentropy")
