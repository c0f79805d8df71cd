import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from mixopt.experiments import report as report_module
from mixopt.experiments import svg
from mixopt.experiments.drawing import Figure, csv_link, csv_of, listed, spaced

TEMPLATE = report_module.__file__.replace("report.py", "templates/report.html.j2")


def contrast(one, other):
    """WCAG 2.2, contrast ratio."""
    light, dark = sorted((svg.luminance(one), svg.luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.1301, 3.1309), (-4e-5, 7e-5), (0, 1e9), (-30, 210), (0.99, 1.01)])
def test_ticks_are_few_inside_and_evenly_spaced(low, high):
    scale = svg.Scale(low, high, 0, 100)
    ticks = scale.ticks(5)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    steps = [b - a for a, b in pairwise(ticks)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps)
    shown = [float(words.replace(",", "")) for words in svg.labels_of(ticks)]
    assert shown == pytest.approx(ticks, rel=1e-6, abs=abs(steps[0]) * 1e-6)


def test_a_scale_maps_its_ends_to_its_places_and_holds_what_it_is_made_around():
    scale = svg.Scale.around([2.0, math.nan, 3.0], 10, 90)
    assert scale(scale.low) == pytest.approx(10)
    assert scale(scale.high) == pytest.approx(90)
    assert scale.low < 2 < 3 < scale.high
    assert svg.Scale.around([5.0, 5.0], 0, 1).low < 5


@pytest.mark.parametrize("words", ["<script>alert(1)</script>", '"/><a href="x', "a & b", "]]>"])
def test_words_are_drawn_as_words_wherever_they_stand(words):
    marks = [svg.text(0, 0, words), svg.dot(0, 0, fill=svg.BLUE, hint=words), svg.legend([svg.Key(words, "")])[0]]
    drawing = svg.document(marks, 10, name="x", title=words, description=words)
    root = ElementTree.fromstring(drawing)
    assert {element.tag for element in root.iter()} <= {"svg", "title", "desc", "text", "circle", "g"}
    assert words in [element.text for element in root.iter()]


def test_a_shortened_text_fits_its_room_and_a_fitting_one_is_whole():
    assert svg.shortened("dictionary", svg.width_of("dictionary")) == "dictionary"
    short = svg.shortened("dictionary", 30)
    assert short.endswith("…")
    assert svg.width_of(short) <= 30


@pytest.mark.parametrize("diverging", [False, True])
def test_numbers_in_cells_can_be_read_on_every_shade(diverging):
    shades = [svg.shade(i / 100, diverging=diverging) for i in range(101)]
    assert min(contrast(svg.ink_on(shade), shade) for shade in shades) >= 4.5


def test_the_report_has_colors_that_read_on_light_and_on_dark_pages():
    with open(TEMPLATE, encoding="utf-8") as file:
        light, dark, *_ = re.findall(r":root \{(.*?)\}", file.read(), flags=re.DOTALL)
    for block in (light, dark):
        colors = dict(re.findall(r"--(\w+): (#\w{6})", block))
        names = ("ink", "soft", "accent", "warn", "blue", "orange", "gray", "green", "purple", "red")
        for ground in ("page", "tint"):
            assert {n: contrast(colors[n], colors[ground]) >= 4.5 for n in names} == dict.fromkeys(names, True)


def test_fallback_colors_read_without_a_page():
    for paint in svg.SERIES:
        hexed = re.search(r"#\w{6}", paint)[0]
        assert min(contrast(hexed, "#ffffff"), contrast(hexed, "#14171a")) >= 3


def test_csv_has_all_fields_and_ten_digits():
    assert csv_of([{"a": 1, "b": 0.1}, {"a": 2, "c": 1 / 3}]) == "a,b,c\n1,0.1,\n2,,0.3333333333\n"
    assert csv_of([]) == ""


def test_a_link_holds_any_text_and_no_quote():
    link = csv_link('a,"b"\n<script>&%#')
    assert re.fullmatch(r"[^\"'<>&\s#]*", link.partition(",")[2].replace("'", "")) is not None


def test_spaced_items_keep_their_ends_and_order():
    assert spaced(range(100), 5) == [0, 25, 50, 74, 99]
    assert spaced([1, 2], 5) == [1, 2]


def test_lists_in_words():
    assert [listed(["a", "b", "c", "d", "e"][:n]) for n in (0, 1, 2, 5)] == [
        "none",
        "a",
        "a and b",
        "a, b, c and 2 others",
    ]


def test_a_figure_in_a_notebook_escapes_its_words():
    shown = Figure("n", "<b>t</b>", "<i>s</i>", "<svg></svg>", "alt", ({"x": "<u>"},))._repr_html_()
    assert "<b>t" not in shown.replace("<b>&lt;", "")
    assert "<i>" not in shown
    assert "<u>" not in shown
