"""Models from one line."""

import copy
import pickle
import random
import re
import subprocess
import sys
import types

import pytest
import torch
from torch import nn

from genmeasure.checkpoints.build import ModuleFiles, build, split
from genmeasure.checkpoints.match import fingerprint
from genmeasure.errors import InputError

SOURCE = """
from dataclasses import dataclass
import random

import torch
from torch import nn

from neighbour_of_the_model import WIDTH


def net(width=WIDTH, *, activation="relu", deep=False):
    model = nn.Linear(width, 2)
    model.given = width, activation, deep, random.random()
    return model


def anything(**settings):
    return nn.Identity()


def needs(width):
    return nn.Linear(width, 2)


def number():
    return 3


def fails():
    raise ZeroDivisionError("by the user's code")
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour_of_the_model.py").write_text("WIDTH = 4\n")
    (tmp_path / "model.py").write_text(SOURCE)
    return str(tmp_path / "model.py")


def ends(sentence):
    return re.escape(sentence) + "$"


def refused(spec, end):
    with pytest.raises(InputError, match=ends(end)):
        build(spec)


def test_function_in_a_file_with_arguments(file):
    assert build(f"{file}:net").given[:3] == (4, "relu", False)
    assert build(f"{file}:net?width=7&activation=tanh&deep=True").given[:3] == (7, "tanh", True)
    assert type(build(f"{file}:anything?x=1")) is nn.Identity
    assert type(build(f"{file}:net")).__module__ == "torch.nn.modules.linear"
    assert not any(p.endswith(file.removesuffix("/model.py")) for p in sys.path)


def test_a_changed_file_is_read_again(file):
    assert build(f"{file}:net?width=3").in_features == 3
    with open(file, "a") as f:
        f.write("\ndef net(): return nn.Linear(9, 9)\n")
    assert build(f"{file}:net").in_features == 9


def test_function_in_a_module():
    model = build("torch.nn:Linear?in_features=2&out_features=3")
    assert model.weight.shape == (3, 2)


def test_values_are_literals_or_text():
    assert split("a:b?x=1&y=(1,2)&z=None&w=resnet&v=1,2&u=a=b&t=") == ("a:b", {
        "x": 1, "y": (1, 2), "z": None, "w": "resnet", "v": (1, 2), "u": "a=b", "t": ""})
    assert split("a:b") == ("a:b", {})


def test_deterministic_and_global_generators_untouched(file):
    before = torch.get_rng_state(), random.getstate()
    a, b, c = build(f"{file}:net"), build(f"{file}:net"), build(f"{file}:net", seed=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert fingerprint(a.state_dict()) == fingerprint(b.state_dict()) != fingerprint(c.state_dict())
    assert a.given == b.given != c.given
    with pytest.raises(ZeroDivisionError):  # a fault of the user's code keeps its traceback
        build(f"{file}:fails")
    assert torch.equal(torch.get_rng_state(), before[0])


@pytest.mark.parametrize("spec", ["resnet18", "", "torchvision:", "?a=1"])
def test_no_specification(spec):
    refused(spec, "path/to/file.py:function, with ?key=value&key=value for arguments")


def test_what_does_not_exist(file, tmp_path):
    refused(f"{tmp_path}/none.py:net", "give the path of an existing file, as in path/to/file.py:function")
    refused(f"{file}:nett", "did you mean 'net'?")
    refused("torch.nn:Linaer", "did you mean 'Linear'?")
    refused("no_such_package.models:net", "install it, or name a file as in path/to/file.py:function")
    refused("torch.no_such_module:net", "install it, or name a file as in path/to/file.py:function")


def test_arguments(file):
    refused(f"{file}:net?widht=3", "did you mean 'width'?")
    refused(f"{file}:number?a=3", "which takes none; leave it out")
    refused(f"{file}:needs", "model.py:needs?width=VALUE")
    refused(f"{file}:net?width", "write arguments as ?key=value&key=value")
    refused(f"{file}:net?wi dth=3", "write arguments as ?key=value&key=value")


def test_result_that_is_no_module(file):
    with pytest.raises(InputError, match="returned a int; " + ends("a model must be a torch.nn.Module, return one")):
        build(f"{file}:number")


@pytest.mark.parametrize("source", ["import no_such_package", "def broken(:", "1 / 0"])
def test_file_that_does_not_import(tmp_path, source):
    (tmp_path / "model.py").write_text(source)
    modules, places = set(sys.modules), list(sys.path)
    refused(f"{tmp_path}/model.py:net", "make it importable on its own first")
    assert sys.path == places
    assert set(sys.modules) == modules


@pytest.mark.parametrize(("spec", "extra"), [("torchvision:resnet18", "vision"), ("timm:resnet18", "vision")])
def test_missing_library(monkeypatch, spec, extra):
    monkeypatch.setitem(sys.modules, spec.partition(":")[0], None)
    refused(spec, f'install it with: pip install "genmeasure[{extra}]"')


def test_missing_transformers(monkeypatch, tmp_path):
    refused(f"hf:{tmp_path}", "give a folder saved by save_pretrained, as in hf:path/to/folder")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(f"hf:{tmp_path}", 'install it with: pip install "genmeasure[text]"')


def test_library_that_is_not_there_or_breaks_on_import(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(InputError, match=r"timm fails to import \(operator torchvision::nms does not exist\), "):
        build("timm:resnet18")


def resnet(width=3):
    return nn.Linear(width, width)


def test_torchvision(monkeypatch):
    models = types.SimpleNamespace(list_models=lambda: ["resnet18", "vit"],
                                   get_model=lambda name, **arguments: resnet(**arguments))
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(models=models))
    assert build("torchvision:resnet18?width=5").in_features == 5
    refused("torchvision:resnet19", "did you mean 'resnet18'?")
    refused("torchvision:resnet18?wide=5", "use the arguments of its constructor")


def test_timm(monkeypatch):
    timm = types.SimpleNamespace(is_model=lambda name: name.partition(".")[0] == "vit", list_models=lambda: ["vit"],
                                 create_model=lambda name, **arguments: resnet(**arguments))
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert build("timm:vit.tag?width=5").in_features == 5
    refused("timm:vitt", "did you mean 'vit'?")


class FakeConfig:
    """The three things that `build` asks of a configuration: architectures, its settings, and unused names."""

    def __init__(self, architectures):
        self.architectures = architectures
        self.num_labels = 2

    def to_dict(self):
        return vars(self)

    @classmethod
    def from_pretrained(cls, folder, *, local_files_only, return_unused_kwargs, **settings):
        assert local_files_only
        assert return_unused_kwargs
        config = cls(None if folder.endswith("bare") else ["TinyForTest"])
        unused = {k: v for k, v in settings.items() if k != "num_labels"}
        config.num_labels = settings.get("num_labels", 2)
        return config, unused


class TinyForTest(nn.Linear):
    def __init__(self, config):
        super().__init__(3, config.num_labels)


def test_transformers(monkeypatch, tmp_path):
    library = types.ModuleType("transformers")
    library.AutoConfig, library.TinyForTest = FakeConfig, TinyForTest
    monkeypatch.setitem(sys.modules, "transformers", library)
    for name in ("full", "bare"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert build(f"hf:{tmp_path}/full?num_labels=5").out_features == 5
    assert build(f"hf:{tmp_path}/bare?architecture=TinyForTest").out_features == 2
    refused(f"hf:{tmp_path}/bare", "as in ?architecture=BertForSequenceClassification")
    refused(f"hf:{tmp_path}/full?architecture=TinyForTset", "did you mean 'TinyForTest'?")
    refused(f"hf:{tmp_path}/full?num_lables=5", "did you mean 'num_labels'?")


@pytest.fixture
def neighbours(tmp_path, monkeypatch):
    """A builder whose class comes from a file beside it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_builder.py").write_text("from torch import nn\nclass Net(nn.Linear):\n    pass\n")
    path = tmp_path / "builder.py"
    path.write_text("from beside_the_builder import Net\ndef net():\n    return Net(2, 3)\n")
    yield path
    sys.modules.pop("beside_the_builder", None)


def in_another_process(path, data):
    code = "import pickle, sys; print(type(pickle.load(open(sys.argv[1], 'rb'))[1]).__name__)"
    path.write_bytes(data)
    return subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)


def test_files_travel_with_a_model_that_comes_from_them(neighbours, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("from torch import nn\nclass Own(nn.Linear):\n    pass\ndef net():\n    return Own(2, 3)\n")
    for path, name in ((own, "Own"), (neighbours, "Net")):
        model = build(f"{path}:net")
        ran = in_another_process(tmp_path / "model.pickle", pickle.dumps((ModuleFiles.of(model), model)))
        assert ran.stdout.strip() == name, ran.stderr
    assert ModuleFiles.of(nn.Linear(2, 2)).paths == ()


def test_a_file_that_changed_is_not_sent(neighbours):
    files = ModuleFiles.of(build(f"{neighbours}:net"))
    assert copy.deepcopy(files) is files
    neighbours.write_text(neighbours.read_text() + "#")
    with pytest.raises(InputError, match="start again with the file as it is$"):
        pickle.dumps(files)
    again = ModuleFiles.of(build(f"{neighbours}:net"))
    assert pickle.loads(pickle.dumps(again)) == again
