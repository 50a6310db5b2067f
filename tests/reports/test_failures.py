"""Failures, with numbers worked out by hand."""

from reports.measures import acceptance, failures, shares, speedup
from tests.reports.fabricate import duel, failure, record
from tests.reports.frames import frame, row


def test_failures_count_in_no_figure() -> None:
    lines = duel()
    broken = [
        failure("fast", "boom", params={"n": 3}, prompt_id=8, prompt_sha256="h"),
        failure("autoregressive", "boom", prompt_id=9, prompt_sha256="i"),
        record("fast", params={"n": 3}, prompt_id=9, prompt_sha256="i", decode_s=1000.0),
    ]
    figures = ["speedup", "low", "high", "median", "end_to_end", "pairs"]
    clean = row(speedup.speedup(frame(lines)), "fast(n=3)")
    mixed = row(speedup.speedup(frame([*lines, *broken])), "fast(n=3)")
    assert mixed[figures].tolist() == clean[figures].tolist()
    assert (mixed["failed"], mixed["unpaired"]) == (1, 1)
    reasons = failures.failures(frame([*lines, *broken]))
    assert reasons[["label", "status", "error", "count"]].values.tolist() == [
        ["autoregressive", "error", "boom", 1],
        ["fast(n=3)", "error", "boom", 1],
    ]


def test_a_method_that_only_failed_is_in_no_table_of_figures() -> None:
    skip = failure("heads", "no heads", "skipped", prompt_id=None, turn=None, repeat=None)
    table = frame([*duel(), skip])
    for measure in (speedup.speedup, acceptance.accepted, shares.shares):
        assert "heads" not in set(measure(table)["label"])
    assert row(failures.failures(table), "heads")["count"] == 1
