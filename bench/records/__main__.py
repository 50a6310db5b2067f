"""python -m bench.records check results/<folder> [...]: prints every violated invariant."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.records import costs, journal, runs


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 where every folder is sound, 1 where one is not, 2 on bad usage."""

    def report(folder: str) -> bool:
        study = journal.holds(folder, costs.COSTS)
        return costs.report(folder) if study else runs.report(folder)

    return journal.check_command("python -m bench.records", report, argv)


if __name__ == "__main__":
    sys.exit(main())
