"""Matches from the audits, with numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from reports.measures import matches
from tests.reports.fabricate import duel, record
from tests.reports.frames import frame, row


def test_matches_come_from_the_audit() -> None:
    table = frame([*duel(), record("slow")])
    names = {"run": "run", "model": "tiny", "engine": "eager", "dtype": "float32"}
    audited = pd.DataFrame(
        [
            {
                **names,
                "dataset": "mini",
                "temperature": 0,
                "label": "fast(n=3)",
                "compared": 8,
                "equal": 6,
                "ties": 1,
                "defects": 1,
            }
        ]
    )
    found = matches.matches(table, audited)
    assert found["label"].tolist() == ["fast(n=3)", "slow"]
    assert row(found, "fast(n=3)")["match_rate"] == pytest.approx(0.75)
    assert np.isnan(row(found, "slow")["match_rate"])
    assert matches.matches(table, audited.iloc[:0])["match_rate"].isna().all()


def test_quality_of_lossy_methods_comes_from_the_audit() -> None:
    table = frame([*duel(), *(line | {"lossless": False} for line in duel(temperature=0.7))])
    name = {"run": "run", "model": "tiny", "engine": "eager", "dtype": "float32"}
    sampled = {"dataset": "mini", "temperature": 0.7, "label": "fast(n=3)"}
    counts = {"compared": 0, "equal": 0, "ties": 0, "defects": 0}
    worth = {"agreement": 0.5, "perplexity": 3.0, "reference_perplexity": 2.0}
    audited = pd.DataFrame([{**name, **sampled, **counts, **worth}])
    found = matches.matches(table, audited)
    lossy = row(found, "fast(n=3)", temperature=0.7)
    assert lossy[list(worth)].tolist() == [0.5, 3.0, 2.0]
    assert np.isnan(row(found, "fast(n=3)", temperature=0.0)["perplexity"])
