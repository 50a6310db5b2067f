"""Short labels of methods: without what is at its default, but never two alike."""

import pytest

from reports.page.labels import short
from reports.read.companions import RunInfo
from reports.read.defaults import defaults


def run(asked: list[str], resolved: list[str], **provenance: str) -> RunInfo:
    settings = {"methods": asked, "provenance": {"methods": resolved, **provenance}}
    return RunInfo("run", settings, "", None, "not audited", ())


def test_what_a_run_does_not_set_is_a_default() -> None:
    known = run(
        ["fast", "tree(nodes=15)", "tree( nodes = 7, depth=2 )"],
        ["plain", "fast(n=3,k=2)", "tree(nodes=15,depth=4)", "tree(nodes=7,depth=2)"],
    )
    assert defaults([known]) == {("fast", "n=3"), ("fast", "k=2"), ("tree", "depth=4")}
    assert not defaults([run(["fast"], ["fast(n=9)"], tuned_sha256="ab")])


@pytest.mark.parametrize("settings", [{}, {"methods": 3}, {"methods": ["a"], "provenance": []}])
def test_settings_that_say_nothing_give_no_defaults(settings: dict[str, object]) -> None:
    assert not defaults([RunInfo("run", settings, "", None, "not audited", ())])


def test_defaults_are_left_out_and_other_parameters_kept() -> None:
    known = {("fast", "n=3"), ("tree", "depth=4")}
    labels = ["plain", "fast(n=3,k=2)", "fast(n=3)", "tree(nodes=15,depth=4)", "other(n=3)"]
    assert short(labels, known) == {
        "plain": "plain",
        "fast(n=3,k=2)": "fast(k=2)",
        "fast(n=3)": "fast",
        "tree(nodes=15,depth=4)": "tree(nodes=15)",
        "other(n=3)": "other(n=3)",
    }


def test_two_defaults_of_one_parameter_stay_apart() -> None:
    known = {("tree", "vocab=8"), ("tree", "vocab=16"), ("tree", "n=1")}
    assert short(["tree(n=1,vocab=8)", "tree(n=1,vocab=16)"], known) == {
        "tree(n=1,vocab=8)": "tree(vocab=8)",
        "tree(n=1,vocab=16)": "tree(vocab=16)",
    }
