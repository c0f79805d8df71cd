"""The predictor on the public set of runs: does it rank mixtures, and what is it worth to a search?

    python tests/bench/mde.py [--out docs/benchmarks.md] [--part ranks] [--splits 10] [--seeds 10]

Nothing is trained: runs, experts' scores and losses of merged models come with mixopt
(experiments/runs/README.md says how they were made). Parts: ranks, few, prefix, tasks,
merged, search. `--out` replaces what stands between the markers of each part that was run.
Methods learn from single runs of one seed; what they predict is compared with mixtures
they have not seen, averaged over the three seeds.

    M mixtures, K domains, J columns
"""

from __future__ import annotations

import argparse
import sys
import warnings
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from mixopt import seeding
from mixopt.blocks import PLAIN, Temper
from mixopt.choices import beats_chance, chance
from mixopt.constraints import Constraints
from mixopt.experiments import public
from mixopt.mde import MDE
from mixopt.objective import Objective
from mixopt.observation import History
from mixopt.passages import TEXT
from mixopt.runs import read_runs
from mixopt.scores_folder import load_scores
from mixopt.search import loglinear
from mixopt.search.accuracy_link import fit_link
from mixopt.search.baselines import fit_trees
from mixopt.search.catalog import make
from mixopt.search.encoding import LOG_OFFSET, Encoder, Evidence
from mixopt.search.pool import Pool
from mixopt.search.replay import Case, play
from mixopt.search.surrogate import Surrogate
from mixopt.sheet import read_sheet
from mixopt.storage import write_text
from mixopt.temper import fit_temper

TOP, SEEDS, QUANTILE = "top", 3, 1.645
TOO_LARGE = 1000  # nats: an exponential law that left the hull of its runs
TARGETS = ("loss/jargon", "loss/world_facts", "loss/python_heldout")  # what the quickstart minimizes the mean of
TASKS = ("mc_order", "mc_facts", "mc_cloze")
QUESTIONS = {"mc_order": 500, "mc_facts": 200, "mc_cloze": 100}
SIZES = (4, 8, 16)
BUDGET, NUM_OBJECTIVES = 24.0, 4
TAUS, CAPS = (0.001, 0.003, 0.01, 0.1, 1.0), (np.inf, 1.0, 0.2)
TEMPERS = (PLAIN, *(Temper(tau, cap) for tau in TAUS for cap in CAPS))
RIDGE = np.logspace(-4, 3, 15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="page to bring up to date")
    parser.add_argument("--part", choices=PARTS, help="only this one")
    parser.add_argument("--splits", type=int, default=10, help="random sets of runs to learn from")
    parser.add_argument("--seeds", type=int, default=3, help="of the searches")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*constant.*")  # a rank of a constant prediction is not a number
    for name in [options.part] if options.part else PARTS:
        text = PARTS[name](options)
        print(f"{text}\n", flush=True)
        if options.out:
            write_text(options.out, replaced(options.out.read_text(encoding="utf-8"), f"mde {name}", text))


# --- the set ------------------------------------------------------------------


@cache
def table():
    return read_runs(public.resolve(Path("builtin:runs/proxies.csv")))


@cache
def at_top():
    """(M, K) mixtures, and {column: (seeds, M)} of the top rung."""
    rows = [np.flatnonzero([run.endswith(f"-{seed}@{TOP}") for run in table().runs]) for seed in range(SEEDS)]
    names = [[table().runs[i].partition("-")[0] for i in of_seed] for of_seed in rows]
    assert names[0] == names[1] == names[2]
    return table().weights[rows[0]], {c: np.stack([values[r] for r in rows]) for c, values in table().columns.items()}


def losses():
    """The columns of text: tasks have one as well, of their right options."""
    return [c for c in table().columns if c.startswith("loss/") and c.partition("/")[2] not in TASKS]


@cache
def experts(name, *, tasks=True):
    folder = public.scores_folder(Path(f"builtin:runs/{name}.zip"))
    known = load_scores(folder, table().domains)
    return MDE(table().domains, [scores for scores in known if tasks or scores.passages.kind == TEXT])


@cache
def predicted(name):
    """{column: (M,)} of an ensemble."""
    mde = experts(name)
    return dict(zip(mde.columns, mde.predict(at_top()[0]).T, strict=True))


def goal(columns):
    """Mean of the quickstart's targets in bits per byte, up to a factor: the columns have nearly the same."""
    return np.mean([columns[name] for name in TARGETS], axis=0)


def rank(a, b):
    return float(spearmanr(a, b).statistic)


def ranks_of(columns, seed):
    """Mean Spearman over evaluation sets, and that of the objective, with the runs of one seed."""
    measured = {name: values[seed] for name, values in at_top()[1].items()}
    return np.mean([rank(columns[n], measured[n]) for n in losses()]), rank(goal(columns), goal(measured))


# --- ranks --------------------------------------------------------------------


def ranks(options):
    """Rank agreement of the MDE alone."""
    rows = {
        "MDE, experts at top (512k tokens)": ["experts-0-top", "experts-1-top", "experts-2-top"],
        "MDE, experts at mid (half of the tokens)": ["experts-0-mid"],
        "MDE, experts at low (a quarter of the tokens)": ["experts-0-low", "experts-1-low", "experts-2-low"],
        "MDE, forked experts (a quarter as seed model, then 512k)": ["forked-top"],
    }
    found = {
        label: [ranks_of(predicted(name), seed) for name in names for seed in range(SEEDS)]
        for label, names in rows.items()
    }
    seen = at_top()[1]
    found["runs of another seed (the noise ceiling)"] = [
        ranks_of({name: values[other] for name, values in seen.items()}, seed)
        for seed, other in product(range(SEEDS), repeat=2) if seed != other
    ]  # fmt: skip
    for rung in ("low", "mid"):
        found[f"the same runs at {rung}"] = [ranks_of(rung_columns(rung, seed), seed) for seed in range(SEEDS)]
    linear = jensen("experts-0-top")
    found["weighted mean of the experts' losses"] = [ranks_of(linear, seed) for seed in range(SEEDS)]
    lines = [
        "| ranks against single runs at top | evaluation sets, mean of 11 | mean of the three targets |",
        "|---|---:|---:|",
    ]
    lines += [f"| {label} | {spread(np.array(v)[:, 0])} | {spread(np.array(v)[:, 1])} |" for label, v in found.items()]
    by_set = {
        name: [rank(predicted(f"experts-{e}-top")[name], seen[name][s]) for e in range(3) for s in range(3)]
        for name in losses()
    }
    lines += [
        "",
        "Per set, experts at top: "
        + ", ".join(f"{n.partition('/')[2]} {np.mean(v):.3f}" for n, v in by_set.items())
        + ".",
    ]
    return "\n".join(lines)


def rung_columns(rung, seed):
    rows = [i for i, run in enumerate(table().runs) if run.endswith(f"-{seed}@{rung}")]
    return {name: values[rows] for name, values in table().columns.items()}


def jensen(name):
    """What averaging losses instead of probabilities says."""
    own = experts(name).predict(np.eye(len(table().domains)), losses())
    return dict(zip(losses(), (at_top()[0] @ own).T, strict=True))


# --- few runs -----------------------------------------------------------------


def few(options):
    """Learning from 4, 8 and 16 runs: Spearman and RMSE per evaluation set, and of the objective."""
    scores = {}
    coverage = {(method, n): [] for method in ("surrogate + MDE", "surrogate") for n in SIZES}
    for split, n in product(range(options.splits), SIZES):
        seed, (weights, seen) = split % SEEDS, at_top()
        order = seeding.generator(split, "bench", "mde").permutation(len(weights))
        train, test = np.sort(order[:n]), np.sort(order[n:])
        known = np.stack([predicted(f"experts-{seed}-top")[name] for name in losses()], axis=1)
        y = np.stack([seen[name][seed] for name in losses()], axis=1)
        truth = np.stack([seen[name].mean(0) for name in losses()], axis=1)
        other = np.stack([seen[name][(seed + 1) % SEEDS] for name in losses()], axis=1)
        for method, predict in METHODS.items():
            mean, std = predict(weights, known, y, train, test, seed)
            scores.setdefault((method, n), []).append(judged(mean, truth[test]))
            if std is not None:
                kept = test % 2 == 1  # the others have set the width of the intervals
                coverage[method, n].append(np.mean(np.abs(mean - other[test])[kept] < QUANTILE * std[kept]))
        print(f"few: split {split + 1} of {options.splits}, {n} runs", file=sys.stderr, flush=True)
    head = "| method | " + " | ".join(f"{n} runs: Spearman, RMSE; targets" for n in SIZES) + " |"
    lines = [head, "|---|" + "---:|" * len(SIZES)]
    for method in METHODS:
        cells = [np.array(scores[method, n]) for n in SIZES]
        lines.append(
            f"| {method} | "
            + " | ".join("{}, {}; {}".format(*(spread(c[:, i]) for i in range(3))) for c in cells)
            + " |"
        )
    inside = "; ".join(
        f"{method} {', '.join(f'{np.mean(coverage[method, n]):.1%} ({n} runs)' for n in SIZES)}"
        for method in ("surrogate + MDE", "surrogate")
    )
    return "\n".join(
        [*lines, "", f"Inside 90% intervals, single runs of another seed on unseen mixtures of odd number: {inside}."]
    )


def judged(mean, truth):
    """Return mean Spearman and RMSE over sets, and the Spearman of the mean of the targets."""
    targets = [losses().index(name) for name in TARGETS]
    per_set = np.mean([rank(m, t) if np.ptp(m) else 0.0 for m, t in zip(mean.T, truth.T, strict=True)])
    objective = mean[:, targets].mean(1)
    return (
        per_set,
        np.sqrt(((mean - truth) ** 2).mean(0)).mean(),
        rank(objective, truth[:, targets].mean(1)) if np.ptp(objective) else 0.0,
    )


def shift(weights, known, y, train, test, seed):
    """MDE plus the mean difference: one parameter per set."""
    return known[test] + (y[train] - known[train]).mean(0), None


def ours(predictor):
    def predict(weights, known, y, train, test, seed):
        mde = experts(f"experts-{seed}-top", tasks=False) if predictor else None
        learned = table().select(rows_of(train, seed))
        pool = Pool(table().domains, weights, (TOP,) * len(weights), np.ones(len(weights)))
        encoder = Encoder.of(mde, Constraints.simplex(table().domains), 0, pool)
        surrogate = Surrogate(encoder, Evidence.of(history(learned), ladder(), table().domains), tuple(losses()))
        with torch.no_grad():
            encoded = encoder.encode(torch.tensor(weights[test]))
            parts = [believed(surrogate.column(name), encoded) for name in losses()]
        return np.stack([mean for mean, _ in parts], axis=1), np.stack([std for _, std in parts], axis=1)

    return predict


def ladder():
    return table().select([i for i, rung in enumerate(table().fidelities) if rung == TOP]).ladder(TOP)


def history(learned):
    return learned.history(np.arange(len(learned)))


def rows_of(chosen, seed):
    names = {f"m{i:02d}-{seed}@{TOP}" for i in chosen}
    return [i for i, run in enumerate(table().runs) if run in names]


def believed(column, encoded):
    """Return means, and standard deviations of single runs, noise included."""
    rows = column.rows(encoded, column.target)
    noise = column.deviation**2 * column.posterior.kernel.noise(rows)
    return column.mean(rows).numpy(), np.sqrt(column.std(rows).numpy() ** 2 + noise.numpy())


def regressor(fit, features):
    """A method that learns every column by itself from (M, P) features."""

    def predict(weights, known, y, train, test, seed):
        x = features(weights, known)
        return np.stack([fit(x[train], column)(x[test]) for column in y[train].T], axis=1), None

    return predict


def ridge(x, y):
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(RIDGE)).fit(x, y).predict


def process(x, y):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    scale = np.maximum(x.std(0), 1e-9)
    kernel = ConstantKernel(1.0) * Matern(np.sqrt(x.shape[1]), (0.1, 100.0), nu=2.5) + WhiteKernel(0.05, (1e-4, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = GaussianProcessRegressor(kernel, normalize_y=True).fit(x / scale, y)
    return lambda points: found.predict(points / scale)


def trees(x, y):
    return fit_trees(x, y, seed=0, leaf=2)


def law(x, y):
    found = loglinear.fit(x, y[:, None])
    return lambda points: found.predict(points)[:, 0]


def logged(weights, known):
    return np.log(weights + LOG_OFFSET)


def plain(weights, known):
    return weights


def with_mde(features):
    return lambda weights, known: np.concatenate([features(weights, known), known], axis=1)


METHODS = {
    "MDE + shift": shift,
    "surrogate + MDE": ours(True),
    "surrogate": ours(False),
    "ridge, log weights": regressor(ridge, logged),
    "ridge, log weights + MDE columns": regressor(ridge, with_mde(logged)),
    "GP, log weights": regressor(process, logged),
    "GP, log weights + MDE columns": regressor(process, with_mde(logged)),
    "LightGBM, weights": regressor(trees, plain),
    "LightGBM, weights + MDE columns": regressor(trees, with_mde(plain)),
    "log-linear law, weights": regressor(law, plain),
}


# --- prefix posterior ---------------------------------------------------------


def prefix(options):
    """Does a weight that follows the prefix predict trained mixtures better? Held-out mixtures, single runs."""
    weights, seen = at_top()
    chosen, gains, found = [], [], {temper: [] for temper in TEMPERS}
    for split in range(options.splits):
        seed = split % SEEDS
        order = seeding.generator(split, "bench", "prefix").permutation(len(weights))
        train, test = order[:8], order[8:]
        y = np.stack([seen[name][seed] for name in losses()], axis=1)
        mde = experts(f"experts-{seed}-top")
        fit = fit_temper(mde, weights[train], y[train], losses(), taus=TAUS, caps=CAPS)
        for temper in TEMPERS:
            p = tempered(seed, temper)
            found[temper].append(judged(p[test] + (y[train] - p[train]).mean(0), y[test]))
        chosen.append(fit.temper)
        gains.append(found[fit.temper][-1][1] - found[PLAIN][-1][1])
    lines = [
        "| temper, cap in nats | Spearman per set | RMSE after shift | targets | chosen |",
        "|---|---:|---:|---:|---:|",
    ]
    for temper, values in found.items():
        cells = " | ".join(spread(np.array(values)[:, i]) for i in range(3))
        lines.append(f"| {temper.tau:g}, {temper.cap:g} | {cells} | {chosen.count(temper)} of {len(chosen)} |")
    error = np.std(gains, ddof=1) / np.sqrt(len(gains))
    return "\n".join(
        [*lines, "", f"Fitted on 8 runs: RMSE minus that of the plain MDE {np.mean(gains):+.4f} ± {error:.4f}."]
    )


@cache
def tempered(seed, temper):
    return experts(f"experts-{seed}-top").with_temper(temper).predict(at_top()[0], losses())


# --- tasks --------------------------------------------------------------------


def tasks(options):
    """Accuracies: do proxies beat chance, and does anything know a mixture's accuracy before it is trained?"""
    weights, seen = at_top()
    mde = experts("experts-0-top")
    lines = [
        "| task | accuracy of runs, mean (range) | chance | runs that beat it | another seed | MDE score | MDE accuracy | MDE margin | MDE loss of the answers | mean text loss |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for task in TASKS:
        measured = seen[f"score/{task}"]
        options_per_question = np.full(QUESTIONS[task], 4)
        beating = np.mean([beats_chance(a, options_per_question) for a in measured.ravel()])
        between = np.mean([rank(measured[a], measured[b]) for a, b in ((0, 1), (0, 2), (1, 2))])
        found = mde.measures(weights, task)
        text = np.mean([predicted("experts-0-top")[n] for n in losses()], axis=0)
        cells = [
            np.mean([rank(values, m) for m in measured])
            for values in (
                found.score,
                found.accuracy,
                found.margin,
                -predicted("experts-0-top")[f"loss/{task}"],
                -text,
            )
        ]
        lines.append(
            f"| {task} | {measured.mean():.3f} ({measured.min():.3f} to {measured.max():.3f}) | {chance(options_per_question):.2f} | {beating:.0%} | "
            + " | ".join(f"{value:.2f}" for value in (between, *cells)) + " |"
        )  # fmt: skip
    return "\n".join([*lines, "", links(options)])


def links(options):
    """The link from losses to accuracy, learned from runs; ranks of unseen mixtures on mc_order."""
    weights, seen = at_top()
    y, text = seen["score/mc_order"], np.stack([seen[name] for name in losses()], axis=2)
    lines = ["| mc_order, unseen mixtures | 8 runs | 16 runs | 32 runs |", "|---|---:|---:|---:|"]
    found = {
        name: []
        for name in (
            "link from all losses",
            "link from the loss of the answers",
            "mean text loss",
            "surrogate, no MDE",
            "surrogate with MDE score",
        )
    }
    for n in (8, 16, 32):
        cells = {name: [] for name in found}
        for split in range(options.splits):
            seed = split % SEEDS
            order = seeding.generator(split, "bench", "tasks").permutation(len(weights))
            train, test = np.sort(order[:n]), np.sort(order[n:])
            truth = y.mean(0)[test]
            answers = seen["loss/mc_order"][seed][:, None]
            for label, x in (("link from all losses", text[seed]), ("link from the loss of the answers", answers)):
                link = fit_link(x[train], y[seed][train], chance=0.25, num_questions=QUESTIONS["mc_order"])
                cells[label].append(safe_rank(link.predict(x[test])[0], truth))
            cells["mean text loss"].append(rank(-text[seed][test].mean(1), truth))
            for label, known in (("surrogate, no MDE", False), ("surrogate with MDE score", True)):
                cells[label].append(safe_rank(on_scores(known, train, test, seed), truth))
        for name, values in cells.items():
            found[name].append(spread(np.array(values)))
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in found.items())])


def on_scores(known, train, test, seed):
    weights = at_top()[0]
    learned = table().select(rows_of(train, seed))
    pool = Pool(table().domains, weights, (TOP,) * len(weights), np.ones(len(weights)))
    encoder = Encoder.of(experts("experts-0-top") if known else None, Constraints.simplex(table().domains), 0, pool)
    surrogate = Surrogate(encoder, Evidence.of(history(learned), ladder(), table().domains), ("score/mc_order",))
    with torch.no_grad():
        return believed(surrogate.column("score/mc_order"), encoder.encode(torch.tensor(weights[test])))[0]


def safe_rank(a, b):
    return rank(a, b) if np.ptp(a) > 0 else 0.0


# --- merged weights -----------------------------------------------------------


def merged(options):
    """Models merged from forked experts against ensembles of the same and of cold experts."""
    sheet = read_sheet(public.resolve(Path("builtin:runs/merged.csv")))
    models = {name: sheet.numbers(name) for name in sheet.columns if name.startswith("loss/")}
    found = {
        "merged weights of forked experts": models,
        "MDE of the same forked experts": predicted("forked-top"),
        "MDE of experts from scratch": predicted("experts-0-top"),
    }
    lines = [
        "| predictor | ranks per set | ranks of the targets | RMSE after shift on 8 runs |",
        "|---|---:|---:|---:|",
    ]
    for label, columns in found.items():
        values = np.array([(*ranks_of(columns, seed), left(columns, seed)) for seed in range(SEEDS)])
        lines.append(f"| {label} | " + " | ".join(spread(values[:, i]) for i in range(3)) + " |")
    agree = [rank(models[name], predicted("forked-top")[name]) for name in losses()]
    return "\n".join(
        [
            *lines,
            "",
            f"Merged models and the MDE of the same experts rank alike: {np.mean(agree):.3f} over sets ({min(agree):.3f} to {max(agree):.3f}), {rank(goal(models), goal(predicted('forked-top'))):.3f} on the targets.",
        ]
    )


def left(columns, seed):
    """RMSE per set after a shift fitted to the first 8 mixtures."""
    seen = at_top()[1]
    errors = [seen[name][seed] - columns[name] for name in losses()]
    return np.mean([np.sqrt(np.mean((e[8:] - e[:8].mean()) ** 2)) for e in errors])


# --- search -------------------------------------------------------------------


def search(options):
    """Runs until the recommended mixture is within one seed standard deviation of the best."""
    whole = table()
    drawn = seeding.generator(0, "bench", "objectives").dirichlet(np.full(len(losses()), 0.5), NUM_OBJECTIVES - 1)
    goals = [dict.fromkeys(TARGETS, 1 / 3), *(dict(zip(losses(), map(float, w), strict=True)) for w in drawn)]
    names, found = ("mfbo+mde", "mde", "mfbo", "random"), {}
    for number, (expression, seed) in enumerate(product(goals, range(options.seeds))):
        case = Case(whole, TOP, Objective.parse(expression, list(whole.columns)))
        seen = case.objective.value(at_top()[1])
        within, best = np.sqrt(seen.var(0, ddof=1).mean()), seen.mean(0).min()
        mde = experts(f"experts-{seed % SEEDS}-top", tasks=False)
        for name in names:
            made = make(name, case.task(seed, mde))
            played = play(made, case, budget=BUDGET)
            first = case.recommendation_regret(made.recommend(History()).mixture)
            regrets = [first, *(d.recommendation_regret for d in played.decisions)]
            costs = [0.0, *(d.total_cost for d in played.decisions)]
            # The replay's best is the best single run; here it is the best mixture over seeds.
            true = np.maximum(0.0, np.array(regrets) + case.best - best)
            reached = np.flatnonzero(true <= within)
            found.setdefault(name, []).append(
                (costs[reached[0]] if len(reached) else BUDGET, bool(len(reached)), true[-1] / within)
            )
        print(f"search: {number + 1} of {len(goals) * options.seeds}", file=sys.stderr, flush=True)
    experts_cost = float(len(whole.domains))
    lines = [
        "| optimizer | target runs until within one seed std | with the experts' cost | reached | regret at the end, seed stds |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, values in found.items():
        v = np.array(values, dtype=float)
        paid = experts_cost if name in ("mfbo+mde", "mde") else 0.0
        lines.append(
            f"| {name} | {spread(v[:, 0], error=True)} | {v[:, 0].mean() + paid:.1f} | {v[:, 1].mean():.0%} | {spread(v[:, 2], error=True)} |"
        )
    return "\n".join(lines)


# --- pages --------------------------------------------------------------------


def spread(values, *, error=False):
    """Write mean ± standard deviation, or standard error."""
    if np.mean(values) > TOO_LARGE:
        return f"over {TOO_LARGE:,}"
    width = np.std(values, ddof=1) / (np.sqrt(len(values)) if error else 1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {width:.3f}"


def replaced(page, name, text):
    """Put a text between the markers of its name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"no markers for {name} in the page")
    return f"{before}{begin}\n{text}\n{end}{after}"


PARTS = {"ranks": ranks, "few": few, "prefix": prefix, "tasks": tasks, "merged": merged, "search": search}

if __name__ == "__main__":
    main()
