"""Hard cases: is `mfbo` at its defaults worse than random, or than a search of the target rung alone?

    python tests/bench/hard.py                                    # all synthetic cases, 20 seeds
    python tests/bench/hard.py noisy dense --seeds 5
    python tests/bench/hard.py twists --regmix DIR                # real runs, made hard

Every seed draws another table, 20 target runs may be spent on 40 or 50. Rivals are `random`,
`gp-ei` (BoTorch, target runs only) and `mfbo` with the target's rows alone. Differences are
paired by seed; worse means more than two standard errors above a rival, in area under the
regret or in cost to best. Replays are kept in runs/replay, so a killed run goes on; cases
can run side by side. Exit code 1 if mfbo is worse anywhere.
"""

import argparse
import logging
import sys
from functools import partial
from pathlib import Path

from mixopt.experiments.benchmarks import Benchmark, Ground, paired, run_all
from mixopt.layouts import read_regmix
from mixopt.search.hard import HARD_CASES, TARGET, TWISTS, at_rung, hard_case, twisted

BUDGET = 20.0
OURS, ALONE, RIVALS = "mfbo", "mfbo, target only", ("random", "gp-ei")
METRICS = {"auc": "area", "cost_to_best": "cost to best", "recommendation_regret": "recommendation"}
JUDGED = ("auc", "cost_to_best")
HEAD = (
    "case",
    *(f"{name}, {OURS} minus {rival}" for name in METRICS.values() for rival in (*RIVALS, ALONE)),
    "verdict",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"{', '.join(HARD_CASES)}; or twists")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--regmix", type=Path, help="data folder of the public repository, for twists")
    parser.add_argument("--cache", type=Path, default=Path("runs/replay"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    draws = drawers(options.cases or list(HARD_CASES), options.regmix)
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
    worse = [name for name, draw in draws.items() if not judge(name, draw, options)]
    print(f"\nworse on: {', '.join(worse) or 'none'}; {options.seeds} seeds, budget {BUDGET:g}, ± one standard error")
    return 1 if worse else 0


def drawers(cases, regmix):
    """Return {case: function from a seed to (table, target, objective)}."""
    found = {name: partial(synthetic, name) for name in cases if name != "twists"}
    if "twists" in cases:
        if regmix is None:
            sys.exit("twists need --regmix DIR, the data folder of the public repository")
        table = read_regmix(regmix)
        found |= {f"twist {twist}": partial(semi_synthetic, table, twist) for twist in TWISTS}
    return found


def synthetic(name, seed):
    return hard_case(name, seed), TARGET, HARD_CASES[name].objective


def semi_synthetic(table, twist, seed):
    return twisted(table, "60m", twist, seed), "60m", "mean(loss/*)"


def judge(name, draw, options):
    """Print one line and return whether mfbo is not worse."""
    results = {optimizer: [] for optimizer in (OURS, *RIVALS, ALONE)}
    for seed in range(options.seeds):
        table, target, objective = draw(seed)
        for part, optimizers in ((table, (OURS, *RIVALS)), (at_rung(table, target), (ALONE,))):
            names = [OURS if one == ALONE else one for one in optimizers]
            settings = Benchmark(target, {"all": objective}, names, (seed,), BUDGET, until_best=True)
            done = run_all(Ground(part), settings.jobs(Ground(part)), cache=options.cache)
            for optimizer, result in zip(optimizers, done, strict=True):
                results[optimizer].append(result)
    cells, good = [], True
    for metric in METRICS:
        for rival in (*RIVALS, ALONE):
            gap = paired(results[OURS], results[rival], metric)
            error = "" if gap.error is None else f" ± {gap.error:.3f}"
            cells.append(f"{gap.mean:+.3f}{error}" + ("" if gap.not_worse else " worse"))
            good &= gap.not_worse or metric not in JUDGED
    print(f"| {name} | " + " | ".join(cells) + f" | {'ok' if good else 'worse'} |", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
