"""Figures of a study: every one a function of the study, the same for report and notebooks.

    all_figures(study, optimizer)            every figure, or why it is left out, in the order of a report
    mixture_bars(study), convergence(study)  those that need the study only
    response_curves(WhatIf.of(study, ...))   those that ask the study's surrogate

Here are the mixture and the cost; the others are in `figures_*.py`. Equal ledgers give equal text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mixopt.mixture import Mixture
from mixopt.protocols import Optimizer
from mixopt.study import Study

from . import svg
from .comparison import costs
from .drawing import Figure, Missing, Row, listed, percent, several
from .figures_calibration import calibration
from .figures_domains import expert_losses, marginal_effects, redundancy
from .figures_model import objective_around, response_curves
from .figures_search import convergence, parallel_coordinates
from .figures_tradeoffs import trade_offs
from .figures_validation import predicted_and_measured
from .sentences import in_time, mixture_rows, natural_of, target_tokens_of
from .whatif import WhatIf

__all__ = [
    "all_figures",
    "calibration",
    "compute",
    "convergence",
    "expert_losses",
    "marginal_effects",
    "mixture_bars",
    "objective_around",
    "parallel_coordinates",
    "predicted_and_measured",
    "redundancy",
    "response_curves",
    "trade_offs",
]

_MOST_BARS = 24
_ASKING: tuple[tuple[str, str, Callable[[WhatIf], Figure | Missing]], ...] = (
    ("responses", "What each domain does", response_curves),
    ("around", "Around the optimum", objective_around),
    ("calibration", "Was the surrogate right", calibration),
    ("effects", "What a little more of a domain does", marginal_effects),
)


def all_figures(study: Study, optimizer: Optimizer | None = None) -> tuple[Figure | Missing, ...]:
    """Return every figure, or why it is left out.

    Args:
        study: The study, finished or not.
        optimizer: Its optimizer, for the figures that ask the surrogate.
    """
    known = WhatIf.of(study, optimizer)
    around = known if isinstance(known, WhatIf) else None
    asking = [
        maker(known) if isinstance(known, WhatIf) else Missing(name, title, f"Left out: {known}.")
        for name, title, maker in _ASKING
    ]
    return (
        mixture_bars(study, around),
        predicted_and_measured(study),
        *asking,
        compute(study),
        *(maker(study) for maker in (convergence, parallel_coordinates, trade_offs, expert_losses, redundancy)),
    )


# --- the mixture -------------------------------------------------------------


def mixture_bars(study: Study, around: WhatIf | None = None) -> Figure | Missing:
    """Draw the recommended weights with what may move, beside natural and uniform, and the passes over each text.

    Args:
        study: The study.
        around: If given, weights get intervals: how far each may move alone before the
            predicted objective rises by one standard deviation.
    """
    name, title, advice = "mixture", "The mixture", study.recommendation
    if advice is None:
        return Missing(name, title, "Left out: no mixture is recommended yet.")
    near = {c.domain: c.near for c in around.curves} if around and study.recommendation else {}
    rows: list[Row] = [
        {**row, "low": near.get(row["domain"], (None, None))[0], "high": near.get(row["domain"], (None, None))[1]}
        for row in mixture_rows(study, target_tokens_of(study))
    ]
    shown = sorted(rows, key=lambda row: -row["recommended"])
    rest = shown[_MOST_BARS:] if len(shown) > _MOST_BARS + 1 else []
    shown = [*shown[:_MOST_BARS], _summed(rest)] if rest else shown
    drawing, height = _bars(study, shown)
    sentence = _shift_sentence(study, advice.mixture) + _interval_sentence(around, near) + _rest_sentence(rest)
    weights = ", ".join(f"{row['domain']} {percent(row['recommended'])}" for row in shown)
    alt = f"Bars of mixture weights per domain, the recommended ones: {weights}."
    return Figure(
        name, title, sentence, svg.document(drawing, height, name=name, title=title, description=alt), alt, tuple(rows)
    )


def _bars(study: Study, shown: Sequence[Row]) -> tuple[list[str], float]:
    left = min(100.0, max(svg.width_of(row["domain"]) for row in shown) + 8)
    right = svg.WIDTH - (86 if any(_epochs(row) for row in shown) else 44)
    values = [row[key] for row in shown for key in ("recommended", "natural", "high") if row[key] is not None]
    scale = svg.Scale(0.0, min(1.0, 1.04 * max(values)) * 100, left, right)
    keys = [svg.Key("recommended", svg.box(-6, -4, 12, 8, fill=svg.BLUE))]
    if any(row["low"] is not None for row in shown):
        keys.append(svg.Key("may move within", svg.whisker(-6, 6, 0, stroke=svg.INK)))
    if any(row["natural"] is not None for row in shown):
        keys.append(svg.Key("natural", svg.dot(0, 0, fill=svg.ORANGE, hollow=True)))
    keys.append(svg.Key("uniform", svg.line((0, -5), (0, 5), stroke=svg.GRAY, width=1.6)))
    head, top = svg.legend(keys)
    parts, top = [head], top + 4
    bottom = top + 20 * len(shown)
    parts.append(svg.x_axis(scale, bottom, label="share of training tokens, %", top=top))
    parts += [mark for i, row in enumerate(shown) for mark in _bar(row, scale, top + 20 * i + 10)]
    return parts, bottom + 30


def _bar(row: Row, scale: svg.Scale, y: float) -> list[str]:
    weight, passes = row["recommended"], _epochs(row)
    said = f"{100 * weight:.1f} %" + (f" · {passes:.2f} ep." if passes else "")
    parts = [
        svg.text(scale.start - 6, y + 3.5, svg.shortened(row["domain"], scale.start - 8), anchor="end"),
        svg.box(
            scale.start, y - 6, scale(100 * weight) - scale.start, 12, fill=svg.BLUE, hint=f"{row['domain']}: {said}"
        ),
        svg.line(
            (scale(100 * row["uniform"]), y - 8), (scale(100 * row["uniform"]), y + 8), stroke=svg.GRAY, width=1.6
        ),
        svg.text(scale.end + 6, y + 3.5, said, size=9),
    ]
    if row["low"] is not None:
        parts.append(svg.whisker(scale(100 * row["low"]), scale(100 * row["high"]), y, stroke=svg.INK))
    if row["natural"] is not None:
        parts.append(
            svg.dot(
                scale(100 * row["natural"]), y, fill=svg.ORANGE, hollow=True, hint=f"natural {percent(row['natural'])}"
            )
        )
    return parts


def _epochs(row: Row) -> float | None:
    passes = row["epochs_target"] if row["epochs_target"] is not None else row["epochs_proxy"]
    return None if passes is None else float(passes)


def _summed(rows: Sequence[Row]) -> Row:
    """Return one row for many small domains; passes and intervals have no sum."""
    total = {key: sum(row[key] for row in rows) for key in ("recommended", "uniform")}
    natural = None if rows[0]["natural"] is None else sum(row["natural"] for row in rows)
    nothing = dict.fromkeys(("low", "high", "epochs_proxy", "epochs_target", "tokens"))
    return {"domain": f"{len(rows)} others", **total, "natural": natural, **nothing}


def _shift_sentence(study: Study, mixture: Mixture) -> str:
    baseline, name = natural_of(study), "natural"
    if baseline is None:
        baseline, name = Mixture.uniform(study.header.domain_names), "uniform"
    mixture = mixture.over(study.header.domain_names)
    moves = sorted((w - baseline.as_dict()[domain], domain) for domain, w in mixture.as_dict().items())
    (least, down), (most, up) = moves[0], moves[-1]
    if mixture.distance(baseline) < 0.005:
        return f"The recommended mixture is the {name} one, within half a percent of the tokens."
    return (
        f"Beside the {name} mixture, the recommendation moves {100 * mixture.distance(baseline):.0f} % of the tokens: "
        f"most to {up} ({100 * most:+.0f} points), most from {down} ({100 * least:+.0f} points)."
    )


def _interval_sentence(around: WhatIf | None, near: dict[str, tuple[float, float]]) -> str:
    if around is None or not near:
        return ""
    std = float(around.believed[1][0])
    widest = max(near, key=lambda name: near[name][1] - near[name][0])
    low, high = near[widest]
    return (
        f" Intervals: a weight may move so far, alone, before the predicted objective rises by its standard deviation "
        f"({std:.3f}); {widest} may be anywhere from {percent(low)} to {percent(high)}, so digits mean little."
    )


def _rest_sentence(rest: Sequence[Row]) -> str:
    return f" The {len(rest)} smallest are drawn together." if rest else ""


# --- cost --------------------------------------------------------------------


def compute(study: Study) -> Figure | Missing:
    """Draw what each phase was charged and how many CPU seconds it took."""
    name, title, phases = "compute", "Where the compute went", costs(study)
    if not phases:
        return Missing(name, title, "Left out: nothing has been run yet.")
    seconds, total = sum(p.process_seconds for p in phases), sum(p.cost for p in phases)
    scale = svg.Scale(0.0, max(1e-9, *(p.cost for p in phases)), 78.0, 250.0)
    parts = [svg.text(78, 11, "cost, top-rung runs", size=9.5)]
    for i, p in enumerate(phases):
        y = 28.0 + 22 * i
        said = f"{p.cost:.2f}" + (f" · {in_time(p.process_seconds)} CPU" if seconds else "")
        parts += [
            svg.text(72, y + 3.5, p.role, anchor="end"),
            svg.box(
                78,
                y - 7,
                scale(p.cost) - 78,
                14,
                fill=svg.BLUE,
                hint=f"{p.role}: {several(p.num_trials, 'run')}, {said}",
            ),
            svg.text(scale(p.cost) + 5, y + 3.5, said, size=9.5),
        ]
    shares = listed([f"{p.role} {p.cost:.2f} ({several(p.num_trials, 'run')})" for p in phases])
    sentence = f"In all {total:.2f} top-rung runs were charged: {shares}."
    if seconds:
        most = max(phases, key=lambda p: p.process_seconds)
        sentence += f" Of {in_time(seconds)} of CPU time, {100 * most.process_seconds / seconds:.0f} % went to the {most.role} phase."
    failed = sum(p.num_trials - p.num_done for p in phases)
    sentence += f" {several(failed, 'run')} gave no result." if failed else ""
    drawing = svg.document(parts, 32 + 22 * len(phases), name=name, title=title, description=sentence)
    return Figure(name, title, sentence, drawing, f"Bars per phase. {sentence}", tuple(vars(p) for p in phases))
