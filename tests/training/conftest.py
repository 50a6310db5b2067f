from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import one_thread


@pytest.fixture(autouse=True, scope="module")
def threads() -> Iterator[None]:
    with one_thread():
        yield
