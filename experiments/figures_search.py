"""Figures of the search: what it measured at what cost, and which mixtures it tried."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.mixture import Array
from mixopt.observation import Role, Trial
from mixopt.service import RECOMMENDED
from mixopt.study import Study

from . import svg
from .comparison import compare, unit_label
from .drawing import Figure, Missing, percent, several, spaced

_MOST_POINTS = 400
_MOST_LINES = 240
_MOST_AXES = 14


@dataclass(frozen=True)
class Step:
    """One search trial in the order of the ledger.

    Attributes:
        trial: The trial.
        cost: Charge of all search trials so far, in runs of the top rung.
        value: Objective at the target rung, or None.
        best: Lowest objective so far, or None.
    """

    trial: Trial
    cost: float
    value: float | None
    best: float | None


def progress(study: Study) -> list[Step]:
    """Return the search trials in order, with what was spent and known after each."""
    history, target = study.history().of(Role.SEARCH), study.header.ladder.target.name
    values = {o.trial: study.value(o) for o in history.observations if o.fidelity == target}
    steps, spent, best = [], 0.0, None
    for trial in history.trials:
        spent += trial.price(study.header.ladder)
        value = values.get(trial.id)
        best = value if best is None else best if value is None else min(best, value)
        steps.append(Step(trial, spent, value, best))
    return steps


# --- convergence -------------------------------------------------------------


def convergence(study: Study) -> Figure | Missing:
    """Draw the measured objective over the cost spent, beside the recommended mixture and the baselines."""
    name, title, steps = "search", "The search", progress(study)
    if not steps:
        return Missing(name, title, "Left out: no search run was proposed yet.")
    sentence = _convergence_sentence(study, steps)
    rows = tuple(
        {
            "trial": s.trial.id, "rung": s.trial.fidelity, "status": str(s.trial.status), "cost_so_far": s.cost,
            "objective": s.value, "best_so_far": s.best,
        }
        for s in steps
    )  # fmt: skip
    points = [s for s in steps if s.value is not None]
    if not points:
        return Figure(name, title, sentence, "", sentence, rows)
    drawing, height = _draw_convergence(study, steps, points)
    alt = f"Measured objective over cost. {sentence}"
    return Figure(
        name, title, sentence, svg.document(drawing, height, name=name, title=title, description=alt), alt, rows
    )


def _draw_convergence(study: Study, steps: Sequence[Step], points: Sequence[Step]) -> tuple[list[str], float]:
    levels, ends = _levels(study), _recommended(study)
    keys = [
        svg.Key("measured at the target", svg.dot(0, 0, fill=svg.BLUE)),
        svg.Key("best so far", _dash(svg.BLUE, "")),
    ]
    keys += [svg.Key(f"{label}, measured", _dash(paint, dash)) for label, _, paint, dash in levels]
    if ends:
        keys.append(svg.Key("recommended: predicted, measured", svg.diamond(0, 0, fill=svg.GREEN)))
    if len(points) < len(steps):
        keys.append(svg.Key("cheaper or failed run", svg.line((0, -4), (0, 4), stroke=svg.GRAY, width=1.2)))
    head, top = svg.legend(keys)
    bottom, left, right = top + 170, 44.0, svg.WIDTH - 30
    values = (
        [s.value for s in points if s.value is not None]
        + [v for _, v, _, _ in levels]
        + [v for e in ends for v in e[:3]]
    )
    y = svg.Scale.around(values, bottom, top + 6)
    x = svg.Scale(0.0, max(steps[-1].cost, 1e-9) * 1.02, left, right)
    parts = [
        head,
        svg.x_axis(x, bottom, label="cost of the search so far, top-rung runs"),
        svg.y_axis(y, left, right=right),
    ]
    parts += [svg.line((left, y(v)), (right, y(v)), stroke=paint, width=1.2, dash=dash) for _, v, paint, dash in levels]
    parts.append(svg.polyline(_stairs(points, x, y, right), stroke=svg.BLUE, width=1.4))
    parts += [_point(s, x, y) for s in spaced(points, _MOST_POINTS)]
    cheap = [s for s in steps if s.value is None]
    parts += [
        svg.line((x(s.cost), bottom - 6), (x(s.cost), bottom), stroke=svg.GRAY) for s in spaced(cheap, _MOST_POINTS)
    ]
    for i, (low, middle, high, words) in enumerate(ends):
        place = right + 9 + 11 * i
        parts.append(svg.whisker(y(low), y(high), place, stroke=svg.GREEN, upright=True))
        parts.append(svg.diamond(place, y(middle), fill=svg.GREEN, hollow=not i, hint=words))
    return parts, bottom + 30


def _point(step: Step, x: svg.Scale, y: svg.Scale) -> str:
    assert step.value is not None
    return svg.dot(
        x(step.cost), y(step.value), fill=svg.BLUE, hint=f"{step.trial.id}: {step.value:.4f} at {step.cost:.2f}"
    )


def _stairs(points: Sequence[Step], x: svg.Scale, y: svg.Scale, right: float) -> list[svg.Point]:
    found: list[svg.Point] = []
    for s in points:
        assert s.best is not None
        if not found or y(s.best) != found[-1][1]:
            found += [(x(s.cost), found[-1][1])] if found else []
            found.append((x(s.cost), y(s.best)))
    return [*found, (right, found[-1][1])]


def _levels(study: Study) -> list[tuple[str, float, str, str]]:
    """Return (label, measured objective, color, dashes) of the baselines."""
    found = [c for c in compare(study) if c.column == "objective" and c.label != RECOMMENDED and c.mean is not None]
    paints = (svg.ORANGE, svg.GRAY, svg.PURPLE, svg.RED)
    return [(c.label, float(c.mean or 0), paints[i % 4], f"{5 - i % 3} {2 + i % 3}") for i, c in enumerate(found)]


def _recommended(study: Study) -> list[tuple[float, float, float, str]]:
    """Return (low, middle, high, words) of what was predicted and measured for the recommended mixture."""
    advice, found = study.recommendation, []
    if advice is not None and "objective" in advice.mean:
        mean, std = advice.mean["objective"], advice.std.get("objective", 0.0)
        found.append((mean - std, mean, mean + std, f"predicted {mean:.4f} ± {std:.4f}"))
    own = next((c for c in compare(study) if c.column == "objective" and c.label == RECOMMENDED), None)
    if own is not None and own.mean is not None:
        spread = own.spread or 0.0
        found.append((own.mean - spread, own.mean, own.mean + spread, f"measured {own.mean:.4f} ± {spread:.4f}"))
    return found


def _dash(paint: str, dash: str) -> str:
    return svg.line((-7, 0), (7, 0), stroke=paint, width=1.4, dash=dash)


def _convergence_sentence(study: Study, steps: Sequence[Step]) -> str:
    points, unit = [s for s in steps if s.value is not None], unit_label(study)
    if not points:
        return f"None of {several(len(steps), 'search run')} has reached the target rung yet."
    best = points[-1].best
    first = next(s for s in points if s.value == best)
    limit = "" if math.isinf(study.header.budget) else f" of {study.header.budget:g}"
    text = (
        f"The best of {several(len(points), 'search run')} measured at the target rung has {best:.4f} {unit} ({first.trial.id}), reached after "
        f"{first.cost:.2f}{limit} top-rung runs; {several(len(steps) - len(points), 'further run')} were cheaper, failed or are unfinished."
    )
    after = [s for s in points if s.cost > first.cost]
    if len(after) >= len(points) / 2:
        text += f" The {several(len(after), 'later target run')} found nothing better; the best of noisy runs is also the luckiest."
    return text


# --- all trials --------------------------------------------------------------


def parallel_coordinates(study: Study) -> Figure | Missing:
    """Draw every search trial as a line through its weights, one row per domain, the best ones on top."""
    name, title, steps = "trials", "All mixtures tried", progress(study)
    names = study.header.domain_names
    if len(steps) < 2 or len(names) < 2:
        return Missing(name, title, "Left out: fewer than two mixtures were tried yet.")
    weights = np.array([s.trial.mixture.over(names).weights for s in steps])
    rows = tuple(
        {
            "trial": s.trial.id,
            "rung": s.trial.fidelity,
            "objective": s.value,
            **dict(zip(names, map(float, w), strict=True)),
        }
        for s, w in zip(steps, weights, strict=True)
    )
    best = _best_places(steps)
    axes = _axes(study, weights)
    values, labels = _grouped(weights, axes, names)
    own = None if study.recommendation is None else study.recommendation.mixture.over(names).weights
    drawing, height = _draw_lines(
        steps, values, labels, best=best, own=None if own is None else _grouped(own[None], axes, names)[0][0]
    )
    sentence = _lines_sentence(values, labels, best, steps)
    hidden = max(0, len(steps) - _MOST_LINES)
    sentence += f" Drawn are {_MOST_LINES} of {len(steps)} trials." if hidden else ""
    alt = f"One line per trial through its weights. {sentence}"
    return Figure(
        name, title, sentence, svg.document(drawing, height, name=name, title=title, description=alt), alt, rows
    )


def _best_places(steps: Sequence[Step]) -> list[int]:
    """Return the places of the best tenth at the target rung, at least three where there are as many."""
    known = sorted((s.value, i) for i, s in enumerate(steps) if s.value is not None)
    return [i for _, i in known[: max(3, len(known) // 10)]]


def _axes(study: Study, weights: Array) -> list[int]:
    """Return the places of the domains that get a row of their own, in the study's order."""
    if weights.shape[1] <= _MOST_AXES:
        return list(range(weights.shape[1]))
    size = (
        weights.max(axis=0)
        if study.recommendation is None
        else study.recommendation.mixture.over(study.header.domain_names).weights
    )
    return sorted(np.argsort(-size)[: _MOST_AXES - 1].tolist())


def _grouped(weights: Array, axes: Sequence[int], names: Sequence[str]) -> tuple[Array, list[str]]:
    """Return (N, A) shares of the rows' domains, the sum of all others last."""
    labels = [names[i] for i in axes]
    values = weights[:, list(axes)]
    if len(axes) == weights.shape[1]:
        return values, labels
    rest = 1 - values.sum(axis=1, keepdims=True)
    return np.hstack([values, rest]), [*labels, f"{weights.shape[1] - len(axes)} others"]


def _draw_lines(
    steps: Sequence[Step], values: Array, labels: Sequence[str], *, best: Sequence[int], own: Array | None
) -> tuple[list[str], float]:
    cheap = [i for i, s in enumerate(steps) if s.value is None]
    others = [i for i, s in enumerate(steps) if s.value is not None and i not in set(best)]
    keys = [svg.Key(f"best {len(best)}", _dash(svg.BLUE, ""))] if best else []
    keys += [svg.Key("other target runs", _dash(svg.ORANGE, ""))] if others else []
    keys += [svg.Key("cheaper, failed or unfinished", _dash(svg.GRAY, "3 2"))] if cheap else []
    keys += [] if own is None else [svg.Key("recommended", svg.diamond(0, 0, fill=svg.GREEN))]
    head, top = svg.legend(keys)
    left = min(100.0, max(svg.width_of(label) for label in labels) + 8)
    x = svg.Scale(0.0, 100 * max(float(values.max()), 0.01), left, svg.WIDTH - 12)
    heights = [top + 12 + 24 * i for i in range(len(labels))]
    parts = [head, svg.x_axis(x, heights[-1] + 12, label="share of training tokens, %", top=top + 4)]
    for label, y in zip(labels, heights, strict=True):
        parts.append(svg.text(left - 6, y + 3.5, svg.shortened(label, left - 8), anchor="end"))
        parts.append(svg.polyline([(left, y), (x.end, y)], stroke=svg.INK, width=0.5, opacity=0.3))
    for chosen, paint, faint, dash in (
        (cheap, svg.GRAY, 0.5, "3 2"),
        (others, svg.ORANGE, 0.55, ""),
        (list(best), svg.BLUE, 1.0, ""),
    ):
        for i in spaced(chosen, _MOST_LINES // 3):
            line = [(x(100 * float(v)), y) for v, y in zip(values[i], heights, strict=True)]
            value = steps[i].value
            said = f"{steps[i].trial.id} at {steps[i].trial.fidelity}" + ("" if value is None else f": {value:.4f}")
            parts.append(
                svg.polyline(line, stroke=paint, width=1.1 if faint < 1 else 1.6, opacity=faint, dash=dash, hint=said)
            )
    if own is not None:
        parts += [
            svg.diamond(x(100 * float(v)), y, fill=svg.GREEN, hint=f"recommended: {100 * v:.1f} %")
            for v, y in zip(own, heights, strict=True)
        ]
    return parts, heights[-1] + 42


def _lines_sentence(values: Array, labels: Sequence[str], best: Sequence[int], steps: Sequence[Step]) -> str:
    num = sum(s.value is not None for s in steps)
    if num < 2 * len(best) or len(best) < 3:
        return f"{several(len(steps), 'mixture')} were tried, {num} of them at the target rung: too few to say what the best have in common."
    part = values[list(best)]
    tight = int((np.ptp(part, axis=0) / np.maximum(np.ptp(values, axis=0), 1e-9) + (part.mean(axis=0) < 0.02)).argmin())
    loose = int(np.ptp(part, axis=0).argmax())

    def span(place: int) -> str:
        return f"{labels[place]} ({percent(float(part[:, place].min()))} to {percent(float(part[:, place].max()))})"

    return (
        f"Of {several(len(steps), 'mixture')} tried, {num} at the target rung, the best {len(best)} agree most on {span(tight)}, beside "
        f"{percent(float(values[:, tight].min()))} to {percent(float(values[:, tight].max()))} over all, and differ most on {span(loose)}."
    )
