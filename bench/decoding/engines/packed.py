"""Products with matrices in the layout that oneDNN multiplies fastest on this processor.

A plain matrix is read in an order that suits no cache, or is packed anew at every product; one that
was packed is read as it lies. The operators are those that torch's own compiler calls. Packed
matrices are copies, so plain ones are used where memory does not hold both.
"""

from __future__ import annotations

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 16  # rows that the layout is chosen for; it serves any number
SPARE = 0.5  # of the free memory that packed matrices may take


class Product:
    """x [..., K] by a plain matrix [N, K] -> [..., N]."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """The product and `to`, [..., N]."""
        return to + self(x)


class PackedProduct(Product):
    """x [..., K] by a packed matrix [N, K] -> [..., N]."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS), bias)

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return product

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, to, self._weight, self._bias, "add")
        return product


class PackedLinear(nn.Linear):
    """A linear layer whose product is packed; its weight stays as it was."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self._product = PackedProduct(layer.weight, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x)


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies packed matrices of this type here."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def room(size: int) -> bool:
    """Whether `size` bytes of packed matrices fit beside the plain ones."""
    return bool(size < SPARE * psutil.virtual_memory().available)


def pack(module: nn.Module) -> None:
    """Replace the linear layers below `module`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                parent.register_module(name, PackedLinear(child))
