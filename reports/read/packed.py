"""A list held as bytes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Any, overload


class Packed(Sequence[Any]):
    """A list that is unpacked on access: there are many steps, and few of them are shown."""

    __slots__ = ("_bytes",)

    def __init__(self, values: list[Any]) -> None:
        self._bytes = pickle.dumps(values, pickle.HIGHEST_PROTOCOL)

    def _list(self) -> list[Any]:
        values: list[Any] = pickle.loads(self._bytes)
        return values

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> list[Any]: ...
    def __getitem__(self, at: int | slice) -> Any:
        return self._list()[at]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._list())

    def __len__(self) -> int:
        return len(self._list())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Packed) and self._bytes == other._bytes

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._list())
