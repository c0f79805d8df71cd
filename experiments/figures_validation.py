"""The figure of the validation runs: what was predicted for each contender, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from mixopt.study import Study

from . import svg
from .comparison import Comparison, compare, contenders, measured
from .drawing import Figure, Missing
from .sentences import gain_sentences

_MOST_PANELS = 6


def predicted_and_measured(study: Study) -> Figure | Missing:
    """Draw what was predicted for each contender beside what its validation runs showed."""
    name, title, comparisons = "validation", "Predicted and measured", compare(study)
    if not any(c.mean is not None or c.predicted_mean is not None for c in comparisons):
        why = "the runs of this study are trained elsewhere" if study.header.external else "nothing was validated yet"
        return Missing(name, title, f"Left out: {why}.")
    columns = list(dict.fromkeys(c.column for c in comparisons))
    keys = [
        svg.Key("predicted ± std", svg.diamond(0, 0, fill=svg.ORANGE, hollow=True)),
        svg.Key("measured ± spread", svg.dot(0, 0, fill=svg.BLUE, radius=3.5)),
        svg.Key("one seed", svg.dot(0, 0, fill=svg.BLUE, radius=1.8, opacity=0.6)),
    ]
    head, y = svg.legend(keys)
    parts, y = [head], y + 4
    points = {c.label: measured(study, c) for c in contenders(study)}
    for column in columns[:_MOST_PANELS]:
        drawn, y = _panel([c for c in comparisons if c.column == column], points, y)
        parts += drawn
    sentence = _validation_sentence(study, comparisons, columns)
    alt = "Per contender: " + "; ".join(
        f"{c.label} predicted {_word(c.predicted_mean)}, measured {_word(c.mean)}"
        for c in comparisons
        if c.column == "objective"
    )
    rows = tuple(vars(c) for c in comparisons)
    return Figure(name, title, sentence, svg.document(parts, y, name=name, title=title, description=alt), alt, rows)


def _panel(
    comparisons: Sequence[Comparison], points: dict[str, dict[str, dict[int, float]]], top: float
) -> tuple[list[str], float]:
    """Draw one column: a row per contender."""
    column, left, right = comparisons[0].column, 90.0, svg.WIDTH - 12
    ends = [v for c in comparisons for v in _ends(c.mean, c.spread) + _ends(c.predicted_mean, c.predicted_std)]
    scale = svg.Scale.around(ends, left, right)
    bottom = top + 18 + 20 * len(comparisons)
    parts = [
        svg.text(2, top + 10, column, size=10.5, extra=' font-weight="600"'),
        svg.x_axis(scale, bottom, top=top + 16, most=4),
    ]
    for i, c in enumerate(comparisons):
        y = top + 26 + 20 * i
        parts.append(svg.text(left - 6, y + 3, svg.shortened(c.label, left - 8), anchor="end"))
        if c.predicted_mean is not None:
            said = f"predicted {c.predicted_mean:.4f}"
            parts.append(_interval(scale, c.predicted_mean, c.predicted_std, y - 4, svg.ORANGE))
            parts.append(svg.diamond(scale(c.predicted_mean), y - 4, fill=svg.ORANGE, hollow=True, hint=said))
        parts += [
            svg.dot(scale(v), y + 4, fill=svg.BLUE, radius=1.8, opacity=0.6)
            for v in points[c.label].get(column, {}).values()
        ]
        if c.mean is not None:
            parts.append(_interval(scale, c.mean, c.spread, y + 4, svg.BLUE))
            parts.append(svg.dot(scale(c.mean), y + 4, fill=svg.BLUE, radius=3.2, hint=f"measured {c.mean:.4f}"))
    return parts, bottom + 24


def _interval(scale: svg.Scale, mean: float, error: float | None, y: float, stroke: str) -> str:
    return svg.whisker(scale(mean - error), scale(mean + error), y, stroke=stroke) if error else ""


def _ends(mean: float | None, error: float | None) -> list[float]:
    return [] if mean is None else [mean - (error or 0.0), mean + (error or 0.0)]


def _validation_sentence(study: Study, comparisons: Sequence[Comparison], columns: Sequence[str]) -> str:
    both = [c for c in comparisons if c.mean is not None and c.predicted_mean is not None and c.predicted_std]
    sentences = gain_sentences(study, comparisons)
    if both:
        inside = sum(abs((c.mean or 0) - (c.predicted_mean or 0)) <= 2 * (c.predicted_std or 0) for c in both)
        sentences.append(
            f"{inside} of {len(both)} measured means lie within two standard deviations of their prediction."
        )
    if len(columns) > _MOST_PANELS:
        sentences.append(f"Drawn are {_MOST_PANELS} of {len(columns)} columns.")
    return " ".join(sentences)


def _word(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
