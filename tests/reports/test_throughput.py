"""Tokens/s of each method with a column for each engine."""

import math

from reports.measures.speedup import speedup
from reports.measures.throughput import throughput
from tests.reports.fabricate import duel, stock
from tests.reports.frames import frame, row


def test_engines_stand_side_by_side_the_fastest_first() -> None:
    quick = [
        line | {"decode_s": line["decode_s"] / 10} for line in duel(engine="graph", run="other")
    ]
    slow = [*duel(), *(stock(prompt_id=n, prompt_sha256=f"{n:02x}") for n in range(4))]
    rows, engines = throughput(speedup(frame([*slow, *quick])))
    assert list(engines) == ["graph", "eager"]
    assert list(rows["label"]) == ["fast(n=3)", "autoregressive", "transformers_generate"]
    fast = row(rows, "fast(n=3)")
    assert (fast["graph"], fast["eager"]) == (20.0, 2.0)
    assert (fast["graph_speedup"], fast["eager_speedup"]) == (2.0, 2.0)
    generate = row(rows, "transformers_generate")
    assert generate["eager"] == 1.0  # beside the reference that it is compared with
    assert math.isnan(generate["graph"])


def test_runs_that_have_the_same_row_stay_apart() -> None:
    rows, engines = throughput(speedup(frame([*duel(), *duel(run="again")])))
    assert list(engines) == ["eager"]
    assert sorted(zip(rows["run"], rows["label"], strict=True)) == [
        ("again", "autoregressive"),
        ("again", "fast(n=3)"),
        ("run", "autoregressive"),
        ("run", "fast(n=3)"),
    ]


def test_synthetic_models_have_no_tokens_per_second() -> None:
    rows, engines = throughput(speedup(frame(duel(model="synthetic:tiny"))))
    assert rows.empty
    assert not engines
