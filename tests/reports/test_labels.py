"""Short labels of methods."""

from reports.page.labels import short


def test_short_names_keep_what_tells_them_apart() -> None:
    labels = ["plain", "fast(n=3,k=2)", "fast(n=3,k=4)", "tree(nodes=15)", "a(x=1)", "a(x=1,y=2)"]
    assert short(labels) == {
        "plain": "plain",
        "fast(n=3,k=2)": "fast(k=2)",
        "fast(n=3,k=4)": "fast(k=4)",
        "tree(nodes=15)": "tree",
        "a(x=1)": "a",
        "a(x=1,y=2)": "a(y=2)",
    }
