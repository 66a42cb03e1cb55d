"""Families of members (measures, bounds, algorithms, model families, kinds of label noise) and how they are found.

A member is a function with a decorator in a file of its own; every file in the family's package is imported on first
use, so adding a member is adding a file.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genmeasure.errors import InputError, unknown

KINDS = ("measure", "certificate", "reproduction")
"""certificate: an upper bound that holds with probability 1 - delta. measure: a number that may rank models and
certifies nothing. reproduction: the formula of one paper's numeric table."""


@dataclass(frozen=True)
class Member:
    """A registered function and what its readings mean.

    index: columns that key the returned estimates, out of layer, sigma, term.
    unit: of every estimate, or by term; a term may hold `*`, and the first one that matches counts. kind: one of
    `KINDS`, or by the value of the parameter `variant`.
    source: where the definition is published. assumes: checks that a bound's theorem needs, each
    `check(subject, parameters) -> None | sentence` saying how this subject violates it.
    defined: says why the definition has no expression for a subject, or None where it has; then the reading has the
    term `not-defined` alone.
    needs: `test` data or a loss with `classes`; without them `audit` leaves the member out.
    sharded: parameters with which it takes a model whose weights are sharded over ranks, none of which can be replaced
    or differentiated by; None where it takes none.
    costly: the demo, which audits many checkpoints in minutes, leaves the member out.
    """

    family: str
    name: str
    function: Callable
    index: tuple[str, ...] = ()
    unit: str | Mapping[str, str] = ""
    kind: str | Mapping[str, str] = "measure"
    source: str = ""
    assumes: tuple[Callable, ...] = ()
    defined: Callable | None = None
    needs: tuple[str, ...] = ()
    costly: bool = False
    sharded: Mapping[str, Any] | None = None

    def takes_sharded(self, parameters: Mapping[str, Any]) -> bool:
        """With all of these parameters."""
        return self.sharded is not None and all(parameters[k] == v for k, v in self.sharded.items())

    @property
    def summary(self) -> str:
        return inspect.getdoc(self.function).split("\n")[0]

    @property
    def defaults(self) -> dict[str, Any]:
        """Keyword parameters with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters, `given` over the defaults; an unknown name raises `InputError`."""
        defaults = self.defaults
        for name in given:
            if name not in defaults:
                raise unknown(f"parameter of {self.name}", name, defaults)
        missing = [k for k, v in {**defaults, **given}.items() if v is inspect.Parameter.empty]
        if missing:
            raise InputError(f"{self.name} needs the parameter {missing[0]!r}; "
                             f"write it as {self.name}:{missing[0]}=VALUE")
        for name, value in given.items():
            expected = _misfit(value, defaults[name])
            if expected:
                raise InputError(f"{self.name} came with {name}={value!r}; give {expected}")
        return {**defaults, **given}

    def kind_for(self, parameters: Mapping[str, Any]) -> str:
        return self.kind if isinstance(self.kind, str) else self.kind[parameters["variant"]]

    def unit_for(self, term: str) -> str:
        if isinstance(self.unit, str):
            return self.unit
        return next((unit for pattern, unit in self.unit.items() if fnmatch.fnmatchcase(term, pattern)), "")

    def source_hash(self) -> str:
        """Changes with the code of the member's module and of every genmeasure module it imports."""
        return _source_hash(self.function.__module__)


def _misfit(value: Any, default: Any) -> str | None:
    """What is expected in place of a number or flag `default`, when `value` is text, a flag or the like; else None."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "True or False"
    if isinstance(default, int):
        return None if type(value) is int and value >= 0 else "a whole number, not negative"
    if isinstance(default, float):
        return "a number" if isinstance(value, (str, bool)) else None
    if isinstance(default, tuple):
        values = value if isinstance(value, (tuple, list)) else (value,)
        return "numbers with commas between" if any(isinstance(v, (str, bool)) for v in values) else None
    return None


class Family:
    """Decorator and catalogue of one kind of member."""

    def __init__(self, name: str, package: str, *, remember: bool = False):
        self.name, self.package, self.remember = name, package, remember
        self._members: dict[str, Member] = {}

    def __call__(self, name: str, **declaration: Any) -> Callable[[Callable], Callable]:
        """Register the decorated function as `name`; see `Member` for the declaration."""
        def register(function: Callable) -> Callable:
            member = Member(self.name, name, function, **declaration)
            registered = self._members.setdefault(name, member)
            if registered.function.__module__ != function.__module__:
                raise ValueError(f"{self.name} {name!r} is registered by {registered.function.__module__} and by "
                                 f"{function.__module__}; names must differ")
            if not self.remember:
                return function

            @functools.wraps(function)
            def remembered(subject, **given):
                parameters = member.parameters(given)
                key = json.dumps([self.name, name, parameters], sort_keys=True, default=str)
                return subject.remember(key, lambda: function(subject, **parameters))
            self._members[name] = Member(self.name, name, remembered, **declaration)
            return remembered
        return register

    def load(self) -> None:
        """Import every file of the family's package."""
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__, f"{self.package}."):
            importlib.import_module(module.name)

    def __getitem__(self, name: str) -> Member:
        self.load()
        if name not in self._members:
            raise unknown(self.name, name, self._members)
        return self._members[name]

    def __iter__(self):
        self.load()
        return iter(sorted(self._members.values(), key=lambda m: m.name))

    def __contains__(self, name: str) -> bool:
        self.load()
        return name in self._members


measure = Family("measure", "genmeasure.measures", remember=True)
bound = Family("bound", "genmeasure.bounds", remember=True)
algorithm = Family("algorithm", "genmeasure.training.algorithms")
model_family = Family("model", "genmeasure.families")
label_noise = Family("noise", "genmeasure.data.label_noise")


def parameters(text: str) -> dict[str, Any]:
    """`key=value,key=value` with Python literals as values; `sigmas=0.01,0.02` is a tuple."""
    found: dict[str, Any] = {}
    for part in filter(None, re.split(r",(?=[A-Za-z_]\w*=)", text)):
        name, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"the parameter {part!r} came; write it as key=value")
        try:
            found[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name.strip()] = value
    return found


def named(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME[:key=value,...]`."""
    name, _, rest = text.partition(":")
    return name, parameters(rest)


def find(name: str) -> Member:
    """A measure or bound by its name."""
    if name in bound:
        return bound[name]
    if name in measure:
        return measure[name]
    raise unknown("measure or bound", name, [m.name for m in (*measure, *bound)])


@functools.cache
def _source_hash(module: str) -> str:
    seen: set[str] = set()
    waiting, digest = [module], hashlib.sha256()
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in seen or path is None:
            continue
        seen.add(name)
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "genmeasure":
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    for name in sorted(seen):
        digest.update(name.encode() + Path(_file(name)).read_bytes())
    return digest.hexdigest()


def _file(module: str) -> str | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
    return spec.origin if spec else None
