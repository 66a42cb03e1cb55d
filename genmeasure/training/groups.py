"""Which weights are layers, and what number each of them has in a schedule by depth or by group."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from torch import nn

from genmeasure.errors import InputError, unknown
from genmeasure.layers import transposed
from genmeasure.training.context import Context

NO_MAPS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)

GROUPS: dict[str, dict[str, int]] = {
    "resnet": {"*.layer1.*": 0, "*.layer2.*": 0, "*.layer3.*": 1, "*.layer4.*": 2},
    "vit": {"*.encoder.*": 0, "*.blocks.*": 0, "*.layers.*": 0},
    "bert": {"*.encoder.*.attention.*LayerNorm*": 1, "*.encoder.*.attention.*": 0, "*.encoder.*": 1},
}
"""Pattern -> power of the growth, for the families of the papers' public code; the first pattern that fits counts, and
a name is matched with a dot before it. "resnet": stages 1 to 4 have 1, 1, growth, growth²; the stem is free. "vit": the
whole encoder has one number (names of torchvision, timm and transformers); patch and position embeddings are free.
"bert": attention has 1, the encoder's other weights growth; embeddings and pooler are free."""


def layer_weights(model: nn.Module) -> dict[str, nn.Module]:
    """Parameter name -> module, for every weight with two or more dimensions that acts as a linear map.

    These are the parameters called weight (`in_proj_weight` and a recurrent layer's among them) of all modules but
    embeddings and normalisation layers; so class tokens and learned positions are no layers.
    """
    found = {}
    for name, p in model.named_parameters():
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        if p.ndim >= 2 and "weight" in last and not isinstance(module, NO_MAPS):
            found[name] = module
    return found


def output_dimension(module: nn.Module) -> int:
    """The dimension of the module's weight that counts its outputs.

    Raises `InputError` for a transposed convolution in groups, whose outputs are spread over two dimensions.
    """
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        if module.groups > 1:
            raise InputError(f"a {type(module).__name__} with groups={module.groups} has no dimension of outputs in "
                             "its weight; name the other layers in radius=…, or take the Frobenius norm")
        return 1
    return int(transposed(module))


def check_schedule(value: float | Mapping[str, float], growth: float, groups: str) -> None:
    """Raises `InputError` unless `by_layer` can use them."""
    if groups != "layers" and groups not in GROUPS:
        raise unknown("table of groups", groups, ["layers", *GROUPS])
    if not growth > 0:
        raise InputError(f"growth={growth} came; the factor between layers must be above 0")
    if isinstance(value, Mapping) and (growth != 1 or groups != "layers"):
        raise InputError(f"growth={growth} and groups={groups!r} came with a number for each layer; growth and groups "
                         "go with a single number only")


def by_layer(context: Context, value: float | Mapping[str, float], growth: float = 1.0,
             groups: str = "layers") -> dict[str, float]:
    """Parameter name -> its number, outside of the head; parameters that nothing fits are left out.

    value: one number, or a mapping whose keys are parameter names, module names or patterns such as "layer4.*", the
    first that fits counts. groups: "layers" multiplies by growth^(i-1) at layer i = 1, 2, … in registration order
    (between layers, at the number of the layer before); else a table of `GROUPS`.
    Raises `InputError` for a key that fits no parameter, and for a table that fits no layer.
    """
    names = [name for name, _ in context.model.named_parameters() if not context.in_head(name)]
    layers = layer_weights(context.model)
    if isinstance(value, Mapping):
        return _by_key(value, names, context.model)
    found, depth = {}, 0
    for name in names:
        depth += name in layers
        power = max(0, depth - 1) if groups == "layers" else _power(name, GROUPS[groups])
        if power is not None:
            found[name] = value * growth ** power
    if groups != "layers" and not found.keys() & layers.keys():
        raise InputError(f"no layer of {type(context.model).__name__} fits the groups {groups!r} "
                         f"({', '.join(GROUPS[groups])}); give a number for each layer by name, or groups='layers'")
    return found


def _power(name: str, table: Mapping[str, int]) -> int | None:
    return next((power for pattern, power in table.items() if fnmatch.fnmatchcase(f".{name}", pattern)), None)


def _by_key(values: Mapping[str, float], names: list[str], model: nn.Module) -> dict[str, float]:
    found, unused = {}, set(values)
    for name in names:
        key = next((k for k in values if name.startswith(f"{k}.") or fnmatch.fnmatchcase(name, k)), None)
        if key is not None:
            unused.discard(key)
            found[name] = values[key]
    if unused:
        raise unknown("layer", min(unused), [name for name, p in model.named_parameters() if p.ndim >= 2])
    return found
