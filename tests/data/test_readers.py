"""Data sets from one line."""

import numpy as np
import pytest
import torch

from genmeasure.data import manifest
from genmeasure.data.digits import digits
from genmeasure.data.readers import READ, load, undo_differences
from genmeasure.errors import InputError

X = np.arange(14, dtype=np.float32).reshape(7, 2)
Y = np.array([0, 1, 2, 0, 1, 2, 0])

SOURCE = """
import torch
from torch.utils.data import DataLoader, TensorDataset

from genmeasure.data.batches import Batches

X, Y = torch.arange(14.0).reshape(7, 2), torch.tensor([0, 1, 2, 0, 1, 2, 0])


def arrays(scale=1): return X * scale, Y.numpy()
def with_clean(): return X, Y, Y.flip(0)
def mapping(): return {"x": X.numpy(), "y": Y.tolist()}
def splits(): return {"train": {"x": X, "y": Y}, "test": {"x": X[:2], "y": Y[:2]}}
def two_batches(): return (X[:4], Y[:4]), (X[4:], Y[4:])
def generator(): yield from two_batches()
def loader(): return DataLoader(TensorDataset(X, Y), batch_size=4)
def shuffled(): return DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
def ready(): return Batches.from_arrays(X, Y, batch_size=4, name="ready")
def drawn(): return torch.rand(7, 2), Y
def number(): return 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "source.py").write_text(SOURCE)
    return str(tmp_path / "source.py")


@pytest.fixture
def npz(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        return str(tmp_path / "a.npz")
    return save


def refused(spec, end, **arguments):
    with pytest.raises(InputError) as error:
        load(spec, **arguments)
    assert str(error.value).endswith(end)
    return str(error.value)


def content(batches):
    return torch.cat([b.inputs[0] for b in batches]), torch.cat([b.targets for b in batches])


@pytest.mark.parametrize(("name", "classes"), [("digits-5-9", range(5, 10)), ("digits-0-4", range(5))])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_embedded(name, classes, split):
    batches = load(f"{name}#{split}", batch_size=50)
    expected = digits(tuple(classes))[split]
    x, y = content(batches)
    assert torch.equal(x, expected["x"])
    assert torch.equal(y, expected["y"])
    assert [len(b) for b in batches] == [min(50, len(y) - i) for i in range(0, len(y), 50)]


def test_embedded_errors():
    refused("digits-5-9", "has several splits; choose one of #test, #train, #validation")
    refused("digits-5-9#tset", "choose one of #test, #train, #validation")
    refused("digits-5-9?seed=1#test", "which takes none; leave it out")
    refused("digits-5-8", "did you mean 'digits-5-9'?")
    refused("digits-5-9#test", "give at least 1", batch_size=0)
    refused("qqqq", f"expected {READ}")


def test_npz(npz):
    batches = load(npz(x=X, y=Y.astype(np.uint8), other=np.ones(3)), batch_size=3)
    x, y = content(batches)
    assert torch.equal(x, torch.from_numpy(X))
    assert torch.equal(y, torch.from_numpy(Y))
    assert y.dtype is torch.int64
    assert next(iter(batches)).clean is None


def test_npz_with_true_labels(npz):
    batches = load(npz(x=X, y=Y, clean=Y[::-1]))
    assert next(iter(batches)).clean.tolist() == Y[::-1].tolist()


def test_npz_with_splits(npz):
    path = npz(x_train=X, y_train=Y, clean_train=Y[::-1], x_test=X[:2], y_test=Y[:2])
    assert load(f"{path}#train").size == 7
    assert next(iter(load(f"{path}#train"))).clean.tolist() == Y[::-1].tolist()
    assert load(f"{path}#test").size == 2
    assert next(iter(load(f"{path}#test"))).clean is None
    refused(path, "has several splits; choose one of #test, #train")
    refused(f"{path}#tets", "there is no split 'tets' in '" + f"{path}#tets'; choose one of #test, #train")


def test_npz_split_that_is_half_there(npz):
    path = npz(x_train=X)
    assert "holds the arrays x_train;" in refused(f"{path}#train", "expected x_train [examples, …] and y_train "
                                                                   "[examples], with these names")
    refused(npz(x=X, y=Y) + "#train", "which has no splits; leave #train out")


@pytest.mark.parametrize("arrays", [{"inputs": X, "labels": Y}, {"x": X}, {"y": Y}, {}])
def test_npz_missing_arrays(npz, arrays):
    message = refused(npz(**arrays), "expected x [examples, …] and y [examples], with these names")
    assert f"holds the arrays {', '.join(sorted(arrays)) or 'none'};" in message


@pytest.mark.parametrize(("shape", "expected"), [
    ((7, 5, 6), (7, 1, 5, 6)), ((7, 5, 6, 3), (7, 3, 5, 6)), ((7, 5, 6, 1), (7, 1, 5, 6)), ((7, 3, 5, 6), (7, 3, 5, 6)),
    ((7, 12), (7, 12))])
def test_uint8_is_pixels(npz, shape, expected):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    x, _ = content(load(npz(x=pixels, y=Y)))
    assert x.dtype is torch.float32
    assert x.shape == expected
    back = (x * 255).round().byte().numpy()
    moved = np.moveaxis(pixels, -1, 1) if len(shape) == 4 and shape[-1] != 6 else pixels
    assert np.array_equal(back.reshape(moved.shape), moved)


def test_other_numbers_are_left_alone(npz):
    x, _ = content(load(npz(x=np.arange(84, dtype=np.int64).reshape(7, 2, 2, 3), y=Y)))
    assert x.dtype is torch.int64
    assert x.shape == (7, 2, 2, 3)
    refused(npz(x=np.zeros((7, 5, 6, 7), np.uint8), y=Y), "or [n, c, h, w] with 1, 3 or 4 channels")


def test_normalisation(npz):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)
    path = npz(x=pixels, y=Y)
    x, _ = content(load(f"{path}?mean=0.5,0.4,0.3&std=0.2,0.1,0.4"))
    expected = (pixels / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.1, 0.4]
    assert np.allclose(x.numpy(), np.moveaxis(expected, -1, 1), rtol=0, atol=1e-6)
    one, _ = content(load(f"{path}?std=0.5&mean=0.25#"))
    assert np.allclose(one.numpy(), np.moveaxis((pixels / 255 - 0.25) / 0.5, -1, 1), rtol=0, atol=1e-6)
    refused(f"{path}?mean=0.5,0.4", "give one number, or one for each channel of floating-point inputs")
    refused(f"{path}?std=0", "every entry must be above 0")
    refused(f"{path}?maen=0.5", "did you mean 'mean'?")


@pytest.mark.parametrize("shape", [(3, 5, 6), (3, 3, 5, 6)])
def test_differences_are_undone(npz, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    delta = pixels.copy()
    if len(shape) == 4:
        delta[:, 0] -= delta[:, 1]
        delta[:, 2] -= delta[:, 1]
    delta[..., 1:, :] -= delta[..., :-1, :].copy()
    delta[..., :, 1:] -= delta[..., :, :-1].copy()
    assert np.array_equal(undo_differences(delta), pixels)
    x, _ = content(load(npz(delta=delta, y=Y[:3])))
    assert np.array_equal((x * 255).round().byte().numpy().reshape(shape), pixels)


@pytest.mark.parametrize(("arrays", "end"), [
    ({"x": X, "y": Y[:6]}, "7 inputs and 6 labels; there must be one label for each input"),
    ({"x": X, "y": Y, "clean": Y[:6]}, "7 inputs and 6 labels; there must be one label for each input"),
    ({"x": X[:0], "y": Y[:0]}, "is empty; at least one example is needed"),
    ({"x": X, "y": np.where(Y, np.nan, 1.0)}, "holds NaN or infinite numbers; repair or drop these examples"),
    ({"x": X, "y": Y - 1}, "goes down to -1; class indices start at 0"),
    ({"x": X, "y": np.zeros((7, 2, 2), int)}, "class index for each example, or one for each of its tokens or labels"),
    ({"x": X, "y": np.stack([Y, Y - 1], 1)}, "goes down to -1; class indices start at 0"),
    ({"x": X, "y": np.array(list("abcdefg"))}, "has the type <U1; it must hold numbers"),
    ({"x": np.where(X == 3, np.nan, X), "y": Y}, "is NaN or infinite in 1 of 7 examples; repair or drop these"),
    ({"x": np.where(X > 9, np.inf, X), "y": Y}, "is NaN or infinite in 2 of 7 examples; repair or drop these"),
    ({"x": np.float32(3), "y": Y}, "it must have examples along its first axis"),
    ({"x": np.array([{}] * 7), "y": Y}, "store plain numbers with numpy.savez"),
])
def test_npz_content(npz, arrays, end):
    refused(npz(**arrays), end)


def test_labels_of_tokens(npz):
    y = np.stack([Y, np.full(7, -100)], 1)
    assert load(npz(x=X, y=y)).labels.tolist() == y.tolist()


@pytest.mark.parametrize("keep", [0, 0.5, 0.9])
def test_truncated(npz, tmp_path, keep):
    path = npz(x=X, y=Y)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[:int(keep * len(whole))])
    refused(path, "it is damaged, incomplete or of another format: copy or write it again")


def test_damaged_inside(npz, tmp_path):
    path = npz(x=X, y=Y)
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    whole[whole.index(X.tobytes()[:40]) + 30] ^= 1
    (tmp_path / "a.npz").write_bytes(whole)
    refused(path, "it is damaged, incomplete or of another format: copy or write it again")


def test_npy_and_text_called_npz(tmp_path):
    for name, write in (("a.npz", lambda f: np.save(f, X)), ("b.npz", lambda f: f.write(b"hello"))):
        with (tmp_path / name).open("wb") as f:
            write(f)
        refused(str(tmp_path / name), "it is damaged, incomplete or of another format: copy or write it again")


def test_what_is_not_read(tmp_path):
    (tmp_path / "a.h5").touch()
    refused(str(tmp_path / "a.h5"), "which is not read; give " + READ)
    refused(str(tmp_path / "none.csv"), "there is no file " + str(tmp_path / "none.csv") + "; give " + READ)
    refused(str(tmp_path / "none.npz"), "give the path of an existing .npz")


@pytest.mark.parametrize("name", ["arrays", "mapping", "splits", "two_batches", "generator", "loader", "ready"])
def test_functions(file, name):
    batches = load(f"{file}:{name}" + ("#train" if name == "splits" else ""), batch_size=4)
    assert [len(b) for b in batches] == [4, 3]
    for _ in range(2):
        x, y = content(batches)
        assert torch.equal(x, torch.from_numpy(X))
        assert y.tolist() == Y.tolist()


def test_function_arguments_clean_labels_and_splits(file):
    assert torch.equal(content(load(f"{file}:arrays?scale=3"))[0], torch.from_numpy(X) * 3)
    assert next(iter(load(f"{file}:with_clean"))).clean.tolist() == Y[::-1].tolist()
    assert load(f"{file}:splits#test").size == 2
    assert torch.equal(load("genmeasure.data.digits:digits?seed=1#test").labels, digits(seed=1)["test"]["y"])


def test_function_errors(file):
    refused(f"{file}:arrays?skale=3", "did you mean 'scale'?")
    refused(f"{file}:arays", "did you mean 'arrays'?")
    refused(f"{file}:arrays#train", "whose function returns no mapping of splits; leave it out")
    refused(f"{file}:splits", "choose one of #test, #train")
    refused(f"{file}:number", "return (x, y), a mapping with x and y, an iterable of batches, or Batches")
    refused(f"{file}:shuffled", "measure on a loader with shuffle=False and without augmentation")


def test_functions_draw_alike_and_leave_the_global_generator(file):
    before = torch.get_rng_state()
    assert load(f"{file}:drawn").fingerprint == load(f"{file}:drawn").fingerprint
    load(f"{file}:loader")
    assert torch.equal(torch.get_rng_state(), before)


def test_manifest_names(monkeypatch, tmp_path):
    monkeypatch.setenv(manifest.FOLDER, str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mnist_test2k.npz").touch()
    refused("mnist_test2k", "it is damaged or another version: get it again")
    refused("aka_resnet20", "is a checkpoint, not a data set; give it where weights are asked for")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10_test2k", "cifar100_test1k", "mnist_test2k", "fashion_mnist_test2k"])
def test_images_of_the_pack(name):
    try:
        manifest.path(name)
    except InputError as error:
        pytest.skip(str(error))
    batches = load(f"{name}?mean=0.5&std=0.5", batch_size=500)
    row = manifest.entry(name)
    assert batches.size == int(row["rows"])
    assert batches.labels.bincount().tolist() == [batches.size // int(row["classes"])] * int(row["classes"])
    x, _ = content(batches)
    assert x.shape[1] == (3 if "cifar" in name else 1)
    assert (x.min(), x.max()) == (-1, 1)
    # neighbouring pixels of photographs and of drawings are alike; of wrongly decoded ones they are not
    assert (x[..., 1:] - x[..., :-1]).abs().mean() < 0.25
