"""Make labels wrong in a known way, and undo that way in expectation.

The kinds of noise are registered members, one file each: functions of the labels y [n] and the number of classes that
return `NoisyLabels`. `noisy_labels` takes them by name. Only training labels should be made noisy: validation and test
labels stay as they are.
"""

from __future__ import annotations

from typing import Any

from genmeasure import registry
from genmeasure.data.label_noise.confusion import inverse_confusion
from genmeasure.data.label_noise.labels import NoisyLabels
from genmeasure.data.label_noise.symmetric import symmetric_confusion

__all__ = ["NoisyLabels", "inverse_confusion", "noisy_labels", "symmetric_confusion"]


def noisy_labels(kind: str, y: Any, classes: int, *, seed: int = 0, **given: Any) -> NoisyLabels:
    """Labels y [n] with the noise `NAME[:key=value,…]`, such as "symmetric:rate=0.4" or "pair-flip:rate=0.3".

    seed: for kinds that draw, unless the text says another one. given: further parameters, which may be arrays.
    Raises `InputError` for an unknown kind or parameter, and as the kind does.
    """
    name, parameters = registry.named(kind)
    member = registry.label_noise[name]
    seeds = {"seed": seed} if "seed" in member.defaults else {}
    return member.function(y, classes, **member.parameters({**seeds, **parameters, **given}))
