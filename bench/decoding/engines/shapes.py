"""Which products x [rows, K] by weight [N, K] the kernels of engine `compile` take, by shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that settings may read what engines take without torch
    from torch import Tensor

FEW = 64  # rows that our products take; more go to the library
WIDE = 2560  # columns that a program holds at once
SHORT = 896  # columns from which streaming a large matrix beats the library
SMALLEST = 5 * 2**19  # numbers of a matrix that one kernel takes at more than 32 rows
MEDIUM = 2**24  # numbers of a matrix whose rows programs hold whole, however long they are
PART = 64  # positions that attention sums at a time where the order must not depend on the width
TILE = 16  # rows of every tile where sums must not depend on the number of rows


def small(weight: Tensor) -> bool:
    """Whether a kernel's programs can each hold all they need of a matrix [N, K] at once."""
    return weight.shape[1] <= WIDE and weight.numel() <= 2**22


def _at_once(rows: int, weight: Tensor) -> bool:
    """Whether one kernel takes a few rows of a small matrix. From 33 rows on the library is faster
    where the matrix is not among the smallest."""
    return rows <= FEW and small(weight) and (rows <= 32 or weight.numel() <= SMALLEST)


def whole(rows: int, weight: Tensor) -> bool:
    """Whether one kernel takes such a product with norm and residual: a few rows of a small matrix
    [N, K], or one row where K falls into equal tiles or the matrix is of medium size. Otherwise the
    norm comes before and the residual behind."""
    K = weight.shape[1]
    alone = K <= WIDE or K & (K - 1) == 0 or weight.numel() <= MEDIUM
    return _at_once(rows, weight) or (rows == 1 and alone)


def whole_tile(itemsize: int, weight: Tensor) -> bool:
    """As `whole`, for tiles of TILE rows however many rows there are.

    itemsize: bytes of a number.
    """
    return itemsize == 2 and small(weight)


def multiplies(rows: int, itemsize: int, weight: Tensor) -> bool:
    """Whether our kernels take the product: one row, or a few in half precision; many outputs of a
    K that is short or does not split into tiles are left to the library, which is as fast there.

    itemsize: bytes of a number.
    """
    K = weight.shape[1]
    if itemsize > 2:
        return rows == 1 and whole(1, weight)
    streams = K > WIDE or (K >= SHORT and K % 128 == 0 and not small(weight))
    return rows == 1 or _at_once(rows, weight) or (rows <= FEW and streams)
