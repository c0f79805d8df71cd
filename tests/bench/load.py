"""What the driver costs: studies of many trials and domains with an evaluator that takes no time.

    python tests/bench/load.py [--trials 125 250 500 1000] [--domains 64] [--show]

The real service, serial executor, ledger and result files; a synthetic problem and the Sobol
optimizer. Printed per number of trials: CPU milliseconds per trial of the driver, size of
the ledger, CPU seconds to open it again and to build its history and table, and what that
added to the memory of this process. With `--show` a second table: CPU milliseconds per trial to
bring an MLflow store (SQLite) up to date, and then with nothing new, and CPU seconds of the verbs
`status` and `report` in processes of their own. Times per trial that grow with the number of trials
are work that grows faster than linearly.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mixopt import Constraints, Domain, EvalSet, Ladder, Mixture, Objective
from mixopt.config import validate
from mixopt.execution import SerialExecutor
from mixopt.experiments.build import Location, save_config
from mixopt.proposal import Prediction
from mixopt.search.baselines import SobolOptimizer
from mixopt.search.problems import SyntheticEvaluator, SyntheticProblem
from mixopt.service import Plan, run_study
from mixopt.study import Header, Study
from mixopt.tracking import MlflowTracker, NullTracker

LADDER = Ladder.from_flops([("low", "m", 10, 100, 1.0), ("mid", "m", 10, 400, 4.0), ("top", "m", 10, 1600, 16.0)], 0.05)
NUM_SETS, BATCH, STACK = 12, 8, 4
MEGABYTE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[125, 250, 500, 1000])
    parser.add_argument("--domains", type=int, default=64)
    parser.add_argument("--show", action="store_true", help="time MLflow, status and report as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| trials | driver, CPU ms per trial | ledger, MB | open again, CPU s | history and table, CPU s | memory, MB |"
    )
    print("|---:|---:|---:|---:|---:|---:|")
    shown = []
    for num in options.trials:
        with tempfile.TemporaryDirectory() as folder:
            cells = measured(Path(folder) / "load", num, options.domains)
            print(f"| {num} | " + " | ".join(cells) + " |", flush=True)
            if options.show:
                shown.append((num, shown_in(Path(folder) / "load", num)))
    if shown:
        print("\n| trials | MLflow, CPU ms per trial | again | status, CPU s | report, CPU s | report, MB |")
        print("|---:|---:|---:|---:|---:|---:|")
    for num, cells in shown:
        print(f"| {num} | " + " | ".join(cells) + " |", flush=True)


def measured(folder, num, num_domains):
    """Return the cells of one study."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    plan = a_plan(num, num_domains)
    run_study(Study(folder), plan, executor=SerialExecutor(plan.evaluator, folder), tracker=NullTracker())
    driven = time.process_time() - start
    start = time.process_time()
    study = Study(folder)
    opened = time.process_time() - start
    start = time.process_time()
    assert len(study.history().trials) == num
    study.to_frame()
    tabled = time.process_time() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    size = study.files.ledger.stat().st_size / MEGABYTE
    return f"{1000 * driven / num:.1f}", f"{size:.2f}", f"{opened:.2f}", f"{tabled:.2f}", f"{grown / 1024:.0f}"


def shown_in(folder, num):
    """Return the cells of the second table."""
    study = Study(folder)
    domains = {name: {"path": f"{name}.txt"} for name in study.header.domain_names}
    ladder = [{"name": rung.name, "tokens": rung.num_tokens} for rung in LADDER]
    fields = {"name": "load", "domains": domains, "objective": study.header.objective, "ladder": ladder}
    fields["search"] = {"optimizer": "sobol", "budget": num}
    save_config(Location(validate(fields, "study.yaml"), folder))
    tracker = MlflowTracker(f"sqlite:///{folder}/mlflow.db", experiment="load", artifact_root=folder / "artifacts")
    milliseconds = []
    for _ in range(2):
        start = time.process_time()
        tracker.project(study)
        milliseconds.append(1000 * (time.process_time() - start) / num)
    verbs = []
    for verb in ("status", "report"):
        before = children_seconds()
        subprocess.run([sys.executable, "-m", "mixopt.experiments.cli", verb, folder], check=True, capture_output=True)
        verbs.append(children_seconds() - before)
    size = study.files.report.stat().st_size / MEGABYTE
    return f"{milliseconds[0]:.1f}", f"{milliseconds[1]:.2f}", f"{verbs[0]:.1f}", f"{verbs[1]:.1f}", f"{size:.1f}"


def children_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def a_plan(num, num_domains):
    """A study of `num` target runs of a synthetic problem."""
    problem = SyntheticProblem.random(num_domains, NUM_SETS, seed=1)
    columns = [f"loss/{name}" for name in problem.eval_sets]
    objective = Objective.parse("mean(loss/*)", columns)
    header = Header(
        name="load", seed=0, domains=tuple(Domain(name, 1000, 10, 4000, name) for name in problem.domains),
        eval_sets=tuple(EvalSet(name, 100, 400, fingerprint=name) for name in problem.eval_sets), ladder=LADDER,
        tokenizer="t", objective={"expression": "mean(loss/*)", "unit": "nats_per_token"}, budget=float(num),
        experts_fidelity="top",
    )  # fmt: skip
    return Plan(
        header=header,
        evaluator=SyntheticEvaluator(problem, LADDER),
        optimizer=lambda predictor: Unpredicted(Constraints.simplex(problem.domains), LADDER, objective, 0),
        predictor=None,
        unscored=lambda study: (),
        batch_size=BATCH,
        baselines={"uniform": Mixture.uniform(problem.domains)},
        validation_seeds=0,
        stack=STACK,
        retries=0,
    )


class Unpredicted(SobolOptimizer):
    """The Sobol search without predictions of its contenders: the processes that make them are not linear in runs."""

    def predict(self, history, mixtures, *, fidelity):
        unknown = np.full(len(mixtures), 0.0)
        return Prediction(fidelity, {"objective": unknown}, {"objective": unknown})


if __name__ == "__main__":
    main()
