"""A study with warm starts and real proxies: forks hold the seed's weights, and a killed study goes on."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mixopt import Domain, EvalSet, Ladder, Mixture, Role, Status, StudyError, Trial
from mixopt.execution import SerialExecutor
from mixopt.proposal import Prediction, Proposal, Recommendation
from mixopt.protocols import Job
from mixopt.proxies.checkpoint import load_states
from mixopt.proxies.evaluators import ProxyEvaluator
from mixopt.service import Plan, finished, run_study
from mixopt.storage import RunDirectory
from mixopt.study import Header, Study
from mixopt.tracking import NullTracker
from mixopt.warm_start import WarmStart

from .builders import small_config, write_shard

torch.set_num_threads(1)

NAMES = ("a", "b")
CONFIG = small_config()
# 32 tokens per step: 4, 8 and 16 steps.
LADDER = Ladder.from_flops([("low", "m", 9, 128, 1.0), ("mid", "m", 9, 256, 2.0), ("top", "m", 9, 512, 4.0)], 0.05)
DOMAINS = tuple(Domain(name, 1500, 30, 3000, f"text-{name}") for name in NAMES)
HEADER = Header(
    name="warm", seed=1, domains=DOMAINS, eval_sets=(EvalSet("x", 300, 600, fingerprint="text-x"),), ladder=LADDER,
    tokenizer="t", objective={"expression": "loss/x", "unit": "nats_per_token"}, budget=1.0, experts_fidelity="mid",
    warm_start=WarmStart("uniform", {"m": "mid"}),
)  # fmt: skip


class Grid:
    """Proposes two mixtures at the low rung and recommends the uniform one."""

    name = "grid"

    def propose(self, history, num, *, budget):
        if history.of(Role.SEARCH).trials:
            return []
        return [Proposal(Mixture(NAMES, [w, 1 - w]), "low", None, "", proposed_by="grid") for w in (0.2, 0.7)]

    def recommend(self, history):
        return Recommendation(Mixture.uniform(NAMES), "top", {}, {}, None, (), "grid")

    def predict(self, history, mixtures, *, fidelity):
        return Prediction(fidelity, {}, {})


def evaluator(folder):
    shards = {name: f"shard-{name}" for name in (*NAMES, "x")}
    for i, name in enumerate(shards):
        if not (folder / "tokens" / shards[name]).exists():
            write_shard(folder / "tokens" / shards[name], seed=i, num_docs=10)
    return ProxyEvaluator(
        ladder=LADDER, models={"m": CONFIG}, shards={n: shards[n] for n in NAMES}, eval_shards={"x": shards["x"]},
        data={"a": "text-a", "b": "text-b", "eval/x": "text-x"}, tokenizer="t", experts_fidelity="mid", device="cpu",
    )  # fmt: skip


def plan(folder):
    return Plan(
        header=HEADER, evaluator=evaluator(folder), optimizer=lambda predictor: Grid(), predictor=lambda study: None,
        unscored=lambda study: (), batch_size=2, baselines={"natural": Mixture(NAMES, [0.4, 0.6])},
        validation_seeds=1, stack=2, retries=0,
    )  # fmt: skip


class Killed(BaseException):
    """What a kill looks like from inside."""


class Mortal(SerialExecutor):
    """An executor whose process is killed after some jobs, the result written and the driver not told."""

    def __init__(self, evaluator, folder, jobs):
        super().__init__(evaluator, folder)
        self.jobs = jobs

    def collect(self, timeout):
        reports = super().collect(timeout)
        self.jobs -= len(reports)
        if self.jobs < 0:
            raise Killed
        return reports


def run(folder, jobs=1000):
    own = plan(folder)
    run_study(Study(folder), own, executor=Mortal(own.evaluator, folder, jobs), tracker=NullTracker())
    return Study(folder)


def state(folder, trial):
    return load_states(RunDirectory(folder).trial(trial) / "state.safetensors")[0][0]


def results(study):
    return {o.key: (o.losses, o.cost, o.flops) for o in study.observations}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished study, run uninterrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), folder


def test_a_warm_study_runs_from_seed_to_validation(whole):
    study, folder = whole
    counts = Counter((t.role, t.status, t.parent) for t in study.trials)
    assert counts == {
        (Role.SEED, Status.DONE, None): 1,
        (Role.EXPERT, Status.DONE, "seed-m"): 2,
        (Role.SEARCH, Status.DONE, "seed-m"): 2,
        (Role.VALIDATION, Status.DONE, None): 2,
    }
    assert finished(study, plan(folder))


def test_a_fork_counts_its_own_steps_and_the_seed_keeps_its_weights(whole):
    _, folder = whole
    assert state(folder, "seed-m").step == CONFIG.num_steps(256)
    assert state(folder, "search-000").step == CONFIG.num_steps(128)


def test_a_fork_is_charged_and_metered_for_its_own_tokens_alone(whole):
    found = {
        o.trial: o
        for o in whole[0].observations
        if o.trial in ("search-000", "valid-natural-1") and o.fidelity == "low"
    }
    assert found["search-000"].cost == pytest.approx(LADDER["low"].cost)
    assert found["search-000"].flops == pytest.approx(found["valid-natural-1"].flops)


def test_a_fork_starts_better_than_a_run_from_scratch(whole):
    losses = {o.key: o.losses["x"] for o in whole[0].observations}
    assert losses["search-000", "low"] < losses["valid-natural-1", "low"]


@pytest.mark.parametrize("jobs", [0, 1, 2])
def test_a_killed_warm_study_goes_on_to_the_same_numbers(whole, tmp_path, jobs):
    with pytest.raises(Killed):
        run(tmp_path, jobs)
    resumed = run(tmp_path)
    assert results(resumed) == results(whole[0])
    assert [t.id for t in resumed.trials] == [t.id for t in whole[0].trials]


def test_the_job_of_a_fork_is_another_than_that_of_a_run_from_scratch(tmp_path):
    trial = Trial("t", Role.SEARCH, Mixture.uniform(NAMES), "low", 1, "test")
    forks = [replace(trial, parent=parent, parent_kind="forked") for parent in ("seed-m", "seed-m.2")]
    prints = {evaluator(tmp_path).fingerprint([each], "train") for each in (trial, *forks)}
    assert len(prints) == 3


def test_a_lost_seed_model_is_named(tmp_path):
    trial = Trial("t", Role.SEARCH, Mixture.uniform(NAMES), "low", 1, "test", parent="seed-m", parent_kind="forked")
    with pytest.raises(StudyError, match="t goes on from seed-m, whose saved state is gone"):
        evaluator(tmp_path).evaluate(Job("f", (trial,)), tmp_path)
