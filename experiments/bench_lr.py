"""Bench `lr`: is the default learning rate within 2x of the best of a five-point sweep?

One sweep per model shape of the study's ladder, read off at each of its rungs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.fidelity import Fidelity

from .bench_runs import Ground, Progress

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def run(study: Path, *, out: Path, seeds: int, progress: Progress) -> dict[str, Any]:
    """Sweep the rate at every rung of a study.

    Returns:
        Plain data. `rungs`: one entry per rung with `default` (the rate), `points` (per
        factor: mean objective and its standard deviation over the seeds that got there),
        `best_factor` (None where all diverged) and `within_2x`.
    """
    ground = Ground.prepare(study, out=out, progress=progress)
    rungs: list[dict[str, Any]] = []
    for name, config in ground.evaluator.models.items():
        mine = [rung for rung in ground.header.ladder if rung.model == name]
        curves = {}
        for factor in FACTORS:
            varied = replace(config, learning_rate=factor * config.learning_rate)
            trained = ground.train(
                {f"{name}-x{factor:g}": varied}, tokens=[rung.num_tokens for rung in mine], seeds=seeds
            )
            (curves[factor],) = trained.values()
        rungs += [_at_rung(rung, config.learning_rate, curves) for rung in mine]
    return {"name": "lr", "objective": dict(ground.header.objective), "seeds": seeds, "rungs": rungs}


def table(result: dict[str, Any]) -> str:
    """Return the sweep as Markdown: a row per rung, a column per factor."""
    head = "| rung | default rate | " + " | ".join(f"x {factor:g}" for factor in FACTORS) + " | best | within 2x |"
    lines = [head, "|---|---:|" + "---:|" * (len(FACTORS) + 2)]
    for rung in result["rungs"]:
        cells = [_cell(point) for point in rung["points"]]
        best = "none" if rung["best_factor"] is None else f"x {rung['best_factor']:g}"
        verdict = "yes" if rung["within_2x"] else "no"
        lines.append(f"| {rung['rung']} | {rung['default']:.3g} | {' | '.join(cells)} | {best} | {verdict} |")
    return "\n".join(lines)


def _at_rung(rung: Fidelity, default: float, curves: dict[float, list[dict[str, Any]]]) -> dict[str, Any]:
    points = [_point(factor, _values(results, rung.num_tokens)) for factor, results in curves.items()]
    whole = [point for point in points if point["mean"] is not None]
    best = min(whole, key=lambda point: point["mean"])["factor"] if whole else None
    return {
        "rung": rung.name,
        "default": default,
        "points": points,
        "best_factor": best,
        "within_2x": best is not None and 0.5 <= best <= 2.0,
    }


def _values(results: Sequence[dict[str, Any]], tokens: int) -> list[float]:
    """Return the objective of each seed that got there."""
    return [point["objective"] for result in results for point in result["points"] if point["tokens"] == tokens]


def _point(factor: float, values: Sequence[float]) -> dict[str, Any]:
    mean = float(np.mean(values)) if values else None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"factor": factor, "mean": mean, "std": std, "seeds": len(values)}


def _cell(point: dict[str, Any]) -> str:
    if point["mean"] is None:
        return "diverged"
    return f"{point['mean']:.4f}" + ("" if point["std"] is None else f" ± {point['std']:.4f}")
