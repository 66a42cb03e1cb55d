"""Reading and writing checkpoint files."""

import os
import pickle
import re
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

from genmeasure.checkpoints.match import fingerprint
from genmeasure.checkpoints.read import PICKLED, bare_names, read
from genmeasure.checkpoints.write import write
from genmeasure.data import manifest
from genmeasure.errors import InputError

DAMAGED = "it is damaged, incomplete or of another format: copy or download it again"
NOT_DONE = "which is not done; save model.state_dict() with torch.save, or a .safetensors file, and read that"


def ends(sentence):
    return re.escape(sentence) + "$"


def weights():
    torch_generator = torch.Generator().manual_seed(0)
    return {"fc.weight": torch.randn(3, 2, generator=torch_generator),
            "fc.bias": torch.randn(3, generator=torch_generator),
            "norm.num_batches_tracked": torch.tensor(7)}


def same(a, b):
    return fingerprint(a) == fingerprint(b)


class Attack:
    """Unpickling this touches a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("extension", [*PICKLED, ".PT"])
def test_pickled_formats(tmp_path, extension):
    torch.save(weights(), tmp_path / f"a{extension}")
    checkpoint = read(tmp_path / f"a{extension}")
    assert same(checkpoint.tensors, weights())
    assert (checkpoint.format, checkpoint.notes, checkpoint.metadata) == ("pickle", (), {})
    assert checkpoint.path == str(tmp_path / f"a{extension}")


def test_format_before_torch_1_6(tmp_path):
    torch.save(weights(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert same(read(tmp_path / "a.pt").tensors, weights())


def test_safetensors_round_trip_with_metadata(tmp_path):
    path = write(tmp_path / "deep" / "a.safetensors", weights(), {"accuracy": "0.9"})
    checkpoint = read(path)
    assert same(checkpoint.tensors, weights())
    assert (checkpoint.format, checkpoint.metadata) == ("safetensors", {"accuracy": "0.9"})
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_write_separates_shared_and_strided_tensors(tmp_path):
    table = torch.arange(6.0).reshape(2, 3)
    given = {"a": table, "b": table, "transposed": table.T, "row": table[1], "none": torch.empty(0)}
    assert same(read(write(tmp_path / "a.safetensors", given)).tensors, given)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write(tmp_path / "a.safetensors", weights())
    before = path.read_bytes()

    def broken(tensors, name, metadata):
        name.write_bytes(b"half")
        raise OSError("disk full")
    monkeypatch.setattr("genmeasure.checkpoints.write.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        write(path, {"x": torch.ones(1)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "tensors", "metadata", "end"), [
    ("a.pt", {"x": torch.ones(1)}, {}, "checkpoints are written as .safetensors, rename it"),
    ("a.safetensors", {}, {}, "give at least one, as in model.state_dict()"),
    ("a.safetensors", {"x": torch.ones(1)}, {"epoch": 3}, "names and values must be text, use str()"),
])
def test_write_refuses(tmp_path, name, tensors, metadata, end):
    with pytest.raises(InputError, match=ends(end)):
        write(tmp_path / name, tensors, metadata)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keys", [["state_dict"], ["model_state_dict"], ["model"], ["net"], ["state_dict", "model"]])
def test_wrapper_keys_are_opened(tmp_path, keys):
    content = OrderedDict(weights())
    for key in reversed(keys):
        content = {"epoch": 3, "accuracy": torch.tensor(0.5), key: content}
    torch.save(content, tmp_path / "a.pt")
    checkpoint = read(tmp_path / "a.pt")
    assert same(checkpoint.tensors, weights())
    assert checkpoint.notes == tuple(f"opened the key {key!r}" for key in keys)


def test_list_of_one_is_opened(tmp_path):
    torch.save({"state_dict": [weights()]}, tmp_path / "a.pt")
    assert same(read(tmp_path / "a.pt").tensors, weights())
    torch.save({"state_dict": [weights(), weights()]}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="holds a list, not tensors by name"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_stacked_prefixes_are_stripped_and_noted(tmp_path, prefix):
    write(tmp_path / "a.safetensors", {prefix + k: v for k, v in weights().items()})
    checkpoint = read(tmp_path / "a.safetensors")
    assert same(checkpoint.tensors, weights())
    assert checkpoint.notes == (f"stripped wrapper prefixes from 3 of 3 names ({prefix}fc.bias is now fc.bias)",)


def test_bare_names():
    assert bare_names(["module.a", "b"]) == {"module.a": "module.a", "b": "b"}  # a module called module
    assert bare_names(["encoder._orig_mod.a", "b"]) == {"encoder._orig_mod.a": "encoder.a", "b": "b"}
    assert bare_names(["_orig_mod.a", "a"]) == {"_orig_mod.a": "_orig_mod.a", "a": "a"}  # they would collide
    assert bare_names([]) == {}


def test_averaged_model(tmp_path):
    torch.save(torch.optim.swa_utils.AveragedModel(nn.Linear(2, 3)).state_dict(), tmp_path / "a.pt")
    assert sorted(read(tmp_path / "a.pt").tensors) == ["bias", "weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_floats_are_widened(tmp_path, dtype):
    narrow = weights() | {"fc.weight": weights()["fc.weight"].to(dtype), "wide": torch.ones(2, dtype=torch.float64)}
    checkpoint = read(write(tmp_path / "a.safetensors", narrow))
    assert checkpoint.tensors["fc.weight"].dtype is torch.float32
    assert torch.equal(checkpoint.tensors["fc.weight"], narrow["fc.weight"].float())
    assert checkpoint.tensors["wide"].dtype is torch.float64
    assert checkpoint.tensors["norm.num_batches_tracked"].dtype is torch.int64
    assert checkpoint.notes == (f"widened 1 tensors from {str(dtype)[6:]} to float32",)


def test_parameters_and_other_values_beside_tensors(tmp_path):
    torch.save({"w": nn.Parameter(torch.ones(2)), "_extra_state": None, "epoch": 3}, tmp_path / "a.pt")
    checkpoint = read(tmp_path / "a.pt")
    assert type(checkpoint.tensors["w"]) is torch.Tensor
    assert not checkpoint.tensors["w"].requires_grad
    assert checkpoint.notes == ("left out what is no tensor: _extra_state, epoch",)


def test_missing_folder_and_unknown_extension(tmp_path):
    with pytest.raises(InputError, match=ends("give the path of an existing file")):
        read(tmp_path / "a.pt")
    with pytest.raises(InputError, match=ends("give the folder or file that holds them")):
        read(tmp_path)
    (tmp_path / "a.h5").touch()
    with pytest.raises(InputError, match=ends("end in .safetensors, .npz, .pt, .pth, .th, .bin, .ckpt")):
        read(tmp_path / "a.h5")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("keep", [0, 0.5, -3])
def test_truncated(tmp_path, name, keep):
    path = tmp_path / name
    if name == "a.pt":
        torch.save(weights(), path)
    else:
        write(path, weights())
    content = path.read_bytes()
    path.write_bytes(content[:int(keep * len(content)) if keep >= 0 else keep])
    with pytest.raises(InputError, match=ends(DAMAGED)):
        read(path)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"<html>not found</html>", b"hello world, this is no checkpoint" * 9])
def test_corrupt(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=ends(DAMAGED)):
        read(tmp_path / name)


def test_git_lfs_pointer(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(InputError, match=ends("fetch it with: git lfs pull")):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(tmp_path, zipped):
    torch.save({"w": torch.ones(2), "x": Attack(tmp_path / "ran")}, tmp_path / "a.pt",
               _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"\(\w+.mkdir\).*" + ends(NOT_DONE)):
        read(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_plain_pickle_is_not_run(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"w": Attack(tmp_path / "ran")}))
    with pytest.raises(InputError, match=ends(DAMAGED)):
        read(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_whole_module_and_torchscript(tmp_path):
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(InputError, match="is a pickled module .*" + ends(NOT_DONE)):
        read(tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "b.pt")
    with pytest.raises(InputError, match=r"is a TorchScript archive, not weights; save .* and read that$"):
        read(tmp_path / "b.pt")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"encoder": {"w": torch.ones(2)}}, [1, 2], torch.ones(2), 3])
def test_no_tensors(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"tensors.*by name.*or a .safetensors file, and read that$"):
        read(tmp_path / "a.pt")


def test_safetensors_without_tensors(tmp_path):
    (tmp_path / "a.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match=r"holds no tensors; save .* and read that$"):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(tmp_path, value):
    bad = weights() | {"head": torch.full((4,), value)}
    bad["fc.bias"][1:] = value
    torch.save(bad, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"2 of 3 in fc.bias, the first of 2 such tensors; "
                                         "use a checkpoint from before it diverged$"):
        read(tmp_path / "a.pt")


def pack_file(name):
    try:
        return manifest.path(name)
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_every_checkpoint_of_the_pack_reads():
    rows = manifest.entries().query("kind == 'checkpoint' and files != ''")
    assert len(rows) == 31
    for row in rows.to_dict("records"):
        tensors = read(pack_file(row["name"])).tensors
        parameters = sum(v.numel() for k, v in tensors.items() if not re.search("running_|num_batches", k))
        assert parameters == int(row["rows"]), row["name"]


@pytest.mark.slow
def test_wrapper_and_prefix_of_a_real_checkpoint():
    checkpoint = read(pack_file("aka_resnet20"))
    assert checkpoint.notes[0] == "opened the key 'state_dict'"
    assert checkpoint.notes[1].endswith("(module.conv1.weight is now conv1.weight)")
    assert checkpoint.tensors["linear.weight"].shape == (10, 64)
