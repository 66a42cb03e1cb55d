"""What every kind of label noise promises, and each kind's mechanism against a literal twin."""

import inspect
import re

import numpy as np
import pytest
import torch

from genmeasure import registry
from genmeasure.data import manifest
from genmeasure.data.digits import digits
from genmeasure.data.label_noise import noisy_labels
from genmeasure.data.label_noise.class_conditional import class_conditional, sampled
from genmeasure.data.label_noise.correlated import correlated
from genmeasure.data.label_noise.human import human
from genmeasure.data.label_noise.majority_vote import majority_vote, winners
from genmeasure.data.label_noise.pair_flip import pair_flip
from genmeasure.data.label_noise.weak_labellers import weak_labels
from genmeasure.errors import InputError

CLEAN = torch.cat([torch.zeros(30), torch.ones(10), torch.full((7,), 2)]).long()[
    torch.randperm(47, generator=torch.Generator().manual_seed(0))]
MATRIX = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.5, 0.4], [0.0, 0.0, 1.0]], dtype=torch.float64)
VOTES = torch.randint(-1, 3, (47, 4), generator=torch.Generator().manual_seed(1))
DRAWN = {"symmetric": {"rate": 0.4}, "asymmetric": {"rate": 0.4}, "pair-flip": {"rate": 0.4},
         "class-conditional": {"confusion": MATRIX}, "text": {"rate": 0.4, "part": 20},
         "majority-vote": {"votes": VOTES}}
FIXED = {"correlated": {"predictions": VOTES.clamp(min=0)[:, 0]}}


@pytest.fixture
def published(tmp_path):
    path = tmp_path / "labels.npz"
    np.savez(path, clean_label=CLEAN.numpy().astype(np.uint8), worse_label=VOTES[:, 0].clamp(min=0).numpy())
    return {"file": str(path)}


def everything(published):
    return {**DRAWN, **FIXED, "human": published}


def test_the_table_holds_every_kind(published):
    assert {member.name for member in registry.label_noise} == set(everything(published))


@pytest.mark.parametrize("name", [member.name for member in registry.label_noise])
def test_promises(name, published):
    member, given = registry.label_noise[name], everything(published)[name]
    assert member.source
    assert member.summary.endswith(".")
    assert member.function.__module__.endswith("." + name.replace("-", "_"))
    parameters = list(inspect.signature(member.function).parameters.values())
    assert [p.name for p in parameters[:2]] == ["y", "classes"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])
    before = torch.get_rng_state()
    one, again = (noisy_labels(name, CLEAN.numpy(), 3, seed=4, **given) for _ in range(2))
    assert torch.equal(one.labels, again.labels)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.clean, CLEAN)
    assert one.labels.dtype == torch.int64
    assert 0 <= one.labels.min() <= one.labels.max() < 3
    assert torch.equal(one.flipped, one.labels != CLEAN)
    assert one.realised_rate == one.flipped.double().mean().item() > 0
    for matrix in (one.confusion, one.realised_confusion):
        assert matrix.dtype == torch.float64
        assert (matrix >= 0).all()
        torch.testing.assert_close(matrix.sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    counted = [[(one.labels[i == CLEAN] == j).double().mean().item() for j in range(3)] for i in range(3)]
    torch.testing.assert_close(one.realised_confusion, torch.tensor(counted, dtype=torch.float64))
    if "rate" in member.defaults:
        nothing = noisy_labels(name, CLEAN, 3, rate=0.0)
        assert torch.equal(nothing.labels, CLEAN)
        assert torch.equal(nothing.confusion, torch.eye(3, dtype=torch.float64))
        for rate in (-0.1, 1.5, float("nan")):
            with pytest.raises(InputError, match="give a fraction between 0 and 1$"):
                noisy_labels(name, CLEAN, 3, rate=rate)


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "asymmetric"])
def test_confusion_is_that_of_the_mechanism(name):
    """Calibrated: the pooled counts over seeds lie within five standard errors of F, entry by entry."""
    seeds, counts = 400, torch.zeros(3, 3, dtype=torch.float64)
    for seed in range(seeds):
        noisy = noisy_labels(name, CLEAN, 3, seed=seed, **DRAWN[name])
        counts += torch.bincount(CLEAN * 3 + noisy.labels, minlength=9).reshape(3, 3)
    n = seeds * CLEAN.bincount().double().unsqueeze(1)
    stderr = (noisy.confusion * (1 - noisy.confusion) / n).sqrt()
    assert ((counts / n - noisy.confusion).abs() <= 5 * stderr).all()


def test_asymmetric_is_one_distribution_for_all_classes():
    clean = torch.arange(60000) % 3
    noisy = noisy_labels("asymmetric:rate=0.4", clean, 3, seed=2)
    distribution = torch.rand(3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(0)
    torch.testing.assert_close(noisy.confusion, 0.6 * torch.eye(3, dtype=torch.float64) + 0.4 * distribution)
    stderr = (noisy.confusion * (1 - noisy.confusion) / 20000).sqrt()
    assert ((noisy.realised_confusion - noisy.confusion).abs() < 5 * stderr).all()
    assert noisy.realised_rate == pytest.approx(0.4 * (1 - distribution).mean().item(), abs=0.01)


def test_pairs():
    noisy = pair_flip(CLEAN, 3, rate=1.0)
    assert torch.equal(noisy.labels, (CLEAN + 1) % 3)
    noisy = noisy_labels("pair-flip:rate=1.0,pairs={2: 0, 0: 1}", CLEAN, 3)
    assert torch.equal(noisy.labels, torch.tensor([1, 1, 0])[CLEAN])
    assert noisy.confusion.tolist() == [[0, 1, 0], [0, 1, 0], [1, 0, 0]]
    with pytest.raises(InputError, match=r"both must lie between 0 and classes - 1$"):
        pair_flip(CLEAN, 3, rate=0.1, pairs={0: 3})


def test_text_flips_the_same_number_in_every_part():
    clean = torch.arange(250) % 2
    noisy = noisy_labels("text:rate=0.3,part=100", clean, 2)
    assert [int(part.sum()) for part in noisy.flipped.split(100)] == [30, 30, 15]
    assert noisy.confusion[0, 1] == 75 / 250
    assert registry.label_noise["text"].defaults["seed"] == 1024


def test_class_conditional_never_draws_what_cannot_be():
    noisy = class_conditional(CLEAN, 3, confusion=MATRIX, seed=3)
    assert (MATRIX[CLEAN, noisy.labels] > 0).all()
    edge = torch.tensor([[0.0, 1 / 3, 1 / 3, 1 / 3, 0.0]], dtype=torch.float64).expand(5000, 5)
    assert set(sampled(edge, torch.Generator().manual_seed(0)).tolist()) == {1, 2, 3}


def test_scores_and_classes_of_an_auxiliary_model(tmp_path):
    scores = torch.randn(47, 3, generator=torch.Generator().manual_seed(5))
    noisy = correlated(CLEAN, 3, predictions=scores)
    assert torch.equal(noisy.labels, scores.argmax(1))
    assert torch.equal(noisy.confusion, noisy.realised_confusion)
    np.save(tmp_path / "scores.npy", scores.numpy())
    assert torch.equal(noisy_labels(f"correlated:predictions={tmp_path}/scores.npy", CLEAN, 3).labels, noisy.labels)
    np.savetxt(tmp_path / "classes.csv", noisy.labels.numpy())
    assert torch.equal(correlated(CLEAN, 3, predictions=tmp_path / "classes.csv").labels, noisy.labels)


def test_votes():
    votes = torch.tensor([[0, 0, 1, -1], [2, 1, -1, -1], [-1, -1, -1, -1], [2, 2, 2, 2], [0, 1, 2, 1]])
    literal = [[1, 0, 0], [0, 1 / 2, 1 / 2], [1 / 3, 1 / 3, 1 / 3], [0, 0, 1], [0, 1, 0]]
    torch.testing.assert_close(winners(votes, 3), torch.tensor(literal, dtype=torch.float64))
    noisy = majority_vote([0, 0, 1, 1, 1], 3, votes=votes)
    torch.testing.assert_close(noisy.confusion, torch.tensor(
        [[1 / 2, 1 / 4, 1 / 4], [1 / 9, 4 / 9, 4 / 9], [0, 0, 1]], dtype=torch.float64))


def test_weak_labellers_of_digits():
    split = digits(range(10))["train"]
    votes = weak_labels(split["x"], split["y"], 10, sources=5, abstaining=0.2)
    assert torch.equal(votes, weak_labels(split["x"], split["y"], 10, sources=5, abstaining=0.2))
    assert (votes == -1).sum(0).tolist() == [int(0.2 * len(votes))] * 5
    alone = (votes == split["y"][:, None]).double().mean(0)
    noisy = majority_vote(split["y"], 10, votes=votes)
    assert alone.min() > 0.2
    assert alone.max() < 1 - noisy.realised_rate < 1  # together they know more than each alone


def test_human_labels_follow_their_rows(published):
    rows = torch.tensor([5, 3, 40])
    noisy = human(CLEAN[rows], 3, index=rows, **published)
    assert torch.equal(noisy.labels, VOTES[rows, 0].clamp(min=0))
    assert torch.equal(noisy.confusion, human(CLEAN, 3, **published).realised_confusion)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "wrong"), [("aggre_label", 9.01), ("random_label1", 17.23), ("worse_label", 40.21)])
def test_cifar10n(kind, wrong):
    """Recorded: per cent of the published labels of Wei et al. 2022, arXiv:2110.12088, that are wrong."""
    try:
        path = manifest.path("cifar10n_labels")
    except InputError as error:
        pytest.skip(str(error))
    with np.load(path) as stored:
        clean = stored["clean_label"]
    assert 100 * human(clean, 10, kind=kind).realised_rate == pytest.approx(wrong, abs=0.005)


@pytest.mark.parametrize(("kind", "given", "end"), [
    ("symetric:rate=0.1", {}, "did you mean 'symmetric'?"),
    ("symmetric:rat=0.1", {}, "did you mean 'rate'?"),
    ("symmetric", {}, "write it as symmetric:rate=VALUE"),
    ("symmetric:0.4", {}, "write it as key=value"),
    ("text:rate=0.1,part=0", {}, "each part must hold at least 1 example"),
    ("class-conditional", {"confusion": torch.eye(2)}, "with 3 classes it must be [3, 3]"),
    ("class-conditional", {"confusion": torch.ones(3, 3)}, "each row must hold probabilities that add up to 1"),
    ("class-conditional:confusion=missing.npy", {}, "does not exist; give the path of a file"),
    ("correlated", {"predictions": torch.zeros(47, 2)}, "give [47] classes or [47, 3] scores"),
    ("correlated", {"predictions": torch.full((47,), 3)}, "between 0 and classes - 1, with at least two classes"),
    ("majority-vote", {"votes": torch.zeros(47)}, "one column for each source"),
    ("majority-vote", {"votes": torch.full((47, 2), 3)}, "or be -1 where a source abstains"),
])
def test_bad_input(kind, given, end):
    with pytest.raises(InputError, match=re.escape(end) + "$"):
        noisy_labels(kind, CLEAN, 3, **given)


def test_bad_files(tmp_path, published):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "objects.npz", clean_label=np.array([{"a": 1}], dtype=object))
    (tmp_path / "labels.pt").touch()
    for call, end in (
            (lambda: correlated(CLEAN, 3, predictions=tmp_path / "objects.npy"), "give numbers as .npy or .csv"),
            (lambda: correlated(CLEAN, 3, predictions=tmp_path / "labels.pt"), "give an array as .npy or .csv"),
            (lambda: human(CLEAN, 3, file=f"{tmp_path}/objects.npz"), "give an .npz of numbers alone"),
            (lambda: human(CLEAN, 3, file=f"{tmp_path}/labels.pt"), "save its arrays with numpy.savez)"),
            (lambda: human(CLEAN, 3, kind="worst_label", **published), "did you mean 'worse_label'?"),
            (lambda: human(CLEAN[:5], 3, **published), "one row of the file for each label"),
            (lambda: human(CLEAN.roll(1), 3, **published), "in which the examples stand as index=…")):
        with pytest.raises(InputError, match=re.escape(end) + "$"):
            call()


@pytest.mark.parametrize(("given", "end"), [
    ({"window": 9}, "it must fit into images [n, channels, height, width]"),
    ({"abstaining": 1.0}, "give a fraction from 0 to below 1"),
    ({"classes": 4}, "each class needs an example"),
])
def test_bad_windows(given, end):
    with pytest.raises(InputError, match=re.escape(end) + "$"):
        weak_labels(torch.rand(6, 1, 8, 8), torch.arange(6) % 3, **{"classes": 3, **given})
