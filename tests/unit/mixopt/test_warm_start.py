"""Warm starts in a study: who forks from whom, what is charged, what a change makes of it."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from mixopt import Ladder, Mixture, Observation, Role, Status, StudyChangedError, Trial
from mixopt.config import load_config
from mixopt.errors import ConfigError, TrainingError
from mixopt.execution import SerialExecutor
from mixopt.experiments.build import build_warm_start
from mixopt.proposal import Proposal
from mixopt.protocols import TrialResult
from mixopt.search.encoding import Evidence
from mixopt.search.problems import SyntheticEvaluator
from mixopt.service import finished, run_study
from mixopt.study import Header, Study
from mixopt.tracking import NullTracker
from mixopt.warm_start import WarmStart
from tests.unit.mixopt.synthetic_study import (
    DOMAINS,
    LADDER,
    NAMES,
    PROBLEM,
    QuickSobol,
    a_header,
    a_plan,
    events,
    quick_sobol,
    run,
)

WARM = replace(a_header(), warm_start=WarmStart("natural", {"m": "low"}))
TWO_SHAPES = Ladder.from_flops([("small", "s", 10, 100, 1.0), ("top", "m", 10, 400, 16.0)], 0.05)


def warm_plan(header=WARM, **fields):
    return a_plan(header=header, **fields)


def of(study, role):
    return [trial for trial in study.trials if trial.role is role]


# --- a study -------------------------------------------------------------------


def test_experts_and_search_runs_fork_from_the_seed_model_and_validation_starts_from_scratch(tmp_path):
    study = run(tmp_path, warm_plan())
    (seed,) = of(study, Role.SEED)
    assert (seed.id, seed.label, seed.fidelity, seed.parent) == ("seed-m", "m", "low", None)
    assert seed.mixture == Mixture.natural(DOMAINS)
    forks = of(study, Role.EXPERT) + of(study, Role.SEARCH)
    assert {(t.parent, t.parent_kind, t.parent_fidelity) for t in forks} == {("seed-m", "forked", None)}
    assert {(t.parent, t.parent_kind) for t in of(study, Role.VALIDATION)} == {(None, None)}
    assert finished(study, warm_plan())


def test_the_seed_is_charged_once_and_a_fork_its_own_tokens(tmp_path):
    warm, cold = run(tmp_path / "warm", warm_plan()), run(tmp_path / "cold", a_plan())
    charged = {o.trial: o.cost for o in warm.observations if o.trial == "seed-m"}
    assert charged == {"seed-m": pytest.approx(LADDER["low"].cost)}
    assert warm.spent() == pytest.approx(cold.spent())
    prices = [[t.price(LADDER) for t in of(study, Role.SEARCH)] for study in (warm, cold)]
    assert prices[0] == prices[1]


def test_a_continued_fork_is_the_child_of_its_run_and_charged_the_rest(tmp_path):
    study = run(tmp_path, warm_plan(optimizer=lambda predictor: Continuing.of(quick_sobol(predictor))))
    first, further = of(study, Role.SEARCH)
    assert (first.parent, first.parent_kind) == ("seed-m", "forked")
    assert (further.parent, further.parent_kind, further.parent_fidelity) == (first.id, "continued", "low")
    assert further.seed == first.seed
    assert further.price(LADDER) == pytest.approx(1 - LADDER["low"].cost + LADDER.fixed_cost)


def test_every_shape_has_a_seed_model_of_its_own(tmp_path):
    header = replace(
        WARM, ladder=TWO_SHAPES, experts_fidelity="small", warm_start=WarmStart("uniform", {"s": "small", "m": "top"})
    )
    plan = warm_plan(header=header, evaluator=SyntheticEvaluator(PROBLEM, TWO_SHAPES), validation_seeds=0)
    study = run(tmp_path, plan)
    assert {t.id: t.fidelity for t in of(study, Role.SEED)} == {"seed-s": "small", "seed-m": "top"}
    shape = {"small": "seed-s", "top": "seed-m"}
    assert all(t.parent == shape[t.fidelity] for t in of(study, Role.EXPERT) + of(study, Role.SEARCH))


def test_a_study_without_warm_start_has_no_seed_and_its_ledger_no_parents(tmp_path):
    study = run(tmp_path)
    assert not of(study, Role.SEED)
    assert {t.parent for t in study.trials} == {None}


def test_running_again_adds_nothing(tmp_path):
    before = events(run(tmp_path, warm_plan()))
    assert events(run(tmp_path, warm_plan())) == before


# --- what optimizers see -------------------------------------------------------


def test_an_optimizer_sees_forks_as_runs_of_their_own_and_no_seed(tmp_path):
    study = run(tmp_path, warm_plan())
    assert not study.history().of(Role.SEED).trials
    assert len(study.history(seeds=True).of(Role.SEED).trials) == 1
    evidence = Evidence.of(study.history(), LADDER, NAMES)
    assert len(evidence.weights) == sum(o.trial.startswith(("expert", "search")) for o in study.observations)
    assert len(np.unique(list(evidence.roots.values()))) == len(of(study, Role.EXPERT) + of(study, Role.SEARCH))


def test_the_runs_table_has_every_parent_it_names(tmp_path):
    table = run(tmp_path, warm_plan()).to_frame()
    trials = {name.partition("@")[0] for name in table["run"]}
    assert set(table["parent"].dropna()) == {"seed-m"} <= trials


# --- changes and troubles ------------------------------------------------------


def test_turning_warm_start_on_is_a_change_that_trains_all_but_validation_anew(tmp_path):
    cold = run(tmp_path)
    with pytest.raises(StudyChangedError, match="rung top have another start"):
        run(tmp_path, warm_plan())
    warm = run(tmp_path, warm_plan(), accept_changes=True)
    new = {t.id for t in warm.trials} - {t.id for t in cold.trials}
    assert {"seed-m", *(f"expert-{name}.2" for name in NAMES)} <= new
    kept = {t.id for t in warm.history().trials}
    assert not kept & {t.id for t in cold.trials if t.role in (Role.EXPERT, Role.SEARCH)}
    assert {t.id for t in of(cold, Role.VALIDATION)} <= kept


def test_a_changed_domain_makes_a_new_seed_and_new_forks(tmp_path):
    run(tmp_path, warm_plan())
    header = replace(WARM, domains=(replace(DOMAINS[0], fingerprint="other text"), *DOMAINS[1:]))
    study = run(tmp_path, warm_plan(header=header), accept_changes=True)
    assert [t.id for t in of(study, Role.SEED)] == ["seed-m", "seed-m.2"]
    current = study.history()
    assert {t.parent for t in current.trials if t.role is not Role.VALIDATION} == {"seed-m.2"}


def test_a_new_domain_keeps_the_seed_so_that_all_forks_share_it(tmp_path):
    study = Study(tmp_path)
    study.begin(replace(WARM, domains=DOMAINS[:2]))
    seed = Trial("seed-m", Role.SEED, Mixture.uniform(NAMES[:2]), "low", 1, "warm_start", label="m")
    study.propose([seed])
    study.finish(TrialResult("seed-m", Status.DONE, (Observation("seed-m", "low", {PROBLEM.eval_sets[0]: 1.0}),)))
    study = run(tmp_path, warm_plan(), accept_changes=True)
    assert [t.id for t in of(study, Role.SEED)] == ["seed-m"]
    assert {t.parent for t in of(study, Role.EXPERT)} == {"seed-m"}


def test_a_seed_model_that_diverged_stops_the_study_in_words(tmp_path):
    plan = warm_plan(evaluator=_Diverging(SyntheticEvaluator(PROBLEM, LADDER)))
    study = Study(tmp_path)
    with pytest.raises(TrainingError, match=r"seed-m is abandoned: diverged.*drop warm_start"):
        run_study(study, plan, executor=SerialExecutor(plan.evaluator, tmp_path), tracker=NullTracker())
    assert [t.status for t in study.trials] == [Status.ABANDONED]


def test_a_header_comes_back_from_the_ledger_with_and_without_warm_start():
    for header in (WARM, a_header()):
        assert Header.from_json(header.to_json()) == header
    old = {key: value for key, value in a_header().to_json().items() if key != "warm_start"}
    assert Header.from_json(json.loads(json.dumps(old))) == a_header()


# --- the study file ------------------------------------------------------------


def a_config(folder, **fields):
    (folder / "a.txt").write_text("text")
    study = {
        "name": "s", "domains": {"a": {"path": "a.txt"}}, "objective": {"expression": "loss/a"},
        "ladder": [{"name": "low", "tokens": 100}, {"name": "mid", "tokens": 200}, {"name": "deep", "tokens": 200, "depth": 2}],
    }  # fmt: skip
    (folder / "study.yaml").write_text(json.dumps({**study, **fields}))
    return load_config(folder / "study.yaml")


def test_warm_start_is_off_unless_asked_for_and_then_seeds_go_to_the_cheapest_rung_of_each_shape(tmp_path):
    ladder = Ladder.from_flops(
        [("low", "d1", 1, 100, 1.0), ("mid", "d1", 1, 200, 2.0), ("deep", "d2", 1, 200, 4.0)], 0.0
    )
    assert build_warm_start(a_config(tmp_path), ladder) is None
    asked = build_warm_start(a_config(tmp_path, warm_start={}), ladder)
    assert asked == WarmStart("uniform", {"d1": "low", "d2": "deep"})
    longer = build_warm_start(a_config(tmp_path, warm_start={"mixture": "natural", "fidelity": "mid"}), ladder)
    assert longer == WarmStart("natural", {"d1": "mid", "d2": "deep"})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"warm_start": {"fidelity": "none"}}, "warm_start.fidelity: unknown rung 'none'"),
        ({"warm_start": {"mixture": "best"}}, "warm_start.mixture"),
        ({"warm_start": {"mixtures": "uniform"}}, "did you mean 'mixture'"),
        ({"warm_start": {}, "proxy": {"decay": 0.3}}, "set decay to 0"),
    ],
)
def test_a_warm_start_that_cannot_be_is_refused(tmp_path, fields, words):
    with pytest.raises(ConfigError, match=words):
        a_config(tmp_path, **fields)


class Continuing(QuickSobol):
    """Trains the uniform mixture to the low rung and continues that run to the top."""

    @classmethod
    def of(cls, optimizer):
        return cls(optimizer.constraints, optimizer.ladder, optimizer.objective, optimizer.seed)

    def propose(self, history, num, *, budget):
        done = history.of(Role.SEARCH).trials
        uniform = Mixture.uniform(NAMES)
        first = Proposal(uniform, "low", None, "")
        return [[first], [Proposal(uniform, "top", None, "", done[0].id, "low")] if done else [], []][len(done)]


@dataclass(frozen=True)
class _Diverging:
    """The synthetic evaluator, but every run diverges."""

    inner: SyntheticEvaluator

    def fingerprint(self, trials, kind):
        return self.inner.fingerprint(trials, kind)

    def evaluate(self, job, directory):
        return tuple(TrialResult(t.id, Status.ABANDONED, (), "diverged: loss nan at step 3") for t in job.trials)
