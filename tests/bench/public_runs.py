"""The public set of runs: our own proxies on the built-in corpus, with the scores of their experts.

    python tests/bench/public_runs.py [--out experiments/runs] [--dir runs/public] [--workers 2]

Trains 64 mixtures of the eight built-in domains, each on three seeds, eight data experts on
three seeds, and eight experts forked from one seed model: 225 proxies of the quickstart's
size at three nested rungs, one to two CPU hours. Every run is a run of a mixopt study (role,
rung, seed in its ledger), so the same command goes on after an interruption. Ends by writing
the runs table, the thinned scores and their card to `--out`.

    K domains
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from mixopt.experiments import build
from mixopt.observation import Role
from mixopt.passages import TEXT, passages_path, read_passages, save_passages
from mixopt.proxies.merging import load_merged
from mixopt.runs import RunsTable, write_runs
from mixopt.scores import ScoreCard, save_scores
from mixopt.seeding import generator
from mixopt.storage import read_json
from mixopt.study import Study

SEED, SEEDS = 0, 3
# Dirichlet weights per domain: 0.1 leaves one or two domains, 10 stays within a factor of two of uniform.
STRENGTHS = {0.1: 12, 0.3: 14, 1.0: 18, 3.0: 12, 10.0: 8}
STACK = 4
EVAL_TOKENS = 4096
TASKS = {
    "mc_order": 500,
    "mc_facts": 200,
    "mc_cloze": 100,
}  # questions; what they cost is in proportion to options' tokens
DIGITS = 6
# (study, its experts' rung, whether tasks are kept too): what fits into 10 MB. Forked ones are from `forked`.
KEPT = {
    "experts-0-top": ("mixtures", "top", True),
    "experts-0-mid": ("mixtures", "mid", False),
    "experts-0-low": ("mixtures", "low", False),
    "experts-1-top": ("experts-1", "top", False),
    "experts-1-low": ("experts-1", "low", False),
    "experts-2-top": ("experts-2", "top", False),
    "experts-2-low": ("experts-2", "low", False),
    "forked-top": ("forked", "top", False),
}
STUDIES = Path(__file__).parents[2] / "experiments" / "studies"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/runs"))
    parser.add_argument("--dir", type=Path, default=Path("runs/public"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    for name, study in studies(options.dir, options.workers).items():
        path = options.dir / f"{name}.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        command = [sys.executable, "-m", "mixopt.experiments.cli", "run", str(path), "--dir", str(options.dir / name)]
        subprocess.run(command, check=True)
    options.out.mkdir(parents=True, exist_ok=True)
    table = as_table(Study(options.dir / "mixtures"))
    write_runs(table, options.out / "proxies.csv")
    for name, (study, rung, tasks) in KEPT.items():
        pack(options.dir / study, rung, options.out / f"{name}.zip", seed=seed_of(study), tasks=tasks)
    write_merged(options.dir / "forked.yaml", table, options.out / "merged.csv")


def studies(directory, workers):
    """Return {name: study file}: all mixtures with experts of seed 0, experts of two further seeds, forked experts."""
    base = yaml.safe_load((STUDIES / "quickstart.yaml").read_text())
    domains = list(base["domains"])
    base["eval_sets"] |= {
        name: {"path": f"builtin:targets/{name}.parquet", "kind": "multiple_choice", "questions": questions}
        for name, questions in TASKS.items()
    }
    base["evaluation"] = {"tokens": EVAL_TOKENS, "domain_tokens": EVAL_TOKENS}
    base["validation"] = {"baselines": [], "seeds": 0}
    base["run"] = {"workers": workers, "stack": STACK, "tracking_uri": "none", "device": "cpu"}
    table = directory / "mixtures.csv"
    write_mixtures(table, domains)
    listed = {"optimizer": "listed", "mixtures": str(table.resolve())}
    experts_only = {"search": {**listed, "budget": 0}}
    num = SEEDS * sum(STRENGTHS.values())
    return {
        "experts-1": {**base, **experts_only, "name": "experts-1", "seed": 1},
        "experts-2": {**base, **experts_only, "name": "experts-2", "seed": 2},
        "forked": {**base, **experts_only, "name": "forked", "warm_start": {"mixture": "uniform", "fidelity": "low"}},
        "mixtures": {**base, "name": "mixtures", "search": {**listed, "budget": num, "batch_size": num}},
    }


def write_mixtures(path, domains):
    """Write the list of runs: every mixture once, then all of them again for the other seeds."""
    drawn = mixtures(len(domains))
    with path.open("w", newline="") as file:
        sheet = csv.writer(file)
        sheet.writerow(["run", *(f"weight/{name}" for name in domains)])
        for seed in range(SEEDS):
            sheet.writerows([f"{name}-{seed}", *map(repr, weights)] for name, weights in drawn)


def mixtures(num):
    """Return (name, (K,) weights) of all mixtures, strengths in turn; weights of four decimals sum to 1."""
    rng = generator(SEED, "public runs")
    left, found = dict(STRENGTHS), []
    while any(left.values()):
        for strength in [s for s, count in left.items() if count]:
            left[strength] -= 1
            found.append((f"m{len(found):02d}", rounded(rng.dirichlet(np.full(num, strength)))))
    return found


def rounded(weights):
    """Return weights as floats of four decimals, so that the table shows exactly what was trained."""
    found = np.round(weights, 4)
    found[np.argmax(found)] += 1 - found.sum()
    return np.round(found, 4).tolist()


def as_table(study):
    """Return the runs table of the mixtures: a row per run and rung, named by mixture, seed and rung."""
    header, history = study.header, study.history().of(Role.SEARCH)
    names = [f"{name}-{seed}" for seed in range(SEEDS) for name, _ in mixtures(len(header.domain_names))]
    of = dict(zip([trial.id for trial in history.trials], names, strict=True))
    seen, trials = history.observations, {trial.id: trial for trial in history.trials}
    columns = {name: np.array([shortened(o.columns()[name]) for o in seen]) for name in seen[0].columns()}
    return RunsTable(
        domains=header.domain_names,
        runs=tuple(f"{of[o.trial]}@{o.fidelity}" for o in seen),
        fidelities=tuple(o.fidelity for o in seen),
        weights=np.array([trials[o.trial].mixture.weights for o in seen]),
        columns=columns,
        costs=np.array([header.ladder[o.fidelity].num_tokens / header.ladder.rungs[0].num_tokens for o in seen]),
        seeds=tuple(int(of[o.trial].rpartition("-")[2]) for o in seen),
        parents=(None,) * len(seen),
        params=np.array([float(header.ladder[o.fidelity].num_params) for o in seen]),
        tokens=np.array([float(header.ladder[o.fidelity].num_tokens) for o in seen]),
    )


def shortened(value):
    """Return a number of six significant digits."""
    return float(f"{value:.{DIGITS}g}")


def seed_of(study):
    """Return the number that stands for a study's random seed in cards."""
    return int(study.rpartition("-")[2]) if study.startswith("experts-") else 0


def pack(directory, rung, path, *, seed, tasks):
    """Write the scores of a study's experts at a rung, in half precision, as a zipped scores folder."""
    scores = directory / "scores"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in sorted(scores.glob("*.json")):
            card = ScoreCard(**read_json(file))
            if card.fidelity == rung and (tasks or card.kind == TEXT):
                save_passages(folder, read_passages(passages_path(scores, card.eval_fingerprint)))
                thinned = np.load(file.with_suffix(".npy")).astype(np.float16)
                save_scores(folder, f"{card.domain}-{card.eval_set}", thinned, replace(card, seed=seed))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for file in sorted(folder.iterdir()):
                # A fixed date, so that equal content is an equal file.
                entry = zipfile.ZipInfo(file.name, (1980, 1, 1, 0, 0, 0))
                archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED, 9)


def write_merged(path, table, out):
    """Write what models merged from the forked experts lose on every evaluation set, a row per mixture."""
    location = build.locate(path)
    location = replace(location, directory=path.with_suffix(""))
    _, evaluator = build.prepare(location)
    evaluator.limit_threads()
    merged = load_merged(Study(location.directory), evaluator)
    first = [i for i, run in enumerate(table.runs) if run.endswith("-0@top")]
    losses = merged.predict(table.weights[first])
    with out.open("w", newline="") as file:
        sheet = csv.writer(file)
        sheet.writerow(["run", *merged.columns])
        sheet.writerows([table.runs[i], *map(shortened, row)] for i, row in zip(first, losses, strict=True))


if __name__ == "__main__":
    main()
