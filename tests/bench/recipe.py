"""Compare training recipes at the quickstart's size: loss on the targets, four seeds, uniform mixture.

    python tests/bench/recipe.py runs/quickstart ema=0.98 ema=0.99 ema=0.99,learning_rate=4e-3

Needs a run directory whose tokens are built (`mixopt check` does). Prints per recipe
the mean objective and its standard deviation over seeds at the lowest and the top rung.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from mixopt import Mixture
from mixopt.experiments import build
from mixopt.proxies.optim import initial_state
from mixopt.proxies.scoring import score
from mixopt.proxies.tokens import MixtureSampler, TokenShard
from mixopt.proxies.train import ProxyRun, StackTrainer
from mixopt.storage import RunDirectory

NUM_SEEDS = 4


def main(directory: str, *recipes: str) -> None:
    location = build.locate(Path(directory))
    header, evaluator = build.prepare(location)
    evaluator.limit_threads()
    objective, files = build.parse_objective(header), RunDirectory(location.directory)
    shards = {name: TokenShard(files.tokens / folder) for name, folder in evaluator.shards.items()}
    base = evaluator.models[header.ladder.target.model]
    for recipe in recipes:
        changes = dict(part.split("=") for part in recipe.split(","))
        config = replace(base, **{name: type(getattr(base, name))(value) for name, value in changes.items()})
        rows = evaluator.rows(files, config)
        steps = tuple(config.num_steps(rung.num_tokens) for rung in (header.ladder.rungs[0], header.ladder.target))
        values: dict[int, list[float]] = {step: [] for step in steps}

        def record(milestone, rows=rows, values=values):
            losses = {
                f"loss/{n}": -float(score(milestone.average, cut)[0].mean(dtype=np.float64)) for n, cut in rows.items()
            }
            values[milestone.step].append(float(objective.value(losses)))

        mixture, length = Mixture.uniform(header.domain_names), config.sequence_length
        runs = [
            ProxyRun(
                str(s), MixtureSampler(shards, mixture, seed=s, sequence_length=length), steps, initial_state(config, s)
            )
            for s in range(100, 100 + NUM_SEEDS)
        ]
        start = time.process_time()
        trainer = StackTrainer(config, runs, evaluator.resolved_device)
        while trainer.active:
            trainer.advance(record)
        seconds = (time.process_time() - start) / NUM_SEEDS
        shown = "  ".join(f"step {step}: {np.mean(v):.4f} ± {np.std(v, ddof=1):.4f}" for step, v in values.items())
        print(f"{recipe:<32} {shown}  {seconds:.1f} CPU s per model", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
