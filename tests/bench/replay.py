"""The replay benchmark on published runs, as markdown: optimizers, and predictors.

    python tests/bench/replay.py REGMIX_DIR [--out docs/benchmarks.md] [--part search] [--workers 2]

REGMIX_DIR is the data folder of the public repository sail-sg/regmix. Optimizers buy 1M and
60M runs of the Pile and look for the best 60M run. Replays are kept in runs/replay, so a
killed benchmark goes on where it was; each ends once the best run is measured. `--out` replaces what stands between the markers
of its parts in a page. Predictors are fitted to n random 1M runs and rank the test mixtures.
"""

import argparse
import logging
import re
import sys
import time
from pathlib import Path

import numpy as np

from mixopt import seeding
from mixopt.experiments.benchmarks import Benchmark, Ground, pooled, random_objectives, run_all, summarize
from mixopt.layouts import read_regmix
from mixopt.objective import Objective
from mixopt.search import catalog
from mixopt.search.baselines import fit_trees
from mixopt.search.loglinear import fit as fit_law
from mixopt.search.replay import Case
from mixopt.storage import write_text

TARGET, LOW, BUDGET = "60m", "1m", 40.0
FAST = ("mfbo", "two-step", "random", "regmix", "regmix-128", "olmix", "climb")
SLOW = ("gp-ei", "admire")
NAMED = {"mean of 13 losses": "mean(loss/*)", "Pile-CC": "loss/pile_cc"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--out", type=Path, help="page to bring up to date")
    parser.add_argument("--part", choices=["search", "random", "slow", "predictors"], action="append")
    parser.add_argument("--optimizers", default=",".join(FAST))
    parser.add_argument("--seeds", type=int, default=10, help="on the named objectives")
    parser.add_argument("--random-objectives", type=int, default=20)
    parser.add_argument("--random-seeds", type=int, default=3, help="on random objectives")
    parser.add_argument("--slow-seeds", type=int, default=3)
    parser.add_argument("--slow-decisions", type=int, default=60, help="cap on decisions of the slow optimizers")
    parser.add_argument("--subsets", type=int, default=10, help="random training sets of the predictors")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("runs/replay"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    table = read_regmix(options.directory)
    parts = {"search": search_part, "random": random_part, "slow": slow_part, "predictors": predictor_part}
    for name in options.part or parts:
        text = parts[name](table, options)
        print(f"\n{text}", flush=True)
        if options.out:
            write_text(options.out, replaced(options.out.read_text(encoding="utf-8"), name, text))


def search_part(table, options):
    names = usable(options.optimizers.split(","))
    settings = Benchmark(TARGET, NAMED, names, range(options.seeds), BUDGET, until_best=True)
    return "\n\n".join(tables(replayed(table, settings, options), settings))


def random_part(table, options):
    names = usable(options.optimizers.split(","))
    drawn = random_objectives(list(table.columns), options.random_objectives, 0)
    settings = Benchmark(TARGET, drawn, names, range(options.random_seeds), BUDGET, until_best=True)
    rows = pooled(replayed(table, settings, options), f"{len(drawn)} random objectives")
    return as_table(rows, f"{rows[0]['objective']}, {options.random_seeds} seeds each; errors over objectives")


def slow_part(table, options):
    first = random_objectives(list(table.columns), 1, 0)
    names = [*usable(SLOW), "random"]
    settings = Benchmark(TARGET, NAMED | first, names, range(options.slow_seeds), BUDGET, options.slow_decisions)
    found = tables(replayed(table, settings, options), settings)
    return "\n\n".join([f"All of these end after {options.slow_decisions} decisions.", *found])


def predictor_part(table, options):
    head = (
        "predictor",
        "1M runs",
        *(f"{name}, {rung}" for name in NAMED for rung in (LOW, TARGET)),
        "CPU seconds, all four",
    )
    lines = [line(head), "|---|" + "---:|" * (len(head) - 1)]
    for num in (64, 512):
        subsets = options.subsets if num < 512 else 1  # 512 are all there are
        for name, predict in PREDICTORS.items():
            found = np.array([ranks(table, predict, num, seed) for seed in range(subsets)])
            error = found.std(0, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.full(found.shape[1], np.nan)
            cells = [measured(m, e, 2) for m, e in zip(100 * found.mean(0)[:-1], 100 * error[:-1], strict=True)]
            lines.append(line((name, num, *cells, f"{found[:, -1].mean():.1f}")))
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join([f"Spearman x 100 on the 128 test mixtures; mean ± standard error of {options.subsets} random sets of 64; 512 are all there are.", "", *lines])  # fmt: skip


def ranks(table, predict, num, seed):
    """Return Spearman correlations of each named objective at 1M and 60M, and CPU seconds."""
    from scipy.stats import spearmanr

    runs = np.array(table.runs)
    train = np.flatnonzero(np.char.startswith(runs, "train-"))
    chosen = np.sort(seeding.generator(seed, "subset", num).permutation(train)[:num])
    test = {rung: np.flatnonzero(np.char.startswith(runs, "test-") & (np.array(table.fidelities) == rung))
            for rung in (LOW, TARGET)}  # fmt: skip
    found, start = [], time.process_time()
    for expression in NAMED.values():
        case = Case.of(table, TARGET, expression)
        for rung, rows in test.items():
            believed = predict(case, chosen, rows, rung)
            found.append(spearmanr(believed, case.values[rows]).statistic)
    return [*found, time.process_time() - start]


def ours(case, chosen, rows, rung):
    """The surrogate of mfbo, through its own door."""
    optimizer = catalog.make("mfbo", case.task(0))
    history = case.table.history(chosen)
    return optimizer.predict(history, [case.pool.mixture(row) for row in rows], fidelity=rung).mean["objective"]


def trees(case, chosen, rows, rung):
    """LightGBM on the objective, as RegMix does."""
    return fit_trees(case.table.weights[chosen], case.values[chosen], seed=0)(case.table.weights[rows])


def laws(case, chosen, rows, rung):
    """A log-linear law per column, then the objective, as Olmix does."""
    objective: Objective = case.objective
    values = np.stack([case.table.columns[name][chosen] for name in objective.columns], axis=1)
    predicted = fit_law(case.table.weights[chosen], values).predict(case.table.weights[rows])
    return objective.value(dict(zip(objective.columns, predicted.T, strict=True)))


PREDICTORS = {"mfbo's surrogate": ours, "LightGBM on the objective": trees, "log-linear per column": laws}


def usable(names):
    """Keep the optimizers there are."""
    missing = [name for name in names if name not in catalog.names()]
    if missing:
        print(f"not in the catalog, left out: {', '.join(missing)}", file=sys.stderr)
    return [name for name in names if name in catalog.names()]


def replayed(table, settings, options):
    jobs, start = settings.jobs(Ground(table)), time.monotonic()

    def done(result):
        job, score = result.job, result.replay.score
        print(
            f"{time.monotonic() - start:7.0f} s  {job.optimizer} {job.label} seed {job.seed}: cost to best "
            f"{score.cost_to_best:.2f}, {result.replay.seconds_per_decision:.2f} s per decision",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    return run_all(Ground(table), jobs, workers=options.workers, cache=options.cache, done=done)


def tables(results, settings):
    rows = summarize(results)
    for label in settings.objectives:
        mine = [row for row in rows if row["objective"] == label]
        yield as_table(mine, f"{label}, {mine[0]['seeds']} seeds")


def as_table(rows, title):
    head = ("optimizer", "cost to best", "found", "area", "final regret", "recommended", "runs bought", "s/decision")
    lines = [f"**{title}**", "", line(head), "|---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        runs = ", ".join(f"{count:.4g} x {rung}" for rung, count in row["runs_bought"].items())
        lines.append(line((
            row["optimizer"],
            measured(row["cost_to_best_mean"], row["cost_to_best_se"], 2),
            f"{row['success']:.0%}",
            measured(row["auc_mean"], row["auc_se"], 4),
            measured(row["regret_at_budget_mean"], row["regret_at_budget_se"], 4),
            measured(row["recommendation_regret_mean"], row["recommendation_regret_se"], 4),
            runs,
            f"{row['seconds_per_decision']:.2f}",
        )))  # fmt: skip
    return "\n".join(lines)


def line(cells):
    return "| " + " | ".join(map(str, cells)) + " |"


def measured(mean, error, places):
    return f"{mean:.{places}f}" + ("" if error is None or np.isnan(error) else f" ± {error:.{places}f}")


def replaced(page, part, text):
    """Return the page with the text between the markers of a part."""
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(page):
        sys.exit(f"the page has no markers {begin} ... {end}; add them where the tables belong")
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page)


if __name__ == "__main__":
    main()
