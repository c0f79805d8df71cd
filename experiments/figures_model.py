"""Figures that ask the study's surrogate: response curves, and the objective around the optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mixopt.mixture import Array

from . import svg
from .comparison import unit_label
from .drawing import Figure, Missing, Row, listed, percent
from .whatif import NORMAL_90, Curve, Triangle, WhatIf

_LEVELS = 8
_PANEL = 92.0

Corner = tuple[float, float, float]  # x, y, value


# --- response curves ---------------------------------------------------------


def response_curves(around: WhatIf) -> Figure | Missing:
    """Draw the predicted objective as one weight moves and the others are rescaled, with 90% bands."""
    name, title, curves = "responses", "What each domain does", around.curves
    if not curves:
        return Missing(name, title, "Left out: there is one domain only.")
    rows: list[Row] = [
        {"domain": c.domain, "weight": float(w), "mean": float(m), "std": float(s)}
        for c in curves
        for w, m, s in zip(c.shares, c.mean, c.std, strict=True)
    ]
    drawing, height = _panels(curves, around)
    sentence = _response_sentence(around) + _drawn(len(curves), len(around.center.domains)) + around.thinned
    alt = f"Curves of the predicted objective over one weight. {sentence}"
    return Figure(
        name, title, sentence, svg.document(drawing, height, name=name, title=title, description=alt), alt, tuple(rows)
    )


def _panels(curves: Sequence[Curve], around: WhatIf) -> tuple[list[str], float]:
    keys = [
        svg.Key("predicted", svg.line((-7, 0), (7, 0), stroke=svg.BLUE, width=1.6)),
        svg.Key("90% band", svg.box(-6, -4, 12, 8, fill=svg.BLUE).replace("<rect ", '<rect fill-opacity="0.22" ')),
        svg.Key("weight now", svg.line((0, -5), (0, 5), stroke=svg.GREEN, width=1.6)),
    ]
    head, top = svg.legend(keys)
    measured = f"predicted objective, {unit_label(around.study)}; under the curves: share of the domain, %"
    parts, top = [head, svg.text(2, top + 10, measured, size=9)], top + 14
    low = min(float((c.mean - NORMAL_90 * c.std).min()) for c in curves)
    # Where the model knows nothing a band would hide all others.
    high = max(float(c.mean.max()) for c in curves) + NORMAL_90 * float(np.median([c.std.max() for c in curves]))
    lines = -(-len(curves) // 2)
    for i, curve in enumerate(curves):
        left, y = 36.0 + 164 * (i % 2), top + 4 + (_PANEL + 40) * (i // 2)
        parts += _curve(curve, svg.Scale(low, high, y + _PANEL + 14, y + 16), left, labels=i % 2 == 0)
    return parts, top + 4 + (_PANEL + 40) * lines


def _curve(curve: Curve, y: svg.Scale, left: float, *, labels: bool) -> list[str]:
    x = svg.Scale(100 * float(curve.shares[0]), 100 * float(curve.shares[-1]), left, left + 150)
    xs = [x(100 * float(w)) for w in curve.shares]
    upper = [y(min(y.high, float(v))) for v in curve.mean + NORMAL_90 * curve.std]
    lower = [y(min(y.high, float(v))) for v in curve.mean - NORMAL_90 * curve.std]
    band = [*zip(xs, upper, strict=True), *reversed(list(zip(xs, lower, strict=True)))]
    now = x(100 * curve.weight)
    said = f"{curve.domain}: may be {percent(curve.near[0])} to {percent(curve.near[1])}"
    return [
        svg.text(left, y.end - 5, svg.shortened(curve.domain, 148), extra=' font-weight="600"'),
        svg.y_axis(y, left, right=x.end, most=3, size=8.5).replace(
            "<text", "<text" if labels else '<text visibility="hidden"'
        ),
        svg.x_axis(x, y.start, most=4),
        svg.area([band], fill=svg.BLUE, opacity=0.22),
        svg.polyline(
            list(zip(xs, (y(min(y.high, float(v))) for v in curve.mean), strict=True)),
            stroke=svg.BLUE,
            width=1.6,
            hint=said,
        ),
        svg.line((now, y.start), (now, y.end), stroke=svg.GREEN, width=1.4),
    ]


def _response_sentence(around: WhatIf) -> str:
    """Say which weights matter and which do not, beside the standard deviation at the center."""
    mean, std = (float(values[0]) for values in around.believed)
    unit = unit_label(around.study)
    by_loss = sorted(around.curves, key=lambda c: -_half(c, mean))
    first = by_loss[0]
    loss = _half(first, mean)
    if loss <= std:
        text = f"No weight matters beyond the uncertainty ({std:.4f} {unit}): halving any one of them alone costs at most {loss:.4f} as predicted."
    else:
        text = f"The objective hangs most on {first.domain}: halving its weight is predicted to cost {loss:.4f} {unit} (standard deviation here {std:.4f})."
    idle = [c.domain for c in around.curves if float(c.mean.max()) - mean <= std]
    if idle:
        text += f" Over the range drawn, {listed(idle)} changes nothing beyond one standard deviation."
    tight = min(around.curves, key=lambda c: (c.near[1] - c.near[0]) / max(c.weight, 0.01))
    return f"{text} Pinned down best is {tight.domain}: {percent(tight.near[0])} to {percent(tight.near[1])} is as good within one standard deviation."


def _half(curve: Curve, mean: float) -> float:
    """Return what halving a weight is predicted to cost."""
    return float(np.interp(curve.weight / 2, curve.shares, curve.mean)) - mean


def _drawn(num: int, total: int) -> str:
    return "" if num == total else f" Drawn are the {num} domains with most weight, of {total}."


# --- around the optimum ------------------------------------------------------


def objective_around(around: WhatIf) -> Figure | Missing:
    """Draw the predicted objective over the two weightiest domains and all others, as a triangle."""
    name, title, plane = "around", "Around the optimum", around.triangle
    if plane is None:
        return Missing(name, title, "Left out: with two domains the response curves show all there is.")
    rows: list[Row] = [
        {**dict(zip(plane.corners, map(float, place), strict=True)), "mean": float(m)}
        for place, m in zip(plane.places, plane.mean, strict=True)
    ]
    mean, std = (float(values[0]) for values in around.believed)
    drawing, height = _triangle(around, plane, limit=mean + std)
    sentence = _plane_sentence(around, plane, mean, std) + around.thinned
    alt = f"Triangle of mixtures, darker is a lower predicted objective. {sentence}"
    return Figure(
        name, title, sentence, svg.document(drawing, height, name=name, title=title, description=alt), alt, tuple(rows)
    )


def _triangle(around: WhatIf, plane: Triangle, *, limit: float) -> tuple[list[str], float]:
    head, top = svg.legend([
        svg.Key("recommended" if around.study.recommendation else "best measured", svg.diamond(0, 0, fill=svg.GREEN)),
        svg.Key("as good within one std", svg.box(-7, -5, 14, 10, fill=svg.shade(0.1)) + svg.dot(0, 0, fill="#ffffff", radius=3, hollow=True)),
    ])  # fmt: skip
    side, left = 268.0, 46.0
    peak, base = top + 26, top + 26 + 268 * math.sqrt(3) / 2

    def at(place: Array) -> svg.Point:
        return left + side * (float(place[1]) + float(place[2]) / 2), base - (base - peak) * float(place[2])

    edges = np.quantile(plane.mean, np.linspace(0, 1, _LEVELS + 1))
    corners = [[(*at(plane.places[i]), float(plane.mean[i])) for i in cell] for cell in plane.cells]
    parts = [head]
    for level in range(_LEVELS):
        shapes = [_between(cell, float(edges[level]), float(edges[level + 1])) for cell in corners]
        paint = svg.shade((level + 0.5) / _LEVELS)
        parts.append(
            svg.area([s for s in shapes if len(s) > 2], fill=paint).replace(
                "/>", f' stroke="{paint}" stroke-width="0.4"/>'
            )
        )
    rim = [line for cell in corners if len(line := _crossing(cell, limit)) == 2]
    parts += [svg.line(start, end, stroke="#ffffff", width=1.4) for start, end in rim]
    x, y = at(plane.center)
    parts += [
        svg.diamond(x, y, fill="#ffffff", radius=7.5),
        svg.diamond(x, y, fill=svg.GREEN, radius=5.5, hint="the center"),
    ]
    parts += [
        svg.text(left - 40, base + 14, f"all {svg.shortened(plane.corners[0], 120)}"),
        svg.text(left + side + 40, base + 14, f"all {svg.shortened(plane.corners[1], 120)}", anchor="end"),
        svg.text(left + side / 2, peak - 8, f"all {plane.corners[2]}", anchor="middle"),
    ]
    return parts + _shades(edges, base + 26, unit_label(around.study)), base + 62


def _shades(edges: Array, y: float, unit: str) -> list[str]:
    """Draw the key of the shades: equal areas of the triangle, so the steps are not equal."""
    parts, wide = [], 320.0 / _LEVELS
    for level in range(_LEVELS):
        parts.append(svg.box(20 + wide * level, y, wide, 9, fill=svg.shade((level + 0.5) / _LEVELS)))
    for level in range(0, _LEVELS + 1, 2):
        parts.append(svg.text(20 + wide * level, y + 20, f"{float(edges[level]):.3f}", anchor="middle", size=9))
    return [*parts, svg.text(180, y + 32, f"predicted objective, {unit}", anchor="middle", size=9)]


def _between(cell: Sequence[Corner], low: float, high: float) -> list[svg.Point]:
    """Return the part of a triangle whose values, linear inside, lie between two levels."""
    return [(x, y) for x, y, _ in _above([(x, y, -v) for x, y, v in _above(cell, low)], -high)]


def _above(shape: Sequence[Corner], level: float) -> list[Corner]:
    """Cut off the part of a convex shape below a level (Sutherland and Hodgman 1974)."""
    kept: list[Corner] = []
    for one, other in zip(shape, [*shape[1:], *shape[:1]], strict=True):
        if one[2] >= level:
            kept.append(one)
        if (one[2] >= level) != (other[2] >= level):
            kept.append(_on_edge(one, other, level))
    return kept


def _crossing(cell: Sequence[Corner], level: float) -> list[svg.Point]:
    """Return where the sides of a triangle cross a level: two points or none."""
    sides = zip(cell, [*cell[1:], *cell[:1]], strict=True)
    return [_on_edge(a, b, level)[:2] for a, b in sides if (a[2] >= level) != (b[2] >= level)]


def _on_edge(one: Corner, other: Corner, level: float) -> Corner:
    part = (level - one[2]) / (other[2] - one[2])
    return one[0] + part * (other[0] - one[0]), one[1] + part * (other[1] - one[1]), level


def _plane_sentence(around: WhatIf, plane: Triangle, mean: float, std: float) -> str:
    cells = plane.mean[np.array(plane.cells)].mean(axis=1)
    share = float((cells <= mean + std).mean())
    how = "flat" if share > 0.1 else "sharp"
    others = "" if len(around.center.domains) == 3 else " (the others in their recommended proportions)"
    text = (
        f"Of all mixtures of {plane.corners[0]}, {plane.corners[1]} and {plane.corners[2]}{others}, {100 * share:.0f} % are predicted "
        f"as good as this one within one standard deviation ({std:.4f}): the optimum is {how}."
    )
    lowest = int(plane.mean.argmin())
    if plane.mean[lowest] < mean - std:
        places = ", ".join(f"{c} {percent(float(w))}" for c, w in zip(plane.corners, plane.places[lowest], strict=True))
        text += f" Lower by more than that is {places}, perhaps outside the constraints."
    return text
