"""One hue a method; shades and markers for its parameters."""

import colorsys

from matplotlib.colors import to_rgb

from reports.page.figures.style import GREY, HUES, MARKERS, looks


def hue(colour: str) -> float:
    return colorsys.rgb_to_hsv(*to_rgb(colour))[0]


def test_variants_of_a_method_share_its_hue_and_differ_in_shade_and_marker() -> None:
    labels = ["plain", "fast(n=1)", "fast(n=2)", "fast(n=3)", "other"]
    found = looks({label: label for label in labels}, ["plain"])
    fast = [found[label] for label in labels[1:4]]
    assert len({round(hue(look.colour), 2) for look in fast}) == 1
    assert len({look.colour for look in fast}) == len({look.marker for look in fast}) == 3
    assert hue(found["other"].colour) != hue(fast[0].colour)
    assert found["plain"].colour == GREY
    assert {look.marker for look in found.values()} <= set(MARKERS)


def test_a_method_alone_has_its_hue_itself_and_each_another() -> None:
    labels = [f"m{at}" for at in range(len(HUES))]
    found = looks({label: label for label in labels}, [])
    assert [found[label].colour for label in labels] == list(HUES)
