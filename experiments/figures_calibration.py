"""The figure of calibration: runs beside what the surrogate predicts of them from all other runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from . import svg
from .comparison import Comparison, compare, unit_label
from .drawing import Figure, Missing, Row, several
from .held_out import LeftOut
from .whatif import NORMAL_90, WhatIf

_FEWEST_LEFT_OUT = 3
_NORMAL_68 = 1.0


def calibration(around: WhatIf) -> Figure | Missing:
    """Draw runs beside what the surrogate predicts of them from all other runs, and validation runs."""
    name, title = "calibration", "Was the surrogate right"
    left_out, fresh = around.left_out, _fresh(around)
    if len(left_out) < _FEWEST_LEFT_OUT:
        return Missing(
            name,
            title,
            f"Left out: {several(len(left_out), 'search run')} can be predicted from others so far, too few.",
        )
    noise, freedom = around.noise
    rows: list[Row] = [_left_out_row(o, noise) for o in left_out]
    rows += [
        {
            "trial": c.label,
            "kind": "validation, mean over seeds",
            "measured": c.mean,
            "mean": c.predicted_mean,
            "std": c.predicted_std,
        }
        for c in fresh
    ]
    drawing, height = _scatter(left_out, fresh, noise, unit_label(around.study))
    sentence = _calibration_sentence(left_out, fresh, noise, freedom) + around.thinned
    alt = f"Measured over predicted objective. {sentence}"
    return Figure(
        name, title, sentence, svg.document(drawing, height, name=name, title=title, description=alt), alt, tuple(rows)
    )


def _left_out_row(run: LeftOut, noise: float) -> Row:
    total = math.hypot(run.std, noise)
    return {
        "trial": run.trial, "kind": "left out", "measured": run.measured, "mean": run.mean, "std": run.std,
        "std_with_noise": total, "z": (run.measured - run.mean) / total,
    }  # fmt: skip


def _fresh(around: WhatIf) -> list[Comparison]:
    """Return the contenders' objectives that were predicted before they were measured."""
    found = [c for c in compare(around.study) if c.column == "objective" and c.mean is not None]
    return [c for c in found if c.predicted_mean is not None and c.predicted_std is not None]


def _scatter(
    left_out: Sequence[LeftOut], fresh: Sequence[Comparison], noise: float, unit: str
) -> tuple[list[str], float]:
    keys = [svg.Key("left-out run, 90% interval", svg.dot(0, 0, fill=svg.BLUE))]
    keys += [svg.Key("validation, mean", svg.diamond(0, 0, fill=svg.ORANGE))] if fresh else []
    head, top = svg.legend([*keys, svg.Key("as predicted", svg.line((-7, 5), (7, -5), stroke=svg.GRAY, dash="3 2"))])
    points = [(o.mean, NORMAL_90 * math.hypot(o.std, noise), o.measured) for o in left_out]
    marks = [(float(c.predicted_mean or 0), NORMAL_90 * float(c.predicted_std or 0), float(c.mean or 0)) for c in fresh]
    x = svg.Scale.around([v for m, e, _ in points + marks for v in (m - e, m + e)], 46.0, svg.WIDTH - 10)
    y = svg.Scale.around([v for _, _, v in points + marks], top + 216, top + 20)
    parts = [
        head, svg.text(2, top + 12, f"measured, {unit}", size=9.5), svg.x_axis(x, y.start, label=f"predicted, {unit}", top=y.end),
        svg.y_axis(y, x.start, right=x.end),
    ]  # fmt: skip
    low, high = max(x.low, y.low), min(x.high, y.high)
    if low < high:
        parts.append(svg.line((x(low), y(low)), (x(high), y(high)), stroke=svg.GRAY, dash="3 2"))
    for run, (mean, error, value) in zip(left_out, points, strict=True):
        parts.append(
            svg.polyline(
                [(x(mean - error), y(value)), (x(mean + error), y(value))], stroke=svg.BLUE, width=1, opacity=0.6
            )
        )
        parts.append(
            svg.dot(x(mean), y(value), fill=svg.BLUE, hint=f"{run.trial}: predicted {mean:.4f}, measured {value:.4f}")
        )
    for c, (mean, error, value) in zip(fresh, marks, strict=True):
        parts.append(svg.line((x(mean - error), y(value)), (x(mean + error), y(value)), stroke=svg.ORANGE))
        parts.append(
            svg.diamond(
                x(mean), y(value), fill=svg.ORANGE, hint=f"{c.label}: predicted {mean:.4f}, measured {value:.4f}"
            )
        )
    return parts, y.start + 30


def _calibration_sentence(left_out: Sequence[LeftOut], fresh: Sequence[Comparison], noise: float, freedom: int) -> str:
    scores = [abs(o.measured - o.mean) / math.hypot(o.std, noise) for o in left_out]
    num, wide, narrow = len(scores), sum(z <= NORMAL_90 for z in scores), sum(z <= _NORMAL_68 for z in scores)
    error = math.sqrt(float(np.mean([(o.measured - o.mean) ** 2 for o in left_out])))
    spread = float(np.std([o.measured for o in left_out])) * num / (num - 1)
    verdict = _coverage(wide, num)
    known = (
        f", with the noise of a run ({noise:.4f}, {several(freedom, 'degree')} of freedom)"
        if noise
        else "; the noise of a run is not known, so they are too narrow for single runs"
    )
    text = (
        f"Predicted from all other mixtures, {wide} of {num} left-out runs lie within their 90% interval and {narrow} within one standard deviation{known}: {verdict}. "
        f"The error is {error:.4f}, beside {spread:.4f} for the mean of the others"
    )
    text += "." if error < spread else ", so near the optimum the surrogate ranks no better than chance."
    if fresh:
        inside = sum(
            abs(float(c.mean or 0) - float(c.predicted_mean or 0))
            <= NORMAL_90 * math.hypot(float(c.predicted_std or 0), noise / math.sqrt(c.num_seeds))
            for c in fresh
        )
        text += f" Of {several(len(fresh), 'contender')} trained on fresh seeds, {inside} lie within."
    return text


def _coverage(inside: int, num: int) -> str:
    """Say whether so many of `num` in 90% intervals is usual: within the central 95% of the binomial."""
    from scipy.stats import binom

    low, high = (int(binom.ppf(q, num, 0.9)) for q in (0.025, 0.975))
    if inside < low:
        return f"fewer than the {low} to {high} that right intervals would show, so it is too sure of itself"
    if inside > high:
        return f"more than the {low} to {high} that right intervals would show, so it is too careful"
    return f"as right intervals would show ({low} to {high})"
