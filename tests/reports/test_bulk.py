"""Large runs: what a page of them costs, and that two readers of one file read what one does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reports import bulk

# Seconds, memory of the process and of its largest helper. The process's own by the kernel's mark
# for this program: getrusage also counts what it was forked from.
MEASURED = """
import json, resource, sys, time
started = time.monotonic()
from reports import build
code = build.main([*sys.argv[2:], "--out", sys.argv[1]])
status = dict(line.split(":") for line in open("/proc/self/status"))
own = int(status["VmHWM"].split()[0]) * 1024
helper = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
found = {"code": code, "seconds": time.monotonic() - started, "bytes": own, "helper": helper}
print(json.dumps(found))
"""

# What is read, in one process or two.
READ = """
import sys
from pathlib import Path
from reports.read import runs
runs.LARGE = int(sys.argv[1])
table, notices = runs.read_run(Path(sys.argv[2]), "run", {})
print(len(table), notices)
print(table.map(repr).to_csv())
"""

# Two results; a helper that was killed; one that raised.
SIDES = """
import os
from reports.read.parallel import side_by_side
parent = os.getpid()
print(side_by_side(lambda: 1, lambda: 2), side_by_side(lambda: 1, lambda: 2, worth_it=False))
print(side_by_side(lambda: 1, lambda: os.getpid() == parent or os._exit(1)))
try:
    side_by_side(lambda: 1, lambda: [][1])
except IndexError as error:
    print(error)
"""


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def output(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, check=True)
    return done.stdout.decode()


def measured(folder: Path, count: int, tries: int = 1) -> dict[str, Any]:
    """The quickest of so many tries."""
    page = folder / "page.html"
    places = list(map(str, bulk.write(folder, count)))
    found = [
        json.loads(output(MEASURED, str(page), *places).splitlines()[-1]) for _ in range(tries)
    ]
    quickest: dict[str, Any] = min(found, key=lambda one: one["seconds"])
    return quickest | {"page": page.stat().st_size}


@linux
def test_five_thousand_records(tmp_path: Path) -> None:
    found = measured(tmp_path, 5_000)
    assert found["code"] == 0
    assert found["seconds"] < 60  # 3 on two idle cores; a slip into work by the square is minutes
    assert found["bytes"] < 800e6
    assert found["page"] < 5e6


@linux
@pytest.mark.slow
def test_a_hundred_thousand_records(tmp_path: Path) -> None:
    found = measured(tmp_path, 100_000, tries=3)  # 16 s on two idle cores
    assert found["code"] == 0
    assert found["seconds"] < 20
    assert max(found["bytes"], found["helper"]) < 1.5e9  # they share most of it: 1.1 GB in all
    assert found["page"] < 5e6


def test_two_processes_read_what_one_reads(tmp_path: Path) -> None:
    (folder,) = bulk.write(tmp_path, 1500, runs=1)
    path = folder / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[300] = lines[700] = b"junk\n"
    path.write_bytes(b"".join([*lines, lines[2], lines[900], b"{torn"]))
    both, alone = (output(READ, large, str(folder)) for large in ("0", str(1 << 40)))
    assert both == alone
    assert "2 lines of records.jsonl left out, not JSON (lines 301, 701; line 301: " in both
    assert "torn (line 1503)" in both


def test_a_helper_gives_what_the_process_itself_would() -> None:
    said = output(SIDES).splitlines()
    assert said == ["(1, 2) (1, 2)", "(1, True)", "list index out of range"]


def test_two_processes_make_the_page_that_one_makes(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from reports import build
build.LARGE = int(sys.argv[1])
build.build([Path(sys.argv[2])], Path(sys.argv[3]))
"""
    (folder,) = bulk.write(tmp_path, 300, runs=1)
    pages = [tmp_path / f"{large}.html" for large in (0, 1 << 40)]
    for page in pages:
        output(code, page.stem, str(folder), str(page))
    assert pages[0].read_bytes() == pages[1].read_bytes()
