"""Laws of the arms' colours."""

import itertools

import pytest

from benchmarks.arc import palette


def luminance(colour):
    """Relative luminance of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("ink", palette.INKS.values(), ids=palette.INKS)
def test_every_ink_stands_out_from_light_and_dark_pages(ink):
    # WCAG asks 3 of graphics.
    assert contrast(ink.light, "#fdfdfc") > 3
    assert contrast(ink.dark, "#14161a") > 3


def test_the_colour_of_an_arm_does_not_depend_on_its_company():
    names = ("plain", "identity", "free", "sinkhorn", "cayley", "from-outside")
    alone = {name: palette.styles([name])[name].ink for name in names}
    together = palette.styles(names)
    assert {name: style.ink for name, style in together.items()} == alone
    assert palette.styles(["cayley:step=0.1"])["cayley:step=0.1"].ink == "cayley"


def test_four_arms_of_one_colour_differ_by_their_dashes():
    arms = ["cayley", "cayley:step=0.1", "cayley:step=0.2", "cayley:step=0.3"]
    styles = palette.styles(arms)
    assert all(styles[a] != styles[b] for a, b in itertools.combinations(arms, 2))
