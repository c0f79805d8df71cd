"""What a study will cost before it runs: runs, FLOPs and time on this machine.

Once three runs are timed it also says what rungs cost in time, in lines for the study file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mixopt.config import StudyConfig
from mixopt.mixture import Mixture
from mixopt.proxies.cost import active_params, total_params
from mixopt.proxies.evaluators import ProxyEvaluator
from mixopt.proxies.optim import initial_state
from mixopt.proxies.tokens import MixtureSampler, TokenShard
from mixopt.proxies.train import ProxyRun, StackTrainer
from mixopt.service import Plan
from mixopt.study import Header, Study

from .time_model import fit_study, seconds_per_rung

PROBE_STEPS = 8


def summarize(
    config: StudyConfig, header: Header, evaluator: ProxyEvaluator, plan: Plan, study: Study
) -> dict[str, Any]:
    """Return plain data on a study: text, ladder, constraints, runs and estimated time.

    Time comes from the study's own runs once it has three (`time_model`), else it is
    extrapolated from a few training steps of the target's shape and counts training
    alone. It assumes that the workers are never idle.

    Returns:
        Among others `measured`, None before three runs: `seconds` of CPU time per rung,
        `from`, and `ladder`, the study file's with these seconds as costs (None where
        they do not rise from rung to rung). `changed_costs`: in words, how costs differ
        from those the study was last run with.
    """
    ladder = header.ladder
    seeds = header.warm_start.rungs.values() if header.warm_start else ()
    runs = {
        **({"seeds": sum(ladder[rung].cost for rung in seeds)} if seeds else {}),
        "experts": len(header.domains) * ladder[header.experts_fidelity].cost,
        "search": header.budget,
        "validation": float(plan.validation_seeds * (1 + len(plan.baselines))),
    }
    measured = _measured(config, header, evaluator, study)
    if measured is None:
        per_token = seconds_per_token(header, evaluator, study.files.tokens, stack=plan.stack)
        seconds, source = per_token * ladder.target.num_tokens, f"{PROBE_STEPS} training steps"
    else:
        seconds, source = measured["seconds"][ladder.target.name], measured["from"]
    total = sum(runs.values())
    model = evaluator.models[ladder.target.model]
    return {
        "name": header.name,
        "domains": [{"name": d.name, "tokens": d.num_tokens, "documents": d.num_docs} for d in header.domains],
        "eval_sets": [{"name": s.name, "tokens": s.num_tokens, "bytes": s.num_bytes} for s in header.eval_sets],
        "objective": dict(header.objective),
        "ladder": [
            {"name": r.name, "model": r.model, "tokens": r.num_tokens, "flops": r.flops, "cost": round(r.cost, 4)}
            for r in ladder
        ],
        "params": {"total": total_params(model), "active": active_params(model)},
        "epochs_at_top": {d.name: round(ladder.target.num_tokens / d.num_tokens, 2) for d in header.domains},
        "constraints": config.constraints.model_dump(mode="json", exclude_defaults=True),
        "runs_at_top": {**{name: round(value, 2) for name, value in runs.items()}, "total": round(total, 2)},
        "estimated": {
            "process_seconds": round(total * seconds),
            "wall_seconds": round(total * seconds / config.run.workers),
            "flops": total * ladder.target.flops,
            "from": source,
        },
        "measured": measured,
        "changed_costs": study.header.ladder.cost_changes(ladder) if study.headers else [],
    }


def _measured(config: StudyConfig, header: Header, evaluator: ProxyEvaluator, study: Study) -> dict[str, Any] | None:
    fitted = fit_study(study, evaluator.models)
    if fitted is None:
        return None
    model, num_runs = fitted
    seconds = {
        name: float(f"{value:.4g}") for name, value in seconds_per_rung(model, header.ladder, evaluator.models).items()
    }
    return {"seconds": seconds, "from": f"{num_runs} runs", "ladder": ladder_by_time(config, seconds)}


def ladder_by_time(config: StudyConfig, seconds: Mapping[str, float]) -> str | None:
    """Return the study file's ladder with times as costs, as YAML; None where they do not rise from rung to rung.

    Args:
        config: The study file.
        seconds: {rung: seconds of a run}.
    """
    times = [seconds[rung.name] for rung in config.ladder]
    if any(later <= earlier for earlier, later in pairwise(times)):
        return None
    rungs = [{**rung.model_dump(exclude_none=True), "cost": seconds[rung.name]} for rung in config.ladder]
    # One rung per line, however long.
    return yaml.safe_dump({"ladder": rungs}, default_flow_style=None, sort_keys=False, width=10_000)


def seconds_per_token(header: Header, evaluator: ProxyEvaluator, tokens: Path, *, stack: int) -> float:
    """Return CPU seconds per training token and model, measured on a few steps."""
    config = evaluator.models[header.ladder.target.model]
    evaluator.limit_threads()
    shards = {name: TokenShard(tokens / folder) for name, folder in evaluator.shards.items()}
    mixture = Mixture.uniform(header.domain_names)
    state = initial_state(config, 0)
    runs = [
        ProxyRun(
            str(s), MixtureSampler(shards, mixture, seed=s, sequence_length=config.sequence_length), (10**9,), state
        )
        for s in range(stack)
    ]
    trainer = StackTrainer(config, runs, evaluator.resolved_device)
    trainer.advance(lambda _: None)
    times = []
    for _ in range(PROBE_STEPS):
        start = time.process_time()
        trainer.advance(lambda _: None)
        times.append(time.process_time() - start)
    return float(np.median(times)) / (stack * config.tokens_per_step)
