"""Drawing in SVG: scales, axes, marks and legends as text, for pages and notebooks.

A drawing has no background, text and axes in the page's own color (`currentColor`), and
data in colors that a page may set by CSS variables; without a page the fallbacks read on
light and dark. Every string that is drawn is escaped here and nowhere else. Knows nothing
of studies. Lengths are in units of the view box, 360 wide: about life-size on a phone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 360.0
FONT = 10.0
LETTER = 0.6  # mean width of a letter, in font sizes; of wide system fonts, so that labels fit with all

# Fallbacks have a contrast of at least 3 on white and on #14171a; the report sets its own, of at least 4.5.
INK = "currentColor"
BLUE = "var(--blue, #2f7ed8)"
ORANGE = "var(--orange, #d0741a)"
GRAY = "var(--gray, #7f8790)"
GREEN = "var(--green, #3a9565)"
PURPLE = "var(--purple, #a463c2)"
RED = "var(--red, #c9566f)"
SERIES = (BLUE, ORANGE, GRAY, GREEN, PURPLE, RED)

Point = tuple[float, float]


def color(index: int) -> str:
    """Return the color of a series; after six they repeat."""
    return SERIES[index % len(SERIES)]


def number(value: float) -> str:
    """Return a coordinate, short."""
    return f"{value:.1f}".removesuffix(".0")


def width_of(words: str, size: float = FONT) -> float:
    """Estimate the width of a text."""
    return LETTER * size * len(words)


def shortened(words: str, room: float, size: float = FONT) -> str:
    """Return the text, cut to the room with an ellipsis."""
    most = max(2, int(room / (LETTER * size) + 0.01))
    return words if len(words) <= most else words[: most - 1] + "…"


# --- marks -------------------------------------------------------------------


def text(
    x: float, y: float, words: str, *, anchor: str = "start", size: float = FONT, fill: str = INK, extra: str = ""
) -> str:
    """Write words with their baseline at y; `anchor` is start, middle or end."""
    return (
        f'<text x="{number(x)}" y="{number(y)}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}"{extra}>'
        f"{escape(words)}</text>"
    )


def line(start: Point, end: Point, *, stroke: str = INK, width: float = 1.0, dash: str = "") -> str:
    """Draw a straight line."""
    return polyline((start, end), stroke=stroke, width=width, dash=dash)


def polyline(
    points: Iterable[Point], *, stroke: str, width: float = 1.2, dash: str = "", opacity: float = 1.0, hint: str = ""
) -> str:
    """Draw connected lines."""
    path = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    faint = f' stroke-opacity="{opacity:g}"' if opacity < 1 else ""
    return (
        f'<path d="{path}" fill="none" stroke="{stroke}" stroke-width="{width:g}"{dashes}{faint}{_closed("path", hint)}'
    )


def area(shapes: Iterable[Sequence[Point]], *, fill: str, opacity: float = 1.0) -> str:
    """Fill polygons, all in one color."""
    path = "".join("M" + "L".join(f"{number(x)} {number(y)}" for x, y in shape) + "Z" for shape in shapes)
    faint = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
    return f'<path d="{path}" fill="{fill}"{faint}/>'


def box(x: float, y: float, wide: float, high: float, *, fill: str, hint: str = "") -> str:
    """Fill a rectangle."""
    shape = f'x="{number(x)}" y="{number(y)}" width="{number(max(0, wide))}" height="{number(high)}"'
    return f'<rect {shape} fill="{fill}"{_closed("rect", hint)}'


def dot(
    x: float, y: float, *, fill: str, radius: float = 3.0, hollow: bool = False, opacity: float = 1.0, hint: str = ""
) -> str:
    """Draw a disk, or a ring."""
    faint = f' opacity="{opacity:g}"' if opacity < 1 else ""
    paint = f'fill="none" stroke="{fill}" stroke-width="1.3"' if hollow else f'fill="{fill}"'
    return f'<circle cx="{number(x)}" cy="{number(y)}" r="{radius:g}" {paint}{faint}{_closed("circle", hint)}'


def diamond(x: float, y: float, *, fill: str, radius: float = 4.0, hollow: bool = False, hint: str = "") -> str:
    """Draw a diamond, for what is predicted or recommended."""
    corners = [(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)]
    path = "M" + "L".join(f"{number(a)} {number(b)}" for a, b in corners) + "Z"
    paint = f'fill="none" stroke="{fill}" stroke-width="1.3"' if hollow else f'fill="{fill}"'
    return f'<path d="{path}" {paint}{_closed("path", hint)}'


def whisker(low: float, high: float, y: float, *, stroke: str, upright: bool = False) -> str:
    """Draw an interval with caps: from low to high along x at y, or upright along y at x = `y`."""
    ends = [((low, y), (high, y)), ((low, y - 2.5), (low, y + 2.5)), ((high, y - 2.5), (high, y + 2.5))]
    flipped = [((b, a), (d, c)) for (a, b), (c, d) in ends] if upright else ends
    return "".join(line(start, end, stroke=stroke, width=1.1) for start, end in flipped)


def _closed(tag: str, hint: str) -> str:
    """Close a mark; a hint shows when a pointer rests on it."""
    return f"><title>{escape(hint)}</title></{tag}>" if hint else "/>"


# --- axes --------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """From values to places on the drawing.

    Attributes:
        low: Value at `start`.
        high: Value at `end`; above `low`.
        start: Place of `low`.
        end: Place of `high`; may be below `start`, as y grows downward.
    """

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(
        cls, values: Iterable[float], start: float, end: float, *, margin: float = 0.06, zero: bool = False
    ) -> Scale:
        """Return a scale that holds all finite values with a margin; with `zero` it begins there."""
        known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(known), max(known)
        spread = (high - low) or abs(high) * 0.02 or 1.0
        bottom = 0.0 if zero and low >= 0 else low - margin * spread
        return cls(bottom, high + margin * spread, start, end)

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Return round values inside, at most one more than `most`."""
        span = self.high - self.low
        step = 10.0 ** math.floor(math.log10(span / most))
        step *= next(f for f in (1, 2, 2.5, 5, 10, 20) if span / (step * f) <= most)
        first = math.ceil(self.low / step - 1e-9)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def labels_of(ticks: Sequence[float]) -> list[str]:
    """Return ticks as text, with as many digits as tell them apart."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=abs(ticks[0]) if ticks else 1.0) or 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += round(step * 10**digits, 6) % 1 != 0
    return [f"{tick:,.{digits}f}" if abs(tick) > step / 2 else "0" for tick in ticks]


def x_axis(scale: Scale, y: float, *, label: str = "", top: float | None = None, most: int = 5, unit: str = "") -> str:
    """Draw an axis with ticks at y, and faint lines up to `top`."""
    ticks = scale.ticks(most)
    parts = [line((scale.start, y), (scale.end, y), width=0.6)]
    for tick, words in zip(ticks, labels_of(ticks), strict=True):
        x = scale(tick)
        if top is not None:
            parts.append(_rule((x, top), (x, y)))
        parts += [line((x, y), (x, y + 3), width=0.6), text(x, y + 13, words + unit, anchor="middle", size=9)]
    if label:
        parts.append(text((scale.start + scale.end) / 2, y + 26, label, anchor="middle", size=9.5))
    return "".join(parts)


def y_axis(scale: Scale, x: float, *, right: float | None = None, most: int = 5, size: float = 9.0) -> str:
    """Draw the values of an upright axis at x, and faint lines to `right`."""
    ticks = scale.ticks(most)
    parts = []
    for tick, words in zip(ticks, labels_of(ticks), strict=True):
        y = scale(tick)
        if right is not None:
            parts.append(_rule((x, y), (right, y)))
        parts.append(text(x - 4, y + 3, words, anchor="end", size=size))
    return "".join(parts)


def _rule(start: Point, end: Point) -> str:
    return polyline((start, end), stroke=INK, width=0.5, opacity=0.18)


# --- the whole ---------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """One entry of a legend: words beside a mark drawn around (0, 0)."""

    words: str
    mark: str


def legend(keys: Sequence[Key], *, top: float = 0.0, left: float = 2.0) -> tuple[str, float]:
    """Return a legend that wraps within the width, and where it ends."""
    parts, x, y = [], left, top + 10.0
    for key in keys:
        room = 20 + width_of(key.words, 9.5)
        if x > left and x + room > WIDTH:
            x, y = left, y + 14
        parts.append(f'<g transform="translate({number(x + 7)} {number(y - 3)})">{key.mark}</g>')
        parts.append(text(x + 17, y, shortened(key.words, WIDTH - x - 17, 9.5), size=9.5))
        x += room + 8
    return "".join(parts), y + 6


def document(body: Sequence[str], height: float, *, name: str, title: str, description: str) -> str:
    """Return the drawing as an `<svg>` element that says what it is to those who do not see it.

    Args:
        body: Marks.
        height: Of the view box.
        name: Unique on the page; begins the ids.
        title: Short heading.
        description: What is to be seen, in words.
    """
    return (
        f'<svg viewBox="0 0 {number(WIDTH)} {number(height)}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc" font-family="system-ui, sans-serif">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
        f"{''.join(body)}</svg>"
    )


# --- colored cells -----------------------------------------------------------

_SEQUENTIAL = ((8, 48, 107), (33, 113, 181), (107, 174, 214), (198, 219, 239), (247, 251, 255))
_DIVERGING = ((5, 81, 120), (103, 169, 207), (245, 245, 245), (239, 163, 88), (148, 66, 0))


def shade(share: float, *, diverging: bool = False) -> str:
    """Return a color between dark blue (0) and white (1), or between blue, white and brown."""
    stops = _DIVERGING if diverging else _SEQUENTIAL
    place = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    low = min(int(place), len(stops) - 2)
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(stops[low], stops[low + 1], strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def ink_on(background: str) -> str:
    """Return black or white, whichever reads better on a color."""
    light = luminance(background)
    return "#000000" if (light + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def luminance(hexed: str) -> float:
    """Return the relative luminance of a color, in [0, 1] (WCAG 2.2)."""
    values = [int(hexed[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
