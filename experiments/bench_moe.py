"""Bench `moe-vs-dense`: every router against the dense control of equal FLOPs per token.

At equal tokens and at equal training time. Settings train in turns in one process, one
thread, so that what slows the machine down hits all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.proxies.config import ROUTERS, ProxyConfig
from mixopt.proxies.cost import forward_flops_per_token

from .bench_runs import Ground, Progress

_BASE = "topk"
# The faster setting has to be measured beyond the tokens of the slower one.
_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 1.75)


def run(study: Path, *, out: Path, seeds: int, progress: Progress) -> dict[str, Any]:
    """Train all routers at the study's target shape.

    Returns:
        Plain data. `settings`: one entry per router with FLOPs per token, process
        seconds to the target's tokens, the objective at equal tokens and at equal time
        (that of `topk` for the target's tokens), each with the difference to `topk`,
        paired by seed. None where a seed did not get there.
    """
    ground = Ground.prepare(study, out=out, progress=progress)
    target = ground.header.ladder.target
    base = ground.evaluator.models[target.model]
    settings = {router: replace(base, router=router, decay=0.0) for router in ROUTERS}
    tokens = [round(share * target.num_tokens) for share in _SHARES]
    results = ground.train(settings, tokens=tokens, seeds=seeds)
    seconds = float(np.mean([_seconds_at(result, target.num_tokens) for result in results[_BASE]]))
    rows = [_summary(name, settings[name], results, target.num_tokens, seconds) for name in settings]
    return {
        "name": "moe-vs-dense",
        "objective": dict(ground.header.objective),
        "tokens": target.num_tokens,
        "seconds": seconds,
        "seeds": seeds,
        "settings": rows,
    }


def table(result: dict[str, Any]) -> str:
    """Return the comparison as Markdown, a row per router."""
    lines = [
        f"| router | nominal FLOPs per token | seconds to {result['tokens']:,} tokens | at equal tokens | minus {_BASE} "
        f"| at equal time ({result['seconds']:.1f} s) | minus {_BASE} |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["settings"]:
        cells = [_cell(row[key]) for key in ("equal_tokens", "tokens_difference", "equal_time", "time_difference")]
        lines.append(
            f"| {row['router']} | {row['flops_per_token']:.3g} | {row['process_seconds']:.1f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _summary(
    name: str, config: ProxyConfig, results: dict[str, list[dict[str, Any]]], tokens: int, seconds: float
) -> dict[str, Any]:
    by_tokens = {router: np.array([_objective_at(r, tokens) for r in rs]) for router, rs in results.items()}
    by_time = {router: np.array([_objective_after(r, seconds) for r in rs]) for router, rs in results.items()}
    return {
        "router": name,
        "flops_per_token": 3 * forward_flops_per_token(config),
        "process_seconds": float(np.mean([_seconds_at(result, tokens) for result in results[name]])),
        "equal_tokens": _spread(by_tokens[name]),
        "tokens_difference": _spread(by_tokens[name] - by_tokens[_BASE]),
        "equal_time": _spread(by_time[name]),
        "time_difference": _spread(by_time[name] - by_time[_BASE]),
    }


def _column(result: dict[str, Any], name: str) -> list[float]:
    return [point[name] for point in result["points"]]


def _seconds_at(result: dict[str, Any], tokens: int) -> float:
    return float(np.interp(tokens, _column(result, "tokens"), _column(result, "process_seconds"), right=np.nan))


def _objective_at(result: dict[str, Any], tokens: int) -> float:
    return float(np.interp(tokens, _column(result, "tokens"), _column(result, "objective"), right=np.nan))


def _objective_after(result: dict[str, Any], seconds: float) -> float:
    """Interpolate between milestones on a logarithmic time axis, on which curves are nearly straight."""
    times = np.log(_column(result, "process_seconds"))
    return float(np.interp(np.log(seconds), times, _column(result, "objective"), right=np.nan))


def _spread(values: Sequence[float] | np.ndarray[Any, Any]) -> dict[str, float | None]:
    """Return mean and standard deviation over seeds; None where a seed is missing."""
    known = np.asarray(values, dtype=float)
    if not np.isfinite(known).all():
        return {"mean": None, "std": None}
    return {"mean": float(known.mean()), "std": float(known.std(ddof=1)) if len(known) > 1 else None}


def _cell(value: dict[str, float | None]) -> str:
    if value["mean"] is None:
        return "not reached"
    return f"{value['mean']:.4f}" + ("" if value["std"] is None else f" ± {value['std']:.4f}")
