"""Shards, folders, torch.distributed.checkpoint, Google's vision transformers, adapters, and names of places."""

import json
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from genmeasure.checkpoints.formats.adapter import Factors
from genmeasure.checkpoints.locate import locate
from genmeasure.checkpoints.match import fingerprint
from genmeasure.checkpoints.read import open_stored, read, read_adapter
from genmeasure.checkpoints.write import write
from genmeasure.errors import InputError

WHOLE = "copy or download all of them"


def ends(sentence):
    return re.escape(sentence) + "$"


def refused(function, path, end):
    with pytest.raises(InputError, match=ends(end)) as error:
        function(path)
    return str(error.value)


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {"a.weight": torch.randn(5, 2, generator=generator).to(dtype), "a.bias": torch.randn(5, generator=generator),
            "b.weight": torch.randn(3, 5, generator=generator), "norm.num_batches_tracked": torch.tensor(7)}


def same(a, b):
    return fingerprint(a) == fingerprint(b)


@pytest.fixture(params=["safetensors", "bin"])
def sharded(request, tmp_path):
    """A folder with an index and two shards, one of them in bfloat16."""
    tensors, kind = weights(torch.bfloat16), request.param
    stem = "model" if kind == "safetensors" else "pytorch_model"
    table = {}
    for i, names in enumerate((["a.weight", "a.bias"], ["b.weight", "norm.num_batches_tracked"])):
        file = f"{stem}-{i + 1:05d}-of-00002.{kind}"
        some = {k: tensors[k] for k in names}
        if kind == "safetensors":
            write(tmp_path / file, some)
        else:
            torch.save(some, tmp_path / file)
        table |= dict.fromkeys(names, file)
    (tmp_path / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return tmp_path


def test_shards_from_their_folder_and_from_their_index(sharded):
    expected = {k: v.float() if v.is_floating_point() else v for k, v in weights(torch.bfloat16).items()}
    for path in (sharded, next(sharded.glob("*.index.json"))):
        checkpoint = read(path)
        assert same(checkpoint.tensors, expected)
        assert checkpoint.notes == ("read 2 shards", "widened 1 tensors from bfloat16 to float32")


def test_entries_are_read_by_rows_and_widened(sharded):
    entry = open_stored(sharded).entries["a.weight"]
    assert (entry.shape, entry.dtype) == ((5, 2), torch.float32)
    assert torch.equal(entry.rows(1, 3), weights(torch.bfloat16)["a.weight"][1:3].float())
    assert torch.equal(open_stored(sharded).entries["norm.num_batches_tracked"].load(), torch.tensor(7))


def test_shards_that_are_missing_truncated_or_of_another_index(sharded):
    shard = sorted(p for p in sharded.iterdir() if "00002-of" in p.name)[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:len(content) // 2])
    assert str(shard) in refused(read, sharded, "copy or download it again")
    shard.unlink()
    assert "1 of the 2 shards that" in refused(read, sharded, f"({shard.name}); {WHOLE}")
    other = next(p for p in sharded.iterdir() if "00001-of" in p.name)
    shutil.copy(other, shard)
    refused(read, sharded, f"index and shards are of different checkpoints: {WHOLE}")


@pytest.mark.parametrize("content", ["", "[]", '{"weights": {}}', '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    refused(read, tmp_path, "it is damaged or of another format: copy or download it again")


def test_an_index_points_to_no_other_folder(tmp_path):
    write(tmp_path / "a.safetensors", weights())
    (tmp_path / "deep").mkdir()
    index = tmp_path / "deep" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "../a.safetensors"}}))
    refused(read, index, "shards lie beside their index")


def test_folders(tmp_path):
    torch.save(weights(), tmp_path / "pytorch_model.bin")
    assert read(tmp_path).format == "pickle"
    write(tmp_path / "model.safetensors", weights())
    assert read(tmp_path).format == "safetensors"
    (tmp_path / "several").mkdir()
    for name in ("a.pt", "b.pt"):
        torch.save(weights(), tmp_path / "several" / name)
    refused(read, tmp_path / "several", "holds 2 checkpoints (a.pt, b.pt); name the one that is meant")
    (tmp_path / "several" / "b.pt").unlink()
    assert same(read(tmp_path / "several").tensors, weights())


# torch.distributed.checkpoint

@pytest.fixture
def distributed(tmp_path):
    def save(content):
        dcp.save(content, checkpoint_id=tmp_path / "dcp", no_dist=True)
        return tmp_path / "dcp"
    return save


@pytest.mark.parametrize("key", ["", "model", "state_dict"])
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated", "ignore:torch.distributed is disabled")
def test_distributed(distributed, key):
    tensors = weights(torch.bfloat16)
    content = {key: tensors, "optimizer": {"step": torch.tensor(3.0)}, "epoch": 4} if key else tensors
    folder = distributed(content)
    checkpoint = read(folder)
    assert same(checkpoint.tensors, {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    assert checkpoint.format == "distributed"
    assert checkpoint.notes[:-1] == ((f"opened the key {key!r}",) if key else ())
    assert torch.equal(open_stored(folder).entries["b.weight"].rows(1, 3), tensors["b.weight"][1:3])


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated", "ignore:torch.distributed is disabled")
def test_distributed_damaged_missing_and_with_code(distributed, tmp_path):
    folder = distributed(weights())
    file = next(folder.glob("*.distcp"))
    content, listed = file.read_bytes(), (folder / ".metadata").read_bytes()
    file.write_bytes(content[:100])
    refused(read, folder, "it is damaged or incomplete: copy the whole folder again")
    file.unlink()
    refused(read, folder, "copy the whole folder again")
    file.write_bytes(content)
    (folder / ".metadata").write_bytes(listed[:50])
    refused(read, folder, "was not written by torch.distributed.checkpoint: copy it again")

    class Attack:
        def __reduce__(self):
            return exec, (f"import os; os.mkdir({str(tmp_path / 'ran')!r})",)
    (folder / ".metadata").write_bytes(pickle.dumps(Attack()))
    assert "builtins.exec is not part of a list of tensors" in refused(
        read, folder, "was not written by torch.distributed.checkpoint: copy it again")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Attack()))
    assert (tmp_path / "ran").exists()


# Google's vision transformers

@pytest.fixture
def google(tmp_path):
    """A file as Google lays it out, at random: width 12, 3 heads, 2 blocks, patches of 8, 5 positions, 7 classes."""
    generator = np.random.default_rng(0)

    def some(*shape):
        return generator.standard_normal(shape).astype(np.float32)
    arrays = {"cls": some(1, 1, 12), "embedding/kernel": some(8, 8, 3, 12), "embedding/bias": some(12),
              "Transformer/posembed_input/pos_embedding": some(1, 5, 12), "Transformer/encoder_norm/scale": some(12),
              "Transformer/encoder_norm/bias": some(12), "head/kernel": some(12, 7), "head/bias": some(7)}
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        for part in ("query", "key", "value"):
            arrays[f"{block}/MultiHeadDotProductAttention_1/{part}/kernel"] = some(12, 3, 4)
            arrays[f"{block}/MultiHeadDotProductAttention_1/{part}/bias"] = some(3, 4)
        arrays |= {f"{block}/MultiHeadDotProductAttention_1/out/kernel": some(3, 4, 12),
                   f"{block}/MultiHeadDotProductAttention_1/out/bias": some(12),
                   f"{block}/MlpBlock_3/Dense_0/kernel": some(12, 24), f"{block}/MlpBlock_3/Dense_0/bias": some(24),
                   f"{block}/MlpBlock_3/Dense_1/kernel": some(24, 12), f"{block}/MlpBlock_3/Dense_1/bias": some(12)}
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {f"{block}/{norm}/scale": some(12), f"{block}/{norm}/bias": some(12)}
    np.savez(tmp_path / "vit.npz", **arrays)
    return tmp_path / "vit.npz"


def test_google_vit_is_what_timm_makes_of_it(google, torchvision):
    from timm.models import VisionTransformer
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=3, mlp_ratio=2, num_classes=7)
    model.load_pretrained(str(google))
    checkpoint = read(google)
    assert same(checkpoint.tensors, model.state_dict())
    assert checkpoint.format == "google-vit"


def test_npz_of_something_else(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    refused(read, tmp_path / "a.npz", "give one of their .npz files, or a checkpoint of another format")
    np.savez(tmp_path / "a.npz", cls=np.array(["a"]))
    refused(read, tmp_path / "a.npz", "one of Google's vision transformers, or a checkpoint of another format")
    np.savez(tmp_path / "a.npz", cls=np.array([{}]))
    refused(read, tmp_path / "a.npz", "copy or download it again")


# adapters

SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": "owner/base"}


def adapter(folder, tensors, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    write(folder / "adapter_model.safetensors", {f"base_model.model.{k}": v for k, v in tensors.items()})
    return folder


def factors(a=(2, 4), b=(3, 2)):
    generator = torch.Generator().manual_seed(1)
    return {"fc.lora_A.weight": torch.randn(a, generator=generator), "fc.lora_B.weight": torch.randn(b,
                                                                                                     generator=generator)}


@pytest.mark.parametrize(("settings", "scale"), [({}, 3), ({"use_rslora": True}, 6 / 2**0.5),
                                                 ({"alpha_pattern": {"fc": 8}}, 4),
                                                 ({"alpha_pattern": {"c": 8}}, 3)])
def test_scale_and_merging(tmp_path, settings, scale):
    made = factors()
    found = read_adapter(adapter(tmp_path / "a", made | {"head.weight": torch.ones(2, 2)}, **settings))
    base = {"fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3)}
    expected = 1 + scale * made["fc.lora_B.weight"] @ made["fc.lora_A.weight"]
    merged = found.merged(base)
    torch.testing.assert_close(merged["fc.weight"], expected)
    assert sorted(merged) == ["fc.bias", "fc.weight", "head.weight"]
    assert torch.equal(base["fc.weight"], torch.ones(3, 4))


@pytest.mark.parametrize(("a", "b", "transposed", "shape"), [
    ((2, 4), (3, 2), False, (3, 4)), ((2, 4), (3, 2), True, (4, 3)), ((2, 4, 3, 3), (5, 2, 1, 1), False, (5, 4, 3, 3)),
    ((2, 4), (3, 1), False, None)])
def test_shapes_of_products(a, b, transposed, shape):
    generator = torch.Generator().manual_seed(0)
    some = Factors(torch.randn(a, generator=generator), torch.randn(b, generator=generator), 1.0, transposed)
    assert some.shape == shape
    if shape is not None:
        assert some.product().shape == shape
    if len(a) == 4:  # as two convolutions one after the other
        x = torch.randn(1, 4, 6, 6, generator=generator)
        torch.testing.assert_close(nn.functional.conv2d(x, some.product()),
                                   nn.functional.conv2d(nn.functional.conv2d(x, some.a), some.b), atol=1e-4, rtol=1e-4)


def test_adapters_that_cannot_be_merged(tmp_path):
    folder = adapter(tmp_path / "a", factors())
    with pytest.raises(InputError, match=ends("(it changes fc.weight, which the start lacks); give the base that it "
                                              "was trained on as the start: owner/base")):
        read_adapter(folder).merged({"x": torch.ones(3, 4)})
    instead = "save the merged model (merge_and_unload) and read that"
    refused(read_adapter, adapter(tmp_path / "b", factors(), peft_type="IA3"), instead)
    refused(read_adapter, adapter(tmp_path / "b", factors(), use_dora=True), instead)
    one = {"fc.lora_A.weight": torch.ones(2, 4)}
    refused(read_adapter, adapter(tmp_path / "b", one), "without the other; copy or download it again")
    refused(read, folder, "give it as the end, and its base as the start")
    (folder / "adapter_model.safetensors").unlink()
    refused(read_adapter, folder, "copy or download the whole folder")
    (folder / "adapter_config.json").write_text("[]")
    refused(read_adapter, folder, "copy or download it again")


# names with weights on disk

def test_places(tmp_path, monkeypatch, torchvision):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert locate(str(tmp_path)) == tmp_path
    refused(locate, "torchvision:resnet18", "download https://download.pytorch.org/models/resnet18-f37072fd.pth to "
                                            "there, or give a checkpoint file")
    (tmp_path / "checkpoints").mkdir()
    for family, name, file in (("torchvision", "resnet18", "resnet18-f37072fd.pth"),
                               ("torchvision", "resnet50@IMAGENET1K_V1", "resnet50-0676ba61.pth"),
                               ("timm", "resnet18", "resnet18_a1_0-d63eafa0.pth")):
        (tmp_path / "checkpoints" / file).touch()
        assert locate(f"{family}:{name}") == tmp_path / "checkpoints" / file
    refused(locate, "torchvision:resnet19", "did you mean 'resnet18'?")
    refused(locate, "torchvision:resnet18@IMAGENET1K_V2", "did you mean 'IMAGENET1K_V1'?")
    refused(locate, "timm:resnet19", "did you mean 'resnet18'?")


def test_hub(tmp_path, monkeypatch):
    import huggingface_hub
    asked = []

    def snapshot(repository, *, revision, allow_patterns):
        asked.append((repository, revision))
        if "*.safetensors" not in allow_patterns:
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert locate("hub:owner/name@v2") == tmp_path  # without safetensors, the pickled weights are fetched too
    assert asked == [("owner/name", "v2")] * 2
    assert locate("gpt2") == tmp_path
    assert asked[-1] == ("openai-community/gpt2", None)


def test_hub_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refused(locate, "hub:owner/no-such-name", "check the name and the network, or give a folder on disk")
