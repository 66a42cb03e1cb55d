"""Build a model from a one-line specification.

`torchvision:resnet18`, `timm:NAME`, `hf:FOLDER` and what else is a file in `genmeasure/families`, or a plain builder
(`pkg.module:function`, `path/to/file.py:function`), each with optional arguments: `?key=value&key=value`.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from genmeasure.errors import InputError, unknown
from genmeasure.registry import model_family

FILES: dict[str, Path] = {}
"""Of the modules that were run from a file, by name."""
FORMS = "torchvision:NAME, timm:NAME, hf:FOLDER, pkg.module:function, path/to/file.py:function"


def build(spec: str, *, seed: int = 0) -> nn.Module:
    """The model that `spec` describes, with weights drawn from `seed`; the global random state stays as it was.

    Raises `InputError` for a library, file, function or argument that does not exist, and for a result that is not
    a module.
    """
    target, arguments = split(spec)
    family, colon, name = target.partition(":")
    if not colon or not name:
        raise InputError(f"the model {spec!r} came; expected one of {FORMS}, with ?key=value&key=value for arguments")
    with seeded(seed):
        model = model_family[family].function(name, arguments) if family in model_family else call(target, arguments)
    if not isinstance(model, nn.Module):
        raise InputError(f"{target} returned a {type(model).__name__}; a model must be a torch.nn.Module, return one")
    return model


def split(spec: str) -> tuple[str, dict[str, Any]]:
    """`target?key=value&key=value` -> target and arguments; values are Python literals, and else text."""
    target, _, query = spec.partition("?")
    arguments = {}
    for pair in filter(None, query.split("&")):
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"the argument {pair!r} came in {spec!r}; write arguments as ?key=value&key=value")
        arguments[key] = _value(text)
    return target, arguments


def call(target: str, arguments: Mapping[str, Any]) -> Any:
    """The result of `pkg.module:function` or `path/to/file.py:function`; names of arguments are checked first."""
    place, _, name = target.rpartition(":")
    module = _module_from_file(Path(place)) if place.endswith(".py") else _module(place, target)
    function = getattr(module, name, None)
    if not callable(function):
        own = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        raise unknown(f"function in {place}", name, own)
    check_arguments(target, function, arguments)
    return function(**arguments)


def check_arguments(target: str, function: Callable, arguments: Mapping[str, Any]) -> None:
    """Raise `InputError` for an argument that `function` does not take, or that it lacks."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in functions have no signature
        return
    takes = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in arguments:
            if not takes:
                raise InputError(f"the argument {name!r} came for {target}, which takes none; leave it out")
            if name not in takes:
                raise unknown(f"argument of {target}", name, takes)
    lacks = [k for k, p in takes.items() if p.default is p.empty and k not in arguments]
    if lacks:
        raise InputError(f"{target} needs the argument {lacks[0]!r}; write {target}?{lacks[0]}=VALUE")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the global generators of torch and Python start from `seed`; afterwards they are as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices):
            random.seed(seed)
            # torch.manual_seed would also leave a seed behind for devices that are not in use yet
            torch.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(seed)
            yield
    finally:
        random.setstate(state)


def library(name: str, extra: str) -> ModuleType:
    """An optional library; one that is absent or does not import raises `InputError` with the line that installs it."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        raise unusable(name, extra, error) from error


def unusable(name: str, extra: str, error: Exception) -> InputError:
    missing = isinstance(error, ModuleNotFoundError) and error.name == name
    reason = "is not installed" if missing else \
        f"fails to import ({str(error).splitlines()[0]}), perhaps because it was built for another torch"
    return InputError(f'{name} {reason}; install it with: pip install "genmeasure[{extra}]"')


def created(spec: str, create: Callable, arguments: Mapping[str, Any]) -> nn.Module:
    """`create(**arguments)` of a library that passes arguments on, so that signatures do not list them."""
    try:
        return create(**arguments)
    except TypeError as error:
        raise InputError(f"{spec} does not take {dict(arguments)} ({error}); "
                         "use the arguments of its constructor") from error


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _module(name: str, target: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(f"there is no module {name!r} for {target!r}; install it, or name a file as in "
                             "path/to/file.py:function") from error
        raise _import_failed(name, error) from error
    except Exception as error:
        raise _import_failed(name, error) from error


def _module_from_file(path: Path) -> ModuleType:
    """Run a file as a module under a name that depends on its place and content."""
    if not path.is_file():
        raise InputError(f"there is no file {path}; give the path of an existing file, as in path/to/file.py:function")
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    description = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(description)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up
    sys.path.insert(0, str(path.resolve().parent))  # so that the file can import its neighbours
    try:
        description.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _import_failed(str(path), error) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    FILES[name] = path.resolve()
    return module


def _module_name(path: Path) -> str:
    content = path.read_bytes()
    return f"_{path.stem}_{hashlib.sha256(str(path.resolve()).encode() + content).hexdigest()[:12]}"


@dataclass(frozen=True)
class ModuleFiles:
    """Files that were run as modules, and that classes of a model come from, or from their neighbours.

    Where it is unpickled they are run first, so that a model which is pickled behind it finds its classes. Raises
    `InputError` when pickled after a file has changed.
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module) -> ModuleFiles:
        """Of all modules in `model`."""
        kinds = {type(part).__module__ for part in model.modules()}
        folders = {Path(file).parent for kind in kinds - FILES.keys()
                   if (file := getattr(sys.modules.get(kind), "__file__", None))}
        latest = {path: name for name, path in FILES.items()}  # a file that changed was run under each of its names
        some = {name: path for name, path in FILES.items()
                if name in kinds or (path.parent in folders and latest[path] == name)}
        return cls(tuple(some), tuple(map(str, some.values())))

    def __reduce__(self) -> tuple:
        for name, path in zip(self.names, self.paths, strict=True):
            if not Path(path).is_file() or _module_name(Path(path)) != name:
                raise InputError(f"{path}, which a model comes from, has changed since it was read, so that other "
                                 "processes cannot build the same model; start again with the file as it is")
        return _run, (self.names, self.paths)

    def __deepcopy__(self, _: dict) -> ModuleFiles:
        return self


def _run(names: tuple[str, ...], paths: tuple[str, ...]) -> ModuleFiles:
    for path in paths:
        _module_from_file(Path(path))
    return ModuleFiles(names, paths)


def _import_failed(place: str, error: Exception) -> InputError:
    return InputError(f"importing {place} raised {type(error).__name__}: {error}; make it importable on its own first")
