"""Figures of a study: functions from a ledger to an SVG and one sentence about it.

Each SVG is meant to stand inside a page: no background, text and axes in the page's
own color, data in colors that read on light and dark. Equal ledgers give equal text.
A figure whose data do not exist yet is None.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib import figure as mpl_figure

from mixopt.mixture import Mixture
from mixopt.observation import Role
from mixopt.service import RECOMMENDED

from .comparison import Comparison, compare, contenders, costs, measured, unit_factor, unit_label
from .report import gain_sentences

if TYPE_CHECKING:
    from mixopt.study import Study

_PAGE = "#010203"  # stands for the page's text color until the SVG is written
_COLORS = ("#2f7ed8", "#d97b1f", "#7f8790", "#3f9e6b", "#a463c2", "#c2516b")  # contrast >= 3 on white and on #14171a
_WIDTH = 5.2  # inches; drawn about life-size on a phone
_MOST_PANELS = 11
_MOST_CELL_NUMBERS = 12
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mixopt",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _PAGE,
    "axes.labelcolor": _PAGE,
    "axes.edgecolor": _PAGE,
    "axes.linewidth": 0.6,
    "axes.titlecolor": _PAGE,
    "axes.unicode_minus": True,
    "xtick.color": _PAGE,
    "ytick.color": _PAGE,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@dataclass(frozen=True)
class Figure:
    """One drawing and what it shows.

    Attributes:
        title: Short heading.
        sentence: What the data say, computed from them.
        svg: The drawing, for use inside an HTML page.
        alt: Description for those who do not see it.
    """

    title: str
    sentence: str
    svg: str
    alt: str


def all_figures(study: Study) -> list[Figure]:
    """Return every figure the study has data for, in the order of a report."""
    makers = (mixture_bars, predicted_and_measured, convergence, expert_losses, compute)
    return [figure for maker in makers if (figure := maker(study)) is not None]


# --- the figures -------------------------------------------------------------


def mixture_bars(study: Study) -> Figure | None:
    """Draw the recommended weights beside the natural and uniform mixture."""
    advice = study.recommendation
    if advice is None:
        return None
    names = study.header.domain_names
    mixtures = {
        RECOMMENDED: advice.mixture,
        "natural": Mixture.natural(study.header.domains),
        "uniform": Mixture.uniform(names),
    } | {c.label: c.mixture for c in contenders(study) if c.label != RECOMMENDED}
    rows, height = np.arange(len(names)), 0.8 / len(mixtures)
    with mpl.rc_context(_STYLE):
        figure = _blank(0.9 + 0.16 * len(names) * (len(mixtures) + 1))
        axes = figure.add_subplot()
        for i, (label, mixture) in enumerate(mixtures.items()):
            axes.barh(
                rows + (i - (len(mixtures) - 1) / 2) * height,
                100 * mixture.weights,
                0.9 * height,
                color=_color(i),
                label=label,
            )
        axes.set_yticks(rows, names)
        axes.invert_yaxis()
        axes.set_xlabel("share of training tokens, %")
        _legend(figure, axes, len(mixtures))
        svg = _svg(figure, "mixture")
    sentence = _shift_sentence(advice.mixture, mixtures["natural"])
    weights = ", ".join(f"{name} {100 * w:.0f} %" for name, w in advice.mixture.as_dict().items())
    return Figure("The mixture", sentence, svg, f"Bars of mixture weights per domain. Recommended: {weights}.")


def predicted_and_measured(study: Study) -> Figure | None:
    """Draw what was predicted for each contender beside what its validation runs showed."""
    comparisons = compare(study)
    if not comparisons:
        return None
    columns = list(dict.fromkeys(c.column for c in comparisons))[: 1 + _MOST_PANELS]
    labels = list(dict.fromkeys(c.label for c in comparisons))
    points = {c.label: measured(study, c) for c in contenders(study)}
    with mpl.rc_context(_STYLE):
        lines = -(-len(columns) // 2)
        figure = _blank(0.6 + lines * (0.55 + 0.24 * len(labels)))
        grid = figure.subplots(lines, min(2, len(columns)), squeeze=False, sharey=True)
        for axes in grid.flat[len(columns) :]:
            axes.set_visible(False)
        for axes, column in zip(grid.flat, columns, strict=False):
            _draw_comparison(axes, [c for c in comparisons if c.column == column], points, column)
        grid.flat[0].set_yticks(range(len(labels)), labels)
        grid.flat[0].set_ylim(len(labels) - 0.5, -0.5)
        _legend(figure, grid.flat[0], 3)
        svg = _svg(figure, "validation")
    return Figure(
        "Predicted and measured",
        _validation_sentence(study, comparisons),
        svg,
        "Per column and contender: " + _comparison_words([c for c in comparisons if c.column == "objective"]),
    )


def convergence(study: Study) -> Figure | None:
    """Draw the measured objective over the cost spent, in the order of the ledger."""
    points, cheap, best = _progress(study)
    if not points and not cheap:
        return None
    unit, budget = unit_label(study), study.header.budget
    with mpl.rc_context(_STYLE):
        figure = _blank(2.9)
        axes = figure.add_subplot()
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, "o", color=_color(0), markersize=5, label="measured at the target rung")
            axes.step(x, best, where="post", color=_color(0), linewidth=1.2, label="best so far")
        if cheap:
            axes.plot(
                cheap, [0.015] * len(cheap), "|", color=_color(2), markersize=9,
                transform=axes.get_xaxis_transform(), label="cheaper or failed run",
            )  # fmt: skip
        for i, contender in enumerate(contenders(study)):
            if "objective" in contender.mean:
                axes.axhline(
                    contender.mean["objective"], linestyle=(0, (4, 2 + i)), linewidth=1,
                    color=_color(i), label=f"predicted {contender.label}",
                )  # fmt: skip
        axes.set_xlabel("cost spent by the search, top-rung runs")
        axes.set_ylabel(f"objective, {unit}")
        axes.set_xlim(left=0)
        _legend(figure, axes, 2)
        svg = _svg(figure, "convergence")
    sentence = _convergence_sentence(points, best, num_all=len(points) + len(cheap), unit=unit, budget=budget)
    return Figure("The search", sentence, svg, f"Measured objective over cost. {sentence}")


def expert_losses(study: Study) -> Figure | None:
    """Draw a heat map of every data expert's loss on every evaluation set."""
    names, sets, table = _expert_table(study)
    if table.size == 0:
        return None
    spread = table - table.min(axis=1, keepdims=True)
    scaled = spread / np.where(spread.max(axis=1, keepdims=True) > 0, spread.max(axis=1, keepdims=True), 1.0)
    with mpl.rc_context(_STYLE):
        figure = _blank(1.1 + 0.26 * len(sets))
        axes = figure.add_subplot()
        colors = mpl.colormaps["YlGnBu_r"]
        axes.pcolormesh(np.arange(len(names) + 1), np.arange(len(sets) + 1), scaled, cmap=colors, vmin=-0.1, vmax=1.1)
        if len(names) <= _MOST_CELL_NUMBERS:
            for (row, column), value in np.ndenumerate(table):
                ink = "#ffffff" if scaled[row, column] < 0.45 else "#111111"
                axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=7.5)
        axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=40, ha="right")
        axes.set_yticks(np.arange(len(sets)) + 0.5, sets)
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("data expert, trained on")
        axes.set_ylabel("evaluation set")
        svg = _svg(figure, "experts")
    sentence = _expert_sentence(names, sets, table, unit_label(study))
    return Figure("Data experts", sentence, svg, f"Heat map of losses, darker is lower within a row. {sentence}")


def compute(study: Study) -> Figure | None:
    """Draw what each phase was charged and how many CPU seconds it took."""
    phases = costs(study)
    if not phases:
        return None
    panels = (
        ("cost, top-rung runs", [p.cost for p in phases]),
        ("CPU minutes", [p.process_seconds / 60 for p in phases]),
    )
    with mpl.rc_context(_STYLE):
        figure = _blank(0.7 + 0.3 * len(phases))
        grid = figure.subplots(1, 2, sharey=True)
        for axes, (title, values) in zip(grid, panels, strict=True):
            bars = axes.barh([p.role for p in phases], values, 0.6, color=_color(0))
            axes.bar_label(bars, fmt="%.3g", padding=2)
            axes.margins(x=0.2)
            axes.set_xlabel(title)
        grid[0].invert_yaxis()
        svg = _svg(figure, "compute")
    total, seconds = sum(p.cost for p in phases), sum(p.process_seconds for p in phases)
    parts = ", ".join(f"{p.role} {p.cost:.2f} ({p.num_trials} runs)" for p in phases)
    share = max(phases, key=lambda p: p.process_seconds)
    sentence = f"In all {total:.2f} top-rung runs were charged: {parts}."
    if seconds:
        sentence += f" Of {seconds / 60:.1f} CPU minutes, {100 * share.process_seconds / seconds:.0f} % went to the {share.role} phase."
    return Figure("Where the compute went", sentence, svg, f"Bars per phase. {sentence}")


# --- sentences and numbers ---------------------------------------------------


def _shift_sentence(mixture: Mixture, natural: Mixture) -> str:
    moves = sorted((w - natural.as_dict()[name], name) for name, w in mixture.as_dict().items())
    (least, down), (most, up) = moves[0], moves[-1]
    if mixture.distance(natural) < 0.005:
        return "The recommended mixture is the natural one, within half a percent of the tokens."
    return (
        f"Beside the natural mixture, the recommendation moves {100 * mixture.distance(natural):.0f} % of the tokens: "
        f"most to {up} ({100 * most:+.0f} points), most from {down} ({100 * least:+.0f} points)."
    )


def _validation_sentence(study: Study, comparisons: Sequence[Comparison]) -> str:
    both = [c for c in comparisons if c.mean is not None and c.predicted_mean is not None and c.predicted_std]
    sentences = gain_sentences(study, comparisons)
    if both:
        inside = sum(abs((c.mean or 0) - (c.predicted_mean or 0)) <= 2 * (c.predicted_std or 0) for c in both)
        sentences.append(
            f"{inside} of {len(both)} measured means lie within two standard deviations of their prediction."
        )
    num_columns = len(dict.fromkeys(c.column for c in comparisons))
    if num_columns > 1 + _MOST_PANELS:
        sentences.append(f"Drawn are {1 + _MOST_PANELS} of {num_columns} columns.")
    return " ".join(sentences)


def _comparison_words(comparisons: Sequence[Comparison]) -> str:
    return "; ".join(f"{c.label} predicted {_word(c.predicted_mean)}, measured {_word(c.mean)}" for c in comparisons)


def _word(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _progress(study: Study) -> tuple[list[tuple[float, float]], list[float], list[float]]:
    """Return (cost so far, objective) at the target rung, cost so far of other trials, and the running best."""
    history, target = study.history().of(Role.SEARCH), study.header.ladder.target.name
    values = {o.trial: study.value(o) for o in history.observations if o.fidelity == target}
    points: list[tuple[float, float]] = []
    others, spent = [], 0.0
    for trial in history.trials:
        spent += trial.price(study.header.ladder)
        value = values.get(trial.id)
        if value is None:
            others.append(spent)
        else:
            points.append((spent, value))
    best = list(np.minimum.accumulate([value for _, value in points])) if points else []
    return points, others, best


def _convergence_sentence(
    points: Sequence[tuple[float, float]], best: Sequence[float], *, num_all: int, unit: str, budget: float
) -> str:
    if not points:
        return f"None of {num_all} search runs has reached the target rung yet."
    first = next(cost for (cost, _), value in zip(points, best, strict=True) if value == best[-1])
    return (
        f"The best of {len(points)} search runs measured at the target rung has {best[-1]:.4f} {unit}, reached after "
        f"{first:.2f} of {budget:g} top-rung runs; {num_all - len(points)} further runs were cheaper, failed or are unfinished."
    )


def _expert_table(study: Study) -> tuple[list[str], list[str], Any]:
    """Return domains, evaluation sets and (sets, domains) losses where every expert has been scored."""
    history, rung = study.history().of(Role.EXPERT), study.header.experts_fidelity
    labels = {trial.id: trial.label for trial in history.trials}
    losses = {labels[o.trial]: o.losses for o in history.observations if o.fidelity == rung}
    names = [name for name in study.header.domain_names if name in losses]
    sets = [s.name for s in study.header.eval_sets if names and all(s.name in losses[name] for name in names)]
    table = [[losses[name][s] * unit_factor(study, f"loss/{s}") for name in names] for s in sets]
    return names, sets, np.array(table)


def _expert_sentence(names: Sequence[str], sets: Sequence[str], table: Any, unit: str) -> str:
    spread = table.max(axis=1) - table.min(axis=1)
    most, least = int(spread.argmax()), int(spread.argmin())
    best = names[int(table[most].argmin())]
    text = (
        f"The experts differ most on {sets[most]} (by {spread[most]:.2f} {unit}; {best} is best), "
        f"least on {sets[least]} (by {spread[least]:.2f})."
    )
    wins = {name: int((table.argmin(axis=1) == i).sum()) for i, name in enumerate(names)}
    leader = max(wins, key=lambda name: wins[name])
    return f"{text} {leader} has the lowest loss on {wins[leader]} of {len(sets)} sets."


# --- drawing -----------------------------------------------------------------


def _blank(height: float) -> Any:
    return mpl_figure.Figure(figsize=(_WIDTH, height), layout="constrained")


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]


def _legend(figure: Any, axes: Any, num_columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(num_columns, 3))


def _draw_comparison(axes: Any, comparisons: Sequence[Comparison], points: Any, column: str) -> None:
    for row, c in enumerate(comparisons):
        first = row == 0
        if c.predicted_mean is not None:
            axes.errorbar(
                c.predicted_mean, row - 0.17, xerr=c.predicted_std, fmt="D", markersize=4, markerfacecolor="none",
                color=_color(1), elinewidth=1, capsize=2, label="predicted ± std" if first else None,
            )  # fmt: skip
        seeds = list(points[c.label].get(column, {}).values())
        axes.plot(
            seeds,
            [row + 0.17] * len(seeds),
            ".",
            color=_color(0),
            markersize=4,
            alpha=0.6,
            label="one seed" if first else None,
        )
        if c.mean is not None:
            axes.errorbar(
                c.mean, row + 0.17, xerr=c.spread, fmt="o", markersize=4, color=_color(0), elinewidth=1, capsize=2,
                label="measured ± spread" if first else None,
            )  # fmt: skip
    axes.set_title(column, loc="left")
    axes.locator_params(axis="x", nbins=4)
    axes.margins(x=0.08)


def _svg(figure: Any, name: str) -> str:
    """Return the drawing as SVG without namespaces, size, unused ids and fixed text color."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    text = re.sub(r"(font(?:-family)?: [^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1system-ui, sans-serif", text)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    return re.sub(r"\n\s*\n", "\n", text.replace(_PAGE, "currentColor")).strip()
