"""Compare training recipes at the quickstart's size: objective on the uniform mixture, four seeds.

    python tests/bench/recipe.py experiments/studies/quickstart.yaml ema=0.98 ema=0.99 optimizer=muon,ema=0.98

Prints per recipe the mean objective and its standard deviation over seeds at the lowest
and the top rung. Results are kept in runs/bench/recipe. `mixopt bench lr` is the sweep
of the learning rate.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from mixopt.experiments.bench_runs import Ground

NUM_SEEDS = 4


def main(study: str, *recipes: str) -> None:
    ground = Ground.prepare(
        Path(study), out=Path("runs/bench/recipe"), progress=lambda line: print(line, file=sys.stderr)
    )
    ladder = ground.header.ladder
    base = ground.evaluator.models[ladder.target.model]
    tokens = [ladder.rungs[0].num_tokens, ladder.target.num_tokens]
    for recipe in recipes:
        changes = dict(part.split("=") for part in recipe.split(","))
        config = replace(base, **{name: type(getattr(base, name))(value) for name, value in changes.items()})
        (results,) = ground.train({recipe.replace("/", "-"): config}, tokens=tokens, seeds=NUM_SEEDS).values()
        points = [[r["points"][i] for r in results] for i in range(len(tokens))]
        values = [[point["objective"] for point in mine] for mine in points]
        shown = "  ".join(
            f"{count:,} tokens: {np.mean(v):.4f} ± {np.std(v, ddof=1):.4f}"
            for count, v in zip(tokens, values, strict=True)
        )
        seconds = np.mean([point["process_seconds"] for point in points[-1]])
        print(f"{recipe:<32} {shown}  {seconds:.1f} CPU s per model", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
