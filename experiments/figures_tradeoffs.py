"""The figure of trade-offs: columns of the objective that conflict, and the runs that no other run beats on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mixopt.mixture import Array
from mixopt.observation import Role, Trial
from mixopt.service import RECOMMENDED
from mixopt.study import Study
from mixopt.trust import spearman

from . import svg
from .comparison import contenders, measured, unit_factor
from .drawing import Figure, Missing, listed, several, spaced

_MOST_POINTS = 400
_FEWEST_TO_RANK = 5  # runs; a correlation of fewer says nothing
_AGREE, _CONFLICT = 0.5, -0.3  # rank correlations that are called so


def pareto(values: Array) -> NDArray[np.bool_]:
    """Return (N,) whether no other row of the (N, J) values, lower is better, is at least as good in all columns and better in one."""
    at_least = (values[None] <= values[:, None]).all(axis=-1)
    better = (values[None] < values[:, None]).any(axis=-1)
    return np.asarray(~np.any(at_least & better, axis=1), dtype=np.bool_)


def trade_offs(study: Study) -> Figure | Missing:
    """Draw the two columns of the objective that conflict most, and the runs no other run beats on all columns."""
    name, title, objective = "trade-offs", "Trade-offs", study.objective
    columns = [c for c, w in zip(objective.columns, objective.weights, strict=True) if w]
    if len(columns) < 2:
        return Missing(name, title, f"Left out: the objective has one column only, {listed(columns)}.")
    trials, table = _measured_columns(study, columns)
    if len(trials) < 3:
        return Missing(
            name, title, "Left out: fewer than three mixtures were measured at the target rung on all columns."
        )
    signs = np.array([-1.0 if c.startswith("score/") else 1.0 for c in columns])
    front = pareto(table * signs)
    pair, rank = _conflict(table * signs)
    rows = tuple(
        {
            "trial": t.id,
            "role": str(t.role),
            "label": t.label,
            "on_front": bool(f),
            **dict(zip(columns, map(float, v), strict=True)),
        }
        for t, v, f in zip(trials, table, front, strict=True)
    )
    drawing, height = _draw_front(study, trials, table[:, pair], front, names=[columns[i] for i in pair])
    sentence = _front_sentence(columns, front, pair, rank)
    alt = f"Measured {columns[pair[1]]} over {columns[pair[0]]}. {sentence}"
    return Figure(
        name, title, sentence, svg.document(drawing, height, name=name, title=title, description=alt), alt, rows
    )


def _measured_columns(study: Study, columns: Sequence[str]) -> tuple[list[Trial], Array]:
    """Return search and validation trials measured at the target, and their (N, J) columns in the objective's unit."""
    history, target = study.history(), study.header.ladder.target.name
    trials, rows = {t.id: t for t in history.trials if t.role in (Role.SEARCH, Role.VALIDATION)}, []
    found = []
    for o in history.observations:
        known = o.columns()
        if o.trial in trials and o.fidelity == target and all(c in known for c in columns):
            found.append(trials[o.trial])
            rows.append([known[c] * unit_factor(study, c) for c in columns])
    return found, np.array(rows).reshape(-1, len(columns))


def _conflict(table: Array) -> tuple[list[int], float | None]:
    """Return the two columns with the lowest rank correlation, and that."""
    pairs = list(combinations(range(table.shape[1]), 2))
    if len(table) < _FEWEST_TO_RANK:
        return list(pairs[0]), None
    ranks = [(1.0 if (r := spearman(table[:, i], table[:, j])) is None else r) for i, j in pairs]
    lowest = int(np.argmin(ranks))
    return list(pairs[lowest]), ranks[lowest]


def _draw_front(
    study: Study, trials: Sequence[Trial], values: Array, front: NDArray[np.bool_], *, names: Sequence[str]
) -> tuple[list[str], float]:
    keys = [
        svg.Key("run that none beats on all columns", svg.dot(0, 0, fill=svg.BLUE)),
        svg.Key("other run", svg.dot(0, 0, fill=svg.GRAY, hollow=True)),
    ]
    marks = [
        (c.label, [float(np.mean(list(m[n].values()))) for n in names])
        for c in contenders(study)
        if all(n in (m := measured(study, c)) for n in names)
    ]
    paints = {
        label: svg.GREEN if label == RECOMMENDED else (svg.ORANGE, svg.PURPLE, svg.RED)[i % 3]
        for i, (label, _) in enumerate(marks)
    }
    keys += [svg.Key(f"{label}, mean", svg.diamond(0, 0, fill=paints[label])) for label, _ in marks]
    head, top = svg.legend(keys)
    left, right, bottom = 46.0, svg.WIDTH - 10, top + 214
    x, y = svg.Scale.around(values[:, 0], left, right), svg.Scale.around(values[:, 1], bottom, top + 18)
    parts = [
        head,
        svg.text(2, top + 10, names[1], size=9.5),
        svg.x_axis(x, bottom, label=names[0], top=top + 18),
        svg.y_axis(y, left, right=right),
    ]
    beaten, kept = np.flatnonzero(~front).tolist(), np.flatnonzero(front).tolist()
    for i in spaced(beaten, _MOST_POINTS) + spaced(kept, _MOST_POINTS):
        paint = svg.BLUE if front[i] else svg.GRAY
        said = f"{trials[i].id}: {values[i, 0]:.4f}, {values[i, 1]:.4f}"
        parts.append(
            svg.dot(x(float(values[i, 0])), y(float(values[i, 1])), fill=paint, hollow=not front[i], hint=said)
        )
    parts += [
        svg.diamond(x(v[0]), y(v[1]), fill=paints[label], radius=5, hint=f"{label}, mean over seeds")
        for label, v in marks
    ]
    return parts, bottom + 30


def _front_sentence(columns: Sequence[str], front: NDArray[np.bool_], pair: Sequence[int], rank: float | None) -> str:
    text = f"{int(front.sum())} of {several(len(front), 'run')} measured at the target rung are not beaten on all {len(columns)} columns at once."
    one, other = columns[pair[0]], columns[pair[1]]
    if rank is None:
        return f"{text} That is too few runs to say whether the columns conflict."
    if rank >= _AGREE:
        end = f"no two columns conflict: even {one} and {other} rank the runs alike (correlation {rank:.2f})"
    elif rank <= _CONFLICT:
        end = f"{one} and {other} conflict (rank correlation {rank:.2f}): the weights of the objective decide between them"
    else:
        end = f"{one} and {other}, the least alike, hardly depend on each other (rank correlation {rank:.2f})"
    return f"{text} Over these runs {end}. Single runs are noisy, so some are on the front by luck."
