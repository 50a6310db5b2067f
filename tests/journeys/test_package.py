"""What these tests run is the installed wheel, not the checkout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import baselines
import bench
import chimera
import reports

if TYPE_CHECKING:
    from tests.journeys.conftest import Shell

pytestmark = pytest.mark.journeys

PACKAGES = (baselines, bench, chimera, reports)


def test_the_packages_are_those_of_site_packages(shell: Shell) -> None:
    names = ", ".join(package.__name__ for package in PACKAGES)
    said = shell(f"""python -c "import {names}
for package in ({names}): print(package.__file__)" """).stdout
    places = [Path(line) for line in said.splitlines()]
    assert places == [Path(str(package.__file__)) for package in PACKAGES]
    assert {place.parent.parent.name for place in places} == {"site-packages"}
