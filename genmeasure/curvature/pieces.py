"""Whether a network is made of pieces that are linear in each weight, read off the graph of a forward pass."""

from __future__ import annotations

from collections import Counter

import torch
from torch.autograd.graph import Node

from genmeasure.risk import Risk, nodes

REARRANGE = frozenset({"View", "UnsafeView", "ReshapeAlias", "Permute", "Transpose", "T", "Squeeze", "Unsqueeze",
                       "Clone", "Expand", "Slice", "Select", "Cat", "Stack", "Index", "IndexSelect", "Alias",
                       "AsStrided", "ConstantPadNd", "ToCopy", "Split", "SplitWithSizes", "Unbind"})
LINEAR = REARRANGE | {"Add", "Sub", "Neg", "Sum", "Mean", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D",
                      "AdaptiveAvgPool3D", "MkldnnAdaptiveAvgPool2D", "Relu", "LeakyRelu", "Threshold", "Hardtanh",
                      "Abs", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "Amax", "Maximum"}
"""Operations of autograd that are piecewise linear in all that they are given."""
PRODUCTS = {"Mm": (0, 1), "Addmm": (1, 2), "Convolution": (0, 1), "Mul": (0, 1)}
"""Operations that are linear in each of two operands, which these are."""
LEAF = "torch::autograd::AccumulateGrad"


def kind(node: Node) -> str:
    """`Relu` of `ReluBackward0`."""
    return node.name().partition("Backward")[0]


def weight(node: Node | None) -> bool:
    """Whether this operand is a constant, or a weight as it is or rearranged."""
    while node is not None and kind(node) in REARRANGE and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return node is None or node.name() == LEAF


def piece(node: Node) -> bool:
    """Whether one operation keeps what is piecewise linear in every weight so."""
    name, given = kind(node), [before for before, _ in node.next_functions]
    if name in PRODUCTS:
        one, other = PRODUCTS[name]
        return weight(given[one]) or weight(given[other])
    if name == "Div":
        return given[1] is None
    if name in ("NativeBatchNorm", "CudnnBatchNorm"):
        return not node._saved_training and not any(given[1:])
    return name in LINEAR or node.name() == LEAF


def made_of_linear_pieces(risk: Risk) -> bool:
    """True where the outputs are piecewise linear in each layer's weight alone, by the operations of a forward pass.

    Each weight is used once, and every operation is piecewise linear, or linear in a weight and in what it is applied
    to. False where that cannot be told, as for an operation that is not known here.
    """
    batch = risk.place(next(iter(risk.batches)).select(slice(2)))
    with torch.enable_grad():
        outputs = risk.outputs({k: w.detach().requires_grad_() for k, w in risk.weights.items()}, batch)
    found = list(nodes([outputs]))
    uses = Counter(before for node in found for before, _ in node.next_functions
                   if before is not None and before.name() == LEAF)
    return all(map(piece, found)) and all(count == 1 for count in uses.values())
