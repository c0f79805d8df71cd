"""A whole study on a synthetic problem: real service, executor and ledger, nothing trained."""

import json

import numpy as np
import torch

from mixopt import Constraints, Domain, EvalSet, Ladder, Mixture, Objective
from mixopt.execution import SerialExecutor
from mixopt.proposal import Prediction
from mixopt.search.baselines import SobolOptimizer
from mixopt.search.bayes import MultiFidelityOptimizer
from mixopt.search.problems import SyntheticEvaluator, SyntheticPredictor, SyntheticProblem
from mixopt.service import Plan, run_study
from mixopt.study import Header, Study
from mixopt.tracking import NullTracker

torch.set_num_threads(1)

PROBLEM = SyntheticProblem.random(3, 2, seed=1)
LADDER = Ladder.from_flops([("low", "m", 10, 100, 1.0), ("mid", "m", 10, 400, 4.0), ("top", "m", 10, 1600, 16.0)], 0.05)
DOMAINS = tuple(Domain(name, 1000 * (i + 1), 10, 4000, f"text-{name}") for i, name in enumerate(PROBLEM.domains))
NAMES = tuple(domain.name for domain in DOMAINS)


def a_header(*, budget=3.0):
    return Header(
        name="synthetic",
        seed=5,
        domains=DOMAINS,
        eval_sets=tuple(EvalSet(name, 100, 400, fingerprint=f"text-{name}") for name in PROBLEM.eval_sets),
        ladder=LADDER,
        tokenizer="t0",
        objective={"expression": "mean(loss/*)", "unit": "nats_per_token"},
        budget=budget,
        experts_fidelity="top",
    )


class QuickSobol(SobolOptimizer):
    """The Sobol search, with predictions from the ensemble instead of a surrogate that takes a second to fit."""

    def predict(self, history, mixtures, *, fidelity):
        weights = np.stack([mixture.over(NAMES).weights for mixture in mixtures])
        losses = SyntheticPredictor(PROBLEM).predict(weights)
        mean = {f"loss/{name}": losses[:, j] for j, name in enumerate(PROBLEM.eval_sets)}
        mean["objective"] = self.objective.value(mean)
        return Prediction(fidelity, mean, dict.fromkeys(mean, np.full(len(weights), 0.1)))


def quick_sobol(predictor):
    return QuickSobol(Constraints.simplex(NAMES), LADDER, an_objective(), 5)


def sobol(predictor):
    return SobolOptimizer(Constraints.simplex(NAMES), LADDER, an_objective(), 5)


def mfbo(predictor):
    return MultiFidelityOptimizer(Constraints.simplex(NAMES), LADDER, an_objective(), predictor, 5, initial=2)


def an_objective():
    return Objective.parse("mean(loss/*)", [f"loss/{name}" for name in PROBLEM.eval_sets])


def a_plan(**fields):
    defaults = {
        "header": a_header(budget=fields.pop("budget", 3.0)),
        "evaluator": SyntheticEvaluator(PROBLEM, LADDER),
        "optimizer": quick_sobol,
        "predictor": lambda study: SyntheticPredictor(PROBLEM),
        "unscored": lambda study: (),
        "batch_size": 2,
        "baselines": {"natural": Mixture.natural(DOMAINS), "uniform": Mixture.uniform(NAMES)},
        "validation_seeds": 2,
        "stack": 2,
        "retries": 2,
    }
    return Plan(**{**defaults, **fields})


def run(folder, plan=None, **options):
    """Run or resume a study in a folder and return it as the ledger tells it."""
    plan = plan or a_plan()
    run_study(Study(folder), plan, executor=SerialExecutor(plan.evaluator, folder), tracker=NullTracker(), **options)
    return Study(folder)


def events(study):
    """The ledger without times and checksums."""
    lines = [json.loads(line) for line in study.files.ledger.read_bytes().splitlines()]
    return [{key: value for key, value in event.items() if key not in ("time", "crc")} for event in lines]
