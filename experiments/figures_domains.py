"""Figures of the domains: what their experts know, what more of each would do, and which could replace each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mixopt.mixture import Array
from mixopt.observation import Observation, Role, Trial
from mixopt.study import Study

from . import svg
from .comparison import unit_factor, unit_label
from .drawing import Figure, Missing, Row, listed, several, spaced
from .whatif import STEP, WhatIf

_MOST_COLUMNS = 16
_MOST_ROWS = 16
_MOST_CELL_NUMBERS = 10
_MOST_PAIRS = 10


# --- experts -----------------------------------------------------------------


def expert_losses(study: Study) -> Figure | Missing:
    """Draw every data expert's loss on every evaluation set."""
    name, title = "experts", "What the data experts know"
    names, sets, table = expert_table(study)
    if not table.size:
        why = (
            "a study whose runs are trained elsewhere has no experts"
            if study.header.external
            else "no data expert is finished"
        )
        return Missing(name, title, f"Left out: {why}.")
    rows = tuple(
        {"evaluation_set": s, **dict(zip(names, map(float, values), strict=True))}
        for s, values in zip(sets, table, strict=True)
    )
    down, across = _fewer(study, names, sets, np.ptp(table, axis=1))
    shown = table[np.ix_(down, across)]
    low = shown.min(axis=1, keepdims=True)
    scaled = (shown - low) / np.maximum(np.ptp(shown, axis=1)[:, None], 1e-12)
    sentence = _expert_sentence(names, sets, table, unit_label(study)) + _cut(down, sets, across, names)
    drawing, height = _heat(
        shown, scaled, rows=[sets[i] for i in down], columns=[names[i] for i in across],
        legend=("lowest loss of the row", "highest"), note="rows: evaluation set; columns: what the expert was trained on",
    )  # fmt: skip
    alt = f"Heat map of losses, darker is lower within a row. {sentence}"
    return Figure(
        name, title, sentence, svg.document(drawing, height, name=name, title=title, description=alt), alt, rows
    )


def expert_table(study: Study) -> tuple[list[str], list[str], Array]:
    """Return domains, evaluation sets and (sets, domains) losses where every finished expert has been scored."""
    losses = {trial.label: o.losses for trial, o in _experts(study).values()}
    names = [name for name in study.header.domain_names if name in losses]
    sets = [s.name for s in study.header.eval_sets if names and all(s.name in losses[name] for name in names)]
    table = [[losses[name][s] * unit_factor(study, f"loss/{s}") for name in names] for s in sets]
    return names, sets, np.array(table)


def _experts(study: Study) -> Mapping[str, tuple[Trial, Observation]]:
    """Return {domain: expert and its observation at the rung that feeds the MDE}."""
    history, rung = study.history().of(Role.EXPERT), study.header.experts_fidelity
    trials = {trial.id: trial for trial in history.trials}
    return {trials[o.trial].label: (trials[o.trial], o) for o in history.observations if o.fidelity == rung}


def _expert_sentence(names: Sequence[str], sets: Sequence[str], table: Array, unit: str) -> str:
    spread = np.ptp(table, axis=1)
    most, least = int(spread.argmax()), int(spread.argmin())
    best = names[int(table[most].argmin())]
    text = (
        f"The experts differ most on {sets[most]} (by {spread[most]:.2f} {unit}; {best} is best), "
        f"least on {sets[least]} (by {spread[least]:.2f})."
    )
    wins = {name: int((table.argmin(axis=1) == i).sum()) for i, name in enumerate(names)}
    leader = max(wins, key=lambda name: wins[name])
    return (
        f"{text} {leader} has the lowest loss on {wins[leader]} of {several(len(sets), 'set')}. Each cell is one run."
    )


# --- effects -----------------------------------------------------------------


def marginal_effects(around: WhatIf) -> Figure | Missing:
    """Draw how every column is predicted to change when a domain replaces a little of all others."""
    name, title = "effects", "What a little more of a domain does"
    names, columns, effects = around.effects
    rows = tuple(
        {"column": c, **dict(zip(names, map(float, effects[:, j]), strict=True))} for j, c in enumerate(columns)
    )
    own = [columns.index(c) for c in around.study.objective.columns if c in columns]
    down, across = _fewer(around.study, names, columns, np.abs(effects).max(axis=0), first=[len(columns) - 1, *own])
    shown = effects.T[np.ix_(down, across)]
    signs = np.array([-1.0 if columns[i].startswith("score/") else 1.0 for i in down])[:, None]
    reach = np.maximum(np.abs(shown).max(axis=1, keepdims=True), 1e-12)
    drawing, height = _heat(
        shown, 0.5 + 0.5 * signs * shown / reach, rows=[columns[i].removeprefix("loss/") for i in down],
        columns=[names[i] for i in across], diverging=True, legend=("better", "worse"),
        note=f"change when {100 * STEP:.0f} % of the tokens are replaced by the domain",
    )  # fmt: skip
    sentence = _effect_sentence(around, names, effects[:, -1]) + _cut(down, columns, across, names) + around.thinned
    alt = f"Heat map of predicted changes, blue is better. {sentence}"
    return Figure(
        name, title, sentence, svg.document(drawing, height, name=name, title=title, description=alt), alt, rows
    )


def _effect_sentence(around: WhatIf, names: Sequence[str], objective: Array) -> str:
    std, unit = float(around.believed[1][0]), unit_label(around.study)
    low, high = int(objective.argmin()), int(objective.argmax())
    text = (
        f"Replacing {100 * STEP:.0f} % of the tokens changes the predicted objective by {objective[low]:+.4f} ({names[low]}) to "
        f"{objective[high]:+.4f} {unit} ({names[high]})."
    )
    if np.abs(objective).max() <= std:
        text += f" All of that is within the standard deviation of the prediction ({std:.4f})."
    elif objective[low] < -std:
        text += (
            f" More of {names[low]} would gain more than one standard deviation ({std:.4f}); constraints may forbid it."
        )
    else:
        text += f" No domain would gain more than the standard deviation ({std:.4f}), as it should be at an optimum."
    return f"{text} These are slopes of the surrogate's mean, without errors of their own."


# --- redundancy --------------------------------------------------------------


def redundancy(study: Study) -> Figure | Missing:
    """Draw the pairs of domains that could replace each other best, by their experts' losses and router loads."""
    name, title = "redundancy", "Which domains are alike"
    names, sets, table = expert_table(study)
    own = [n for n in names if n in sets]
    if len(own) < 2:
        why = (
            "runs trained elsewhere have no experts"
            if study.header.external
            else "experts of two domains, scored on the held-out text of both, are not there"
        )
        return Missing(name, title, f"Left out: {why}.")
    experts = _experts(study)
    rows = sorted(_pairs(own, names, sets, table, experts), key=lambda row: row["gap"])
    drawing, height = _bars(rows[:_MOST_PAIRS], unit_label(study))
    sentence = _redundancy_sentence(rows, experts, unit_label(study))
    alt = f"Bars of the mean loss from swapping two domains. {sentence}"
    return Figure(
        name, title, sentence, svg.document(drawing, height, name=name, title=title, description=alt), alt, tuple(rows)
    )


def _pairs(
    own: Sequence[str],
    names: Sequence[str],
    sets: Sequence[str],
    table: Array,
    experts: Mapping[str, tuple[Trial, Observation]],
) -> list[Row]:
    """Return per pair what it costs to be read by the other's expert, and how far the router loads are apart."""
    loss = {(s, n): float(table[i, j]) for i, s in enumerate(sets) for j, n in enumerate(names)}
    rows: list[Row] = []
    for i, a in enumerate(own):
        for b in own[i + 1 :]:
            gap = ((loss[a, b] - loss[a, a]) + (loss[b, a] - loss[b, b])) / 2
            rows.append(
                {"one": a, "other": b, "gap": gap, "router_distance": load_distance(experts[a][1], experts[b][1])}
            )
    return rows


def load_distance(one: Observation, other: Observation) -> float | None:
    """Return the total variation distance of two runs' router loads, averaged over layers, in [0, 1]; None without routers."""
    layers = [
        (np.asarray(a), np.asarray(b))
        for a, b in zip(one.router_loads, other.router_loads, strict=False)
        if len(a) == len(b)
    ]
    return float(np.mean([0.5 * np.abs(a - b).sum() for a, b in layers])) if layers else None


def _bars(rows: Sequence[Row], unit: str) -> tuple[list[str], float]:
    pairs = [f"{row['one']}, {row['other']}" for row in rows]
    left = min(150.0, max(svg.width_of(pair) for pair in pairs) + 8)
    scale = svg.Scale(0.0, max(1e-9, *(row["gap"] for row in rows)), left, svg.WIDTH - 40)
    parts = [svg.text(2, 11, f"loss of being read by the other's expert, {unit}", size=9.5)]
    for i, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
        y = 28.0 + 20 * i
        parts.append(svg.text(left - 6, y + 3.5, svg.shortened(pair, left - 8), anchor="end"))
        parts.append(svg.box(left, y - 6, scale(max(0.0, row["gap"])) - left, 12, fill=svg.BLUE, hint=pair))
        parts.append(svg.text(scale(max(0.0, row["gap"])) + 5, y + 3.5, f"{row['gap']:.2f}", size=9.5))
    return parts, 24 + 20.0 * len(rows)


def _redundancy_sentence(rows: Sequence[Row], experts: Mapping[str, tuple[Trial, Observation]], unit: str) -> str:
    first, last = rows[0], rows[-1]
    text = f"Most alike are {first['one']} and {first['other']}: read by the other's expert, their text costs {first['gap']:.2f} {unit} more"
    text += f"; least alike {last['one']} and {last['other']} ({last['gap']:.2f})." if len(rows) > 1 else "."
    distances = [row["router_distance"] for row in rows if row["router_distance"] is not None]
    if not distances:
        return f"{text} There are no router loads to compare."
    seeds = {trial.seed for trial, _ in experts.values()}
    parents = {trial.parent for trial, _ in experts.values()}
    if len(parents) == 1 and None not in parents:
        close = min((row for row in rows if row["router_distance"] is not None), key=lambda row: row["router_distance"])
        return f"{text} By router loads, {close['one']} and {close['other']} are nearest (distance {close['router_distance']:.2f} of 1)."
    if len(seeds) > 1:
        return f"{text} Router loads (in the CSV) do not tell here: experts trained from scratch on seeds of their own number their feed-forward experts differently. warm_start makes them comparable."
    return f"{text} Router loads are {min(distances):.2f} to {max(distances):.2f} of 1 apart (in the CSV)."


# --- matrices ----------------------------------------------------------------


def _fewer(
    study: Study, names: Sequence[str], rows: Sequence[str], size: Array, *, first: Sequence[int] = ()
) -> tuple[list[int], list[int]]:
    """Return places of the rows and of the domains that are drawn: the objective's own, then the largest."""
    used = {c.partition("/")[2] for c in study.objective.columns}
    ahead = [*first, *(i for i, row in enumerate(rows) if row in used)]
    down = list(dict.fromkeys([*ahead, *np.argsort(-size, kind="stable").tolist()]))[:_MOST_ROWS]
    down = [*dict.fromkeys(first), *sorted(set(down) - set(first))][:_MOST_ROWS]
    if len(names) <= _MOST_COLUMNS:
        return down, list(range(len(names)))
    if study.recommendation is None:
        return down, spaced(list(range(len(names))), _MOST_COLUMNS)
    weights = study.recommendation.mixture.as_dict()
    return down, sorted(np.argsort([-weights.get(name, 0.0) for name in names], kind="stable")[:_MOST_COLUMNS].tolist())


def _cut(down: Sequence[int], rows: Sequence[str], across: Sequence[int], names: Sequence[str]) -> str:
    parts = [f"{len(across)} of {len(names)} domains"] if len(across) < len(names) else []
    parts += [f"{len(down)} of {len(rows)} rows"] if len(down) < len(rows) else []
    return f" Drawn are {listed(parts)}." if parts else ""


def _heat(
    values: Array, scaled: Array, *, rows: Sequence[str], columns: Sequence[str], legend: tuple[str, str],
    note: str, diverging: bool = False,
) -> tuple[list[str], float]:  # fmt: skip
    """Draw a matrix of colored cells, with numbers where there is room."""
    left = min(96.0, max(svg.width_of(row, 9) for row in rows) + 8)
    wide, high = (svg.WIDTH - left - 24) / len(columns), 19.0  # the last slanted label reaches beyond its cell
    slope = min(78.0, max(svg.width_of(c, 9) for c in columns) * 0.72 + 8)
    ends = svg.shade(0, diverging=diverging), svg.shade(1, diverging=diverging)
    keys = [svg.Key(words, svg.box(-6, -4, 12, 8, fill=paint)) for words, paint in zip(legend, ends, strict=True)]
    head, y = svg.legend(keys)
    parts, top = [head, svg.text(2, y + 10, note, size=9)], y + 16 + slope
    for j, column in enumerate(columns):
        x = left + wide * (j + 0.5)
        parts.append(
            svg.text(
                x + 3,
                top - 4,
                svg.shortened(column, 104, 9),
                size=9,
                extra=f' transform="rotate(-46 {x:.1f} {top - 4:.1f})"',
            )
        )
    for i, row in enumerate(rows):
        parts.append(
            svg.text(left - 5, top + high * (i + 0.5) + 3, svg.shortened(row, left - 6, 9), anchor="end", size=9)
        )
        for j, column in enumerate(columns):
            paint = svg.shade(float(scaled[i, j]), diverging=diverging)
            x, value = left + wide * j, float(values[i, j])
            parts.append(
                svg.box(x, top + high * i, wide - 0.8, high - 0.8, fill=paint, hint=f"{row}, {column}: {value:.4f}")
            )
            if len(columns) <= _MOST_CELL_NUMBERS:
                parts.append(
                    svg.text(
                        x + wide / 2,
                        top + high * i + 12.5,
                        _short(value, diverging),
                        anchor="middle",
                        size=7.6,
                        fill=svg.ink_on(paint),
                    )
                )
    return parts, top + high * len(rows) + 6


def _short(value: float, signed: bool) -> str:
    """Return a number that fits a cell: without a leading zero where it has a sign."""
    if not signed:
        return f"{value:.2f}"
    words = f"{value:+.3f}" if abs(value) < 1 else f"{value:+.2f}"
    return words.replace("0.", ".", 1) if words[1] == "0" else words
