"""A newcomer looks at what there is, runs it twice, opens the report and mistypes a name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.journeys.conftest import Shell

pytestmark = pytest.mark.journeys


def test_a_newcomer_sees_what_there_is_and_runs_it(shell: Shell, small: str) -> None:
    helped = shell("chimera-bench").stdout
    assert all(f"  {name} " in helped for name in ("run", "list", "compare", "train"))
    assert "unknown command 'lisst'; did you mean 'list'?" in shell.refused("chimera-bench lisst")
    listed = shell("chimera-bench list").stdout
    some = ("smollm2-135m", "medusa(nodes=26,lookup=0)", "mini")
    assert all(f"\n  {name} " in listed for name in some)

    methods = "--methods lookahead prompt_lookup"
    run = f"chimera-bench run --models synthetic:predictable {methods} {small}"
    typo = shell.refused(run.replace("lookahead", "lookahed"))
    assert typo == "error: unknown method 'lookahed'; did you mean 'lookahead'?"
    assert not list(shell.folder.iterdir()), "a refused run leaves nothing"

    first = shell(run)
    (folder,) = shell.folder.glob("results/synthetic-predictable-*")
    place = folder.relative_to(shell.folder)
    labels = ("autoregressive", "lookahead(n=5,w=7,g=7,prompt=true)", "prompt_lookup(n=3,k=10)")
    assert first.stdout.startswith("synthetic:predictable · mini · eager · T=0\n")
    assert all(f"\n  {label.partition('(')[0]} " in first.stdout for label in labels[1:])
    assert first.stderr.splitlines()[-2:] == [f"records: {place}", f"report: {place}/index.html"]
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert all(label in page for label in labels)

    kept = (folder / "records.jsonl").read_bytes()
    second = shell(run)
    assert "synthetic:predictable: 12 of 12 turns done already\n" in second.stderr
    assert second.stdout == first.stdout
    assert (folder / "records.jsonl").read_bytes() == kept
