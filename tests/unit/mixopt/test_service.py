import logging
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mixopt import Ladder, Mixture, Observation, ResourceError, Role, Status, StudyChangedError, StudyError, Trial
from mixopt.execution import SerialExecutor
from mixopt.protocols import TrialResult
from mixopt.service import charged, finished, pack, run_study
from mixopt.study import Study
from mixopt.tracking import NullTracker
from tests.unit.mixopt.synthetic_study import (
    DOMAINS,
    LADDER,
    NAMES,
    PROBLEM,
    a_header,
    a_plan,
    events,
    mfbo,
    quick_sobol,
    run,
    sobol,
)

SHAPES = Ladder.from_flops(
    [
        ("small", "d1", 10, 100, 1.0),
        ("big", "d1", 10, 400, 4.0),
        ("deep", "d2", 20, 400, 8.0),
        ("top", "d2", 20, 800, 16.0),
    ],
    0.05,
)


def a_trial(trial_id, fidelity="top", **fields):
    return Trial(trial_id, Role.SEARCH, Mixture.uniform(("a", "b")), fidelity, 1, "test", **fields)


# --- packing ------------------------------------------------------------------


def batch():
    rungs = ["small", "top", "big", "deep", "small", "big", "big", "top", "small"]
    return [a_trial(f"t{i}", rung) for i, rung in enumerate(rungs)]


@pytest.mark.parametrize("stack", [1, 2, 3, 4, 20])
def test_every_trial_is_in_one_stack_of_one_shape_and_no_stack_is_too_high(stack):
    stacks = pack(batch(), SHAPES, stack)
    assert sorted(trial.id for members in stacks for trial in members) == sorted(trial.id for trial in batch())
    assert all(len({SHAPES[trial.fidelity].model for trial in members}) == 1 for members in stacks)
    assert max(map(len, stacks)) <= stack


def test_stacks_follow_from_the_batch_alone():
    done = [trial.with_status(Status.DONE) for trial in batch()]
    ids = [[[trial.id for trial in members] for members in pack(trials, SHAPES, 3)] for trials in (batch(), done)]
    assert ids[0] == ids[1]


def test_no_more_stacks_than_needed_and_about_equal_work():
    trials = [a_trial(f"t{i}", rung) for i, rung in enumerate(["big", "big", "small", "small"])]
    stacks = pack(trials, SHAPES, 2)
    assert [sorted(trial.fidelity for trial in members) for members in stacks] == [["big", "small"]] * 2


def test_a_continuation_counts_only_what_is_left_to_train():
    # Tokens left: 100, 300, 350, 100. Counted from scratch, `further` would be the longest and keep t1 beside t2.
    ladder = Ladder.from_flops([(str(n), "m", 1, n, float(n)) for n in (100, 300, 350, 400)], 0.0)
    further = a_trial("t0", "400", parent="t9", parent_kind="continued", parent_fidelity="300")
    trials = [further, a_trial("t1", "300"), a_trial("t2", "350"), a_trial("t3", "100")]
    assert [[trial.id for trial in members] for members in pack(trials, ladder, 2)] == [["t2", "t3"], ["t0", "t1"]]


def test_an_empty_batch_has_no_stacks():
    assert pack([], SHAPES, 4) == []


# --- charges ------------------------------------------------------------------


def result(trial_id, *rungs):
    return TrialResult(
        trial_id, Status.DONE, tuple(Observation(trial_id, rung, {"x": 1.0}, cost=99.0) for rung in rungs)
    )


def test_the_charges_of_a_run_sum_to_its_price():
    trial = replace(a_trial("t"), fidelity="top")
    costs = [o.cost for o in charged(result("t", "low", "mid", "top"), trial, LADDER).observations]
    assert sum(costs) == pytest.approx(trial.price(LADDER)) == pytest.approx(1.0)
    assert costs[0] == pytest.approx(LADDER["low"].cost)


def test_the_charges_of_a_continuation_sum_to_its_price():
    trial = a_trial("t", parent="p", parent_kind="continued", parent_fidelity="low")
    costs = [o.cost for o in charged(result("t", "mid", "top"), trial, LADDER).observations]
    assert sum(costs) == pytest.approx(trial.price(LADDER)) == pytest.approx(1 - LADDER["low"].cost + 0.05)


def test_a_run_that_diverged_is_charged_for_the_rungs_it_passed():
    costs = [o.cost for o in charged(result("t", "low", "mid"), a_trial("t"), LADDER).observations]
    assert sum(costs) == pytest.approx(LADDER["mid"].cost)


# --- a whole study ------------------------------------------------------------


def test_a_study_trains_experts_searches_recommends_and_validates(tmp_path):
    study = run(tmp_path, a_plan(optimizer=sobol))
    counts = Counter((trial.role, trial.status) for trial in study.trials)
    assert counts == {(Role.EXPERT, Status.DONE): 3, (Role.SEARCH, Status.DONE): 3, (Role.VALIDATION, Status.DONE): 6}
    assert study.stopped.startswith("budget spent")
    assert [contender.label for contender in study.contenders] == ["recommended", "natural", "uniform"]
    assert finished(study, a_plan())


def test_experts_are_trained_at_the_vertices(tmp_path):
    experts = [trial for trial in run(tmp_path).trials if trial.role is Role.EXPERT]
    assert [trial.mixture for trial in experts] == [Mixture.vertex(NAMES, name) for name in NAMES]
    assert [trial.label for trial in experts] == list(NAMES)


def test_contenders_share_their_seeds_and_the_seeds_are_fresh(tmp_path):
    trials = run(tmp_path).trials
    seeds = {
        label: [t.seed for t in trials if t.label == label and t.role is Role.VALIDATION]
        for label in ("recommended", "natural", "uniform")
    }
    assert seeds["recommended"] == seeds["natural"] == seeds["uniform"]
    assert not set(seeds["natural"]) & {t.seed for t in trials if t.role is not Role.VALIDATION}


@pytest.mark.parametrize(
    ("optimizer", "budget"), [(quick_sobol, b) for b in (0.0, 0.04, 0.9, 1.0, 2.5)] + [(mfbo, 0.3)]
)
def test_the_budget_is_never_exceeded(tmp_path, budget, optimizer):
    study = run(tmp_path, a_plan(budget=budget, optimizer=optimizer, validation_seeds=0))
    assert study.history().of(Role.SEARCH).spent(LADDER) <= budget + 1e-9
    assert study.stopped


def test_without_experts_there_is_no_expert_phase(tmp_path):
    study = run(tmp_path, a_plan(predictor=None))
    assert not [trial for trial in study.trials if trial.role is Role.EXPERT]
    assert study.recommendation is not None


def test_a_finished_study_is_left_as_it_is(tmp_path):
    before = run(tmp_path).files.ledger.read_bytes()
    assert run(tmp_path).files.ledger.read_bytes() == before


def test_the_plan_begins_only_after_the_ledger_accepted_it(tmp_path):
    run(tmp_path)
    begun = []
    changed = replace(a_header(), tokenizer="t1")
    with pytest.raises(StudyChangedError):
        run(tmp_path, a_plan(header=changed), on_begin=lambda: begun.append(1))
    assert begun == []


def test_more_budget_goes_on_where_the_search_ended(tmp_path):
    first = run(tmp_path)
    ids = [trial.id for trial in first.trials if trial.role is Role.SEARCH]
    more = [trial.id for trial in run(tmp_path, a_plan(budget=5.0)).trials if trial.role is Role.SEARCH]
    assert more[: len(ids)] == ids
    assert len(more) == 5


def test_a_new_baseline_is_validated_without_repeating_the_others(tmp_path):
    before = len(run(tmp_path).trials)
    corner = Mixture.vertex(NAMES, NAMES[0])
    plan = a_plan(baselines={**a_plan().baselines, "corner": corner})
    study = run(tmp_path, plan)
    assert not finished(Study(tmp_path), a_plan(baselines={}))
    assert len(study.trials) == before + 2
    assert finished(study, plan)


def test_a_changed_domain_retrains_what_it_touches_and_nothing_else(tmp_path):
    run(tmp_path)
    domains = (replace(DOMAINS[0], fingerprint="other"), *DOMAINS[1:])
    plan = a_plan(
        header=replace(a_header(), domains=domains),
        evaluator=replace(a_plan().evaluator, problem=replace(PROBLEM, bias=0.6)),
    )
    study = run(tmp_path, plan, accept_changes=True)
    experts = [trial.id for trial in study.trials if trial.role is Role.EXPERT]
    assert experts == ["expert-d0", "expert-d1", "expert-d2", "expert-d0.2"]
    assert finished(study, plan)


class TwoSlotExecutor(SerialExecutor):
    """Accepts two jobs at a time, as a cluster does."""

    slots = 2


@pytest.mark.parametrize(("stack", "executor"), [(2, SerialExecutor), (1, SerialExecutor), (1, TwoSlotExecutor)])
def test_equal_contenders_are_each_measured(tmp_path, stack, executor):
    # Domains of equal size: the natural mixture is the uniform one.
    same = Mixture.uniform(NAMES)
    plan = a_plan(baselines={"natural": same, "uniform": same}, stack=stack, budget=1.0)
    run_study(Study(tmp_path), plan, executor=executor(plan.evaluator, tmp_path), tracker=NullTracker())
    study = Study(tmp_path)
    assert {trial.id: trial.status for trial in study.trials if trial.status is not Status.DONE} == {}
    assert finished(study, plan)


# --- interruptions ------------------------------------------------------------


def essence(study):
    """What an interruption must not change: all but repeated notes that a job began."""
    return [event for event in events(study) if event["type"] != "status"]


def cut(source, target, num_lines):
    """A copy of a run whose driver was killed after some events; finished jobs stay."""
    shutil.copytree(source, target)
    ledger = target / "study.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:num_lines]))


def test_a_study_interrupted_after_any_event_ends_with_the_same_ledger(tmp_path):
    whole = run(tmp_path / "whole")
    num_events = len(events(whole))
    for num_lines in range(num_events):
        cut(tmp_path / "whole", tmp_path / str(num_lines), num_lines)
        resumed = run(tmp_path / str(num_lines))
        assert essence(resumed) == essence(whole), num_lines
        assert resumed.trials == whole.trials


def test_a_study_that_lost_its_results_too_ends_with_the_same_ledger(tmp_path):
    whole = run(tmp_path / "whole")
    for num_lines in range(0, len(events(whole)), 3):
        target = tmp_path / str(num_lines)
        cut(tmp_path / "whole", target, num_lines)
        shutil.rmtree(target / "jobs")
        assert essence(run(target)) == essence(whole), num_lines


def test_two_runs_of_one_plan_write_the_same_ledger(tmp_path):
    assert events(run(tmp_path / "a")) == events(run(tmp_path / "b"))


def test_an_interrupted_bayesian_search_ends_with_the_same_ledger(tmp_path):
    plan = a_plan(optimizer=mfbo, budget=1.5, validation_seeds=1)
    whole = run(tmp_path / "whole", plan)
    assert whole.history().of(Role.SEARCH).spent(LADDER) <= 1.5 + 1e-9
    first = next(
        i
        for i, event in enumerate(events(whole))
        if event["type"] == "propose" and event["trials"][0]["role"] == "search"
    )
    for num_lines in range(first, len(events(whole)), 4):
        cut(tmp_path / "whole", tmp_path / str(num_lines), num_lines)
        assert essence(run(tmp_path / str(num_lines), plan)) == essence(whole), num_lines


# --- failures -----------------------------------------------------------------


@dataclass
class FaultyEvaluator:
    """A synthetic evaluator that raises `error` on some trials, `times` times each."""

    inner: object
    victims: tuple[str, ...]
    error: Exception
    times: int

    def __post_init__(self):
        self.attempts = Counter()

    def fingerprint(self, trials, kind):
        return self.inner.fingerprint(trials, kind)

    def evaluate(self, job, directory: Path):
        for trial in job.trials:
            if trial.id in self.victims:
                self.attempts[trial.id] += 1
                if self.attempts[trial.id] <= self.times:
                    raise self.error
        return self.inner.evaluate(job, directory)


def faulty(victims, error, times=99):
    return FaultyEvaluator(a_plan().evaluator, victims, error, times)


@pytest.mark.parametrize(
    "error", [OSError("connection lost"), MemoryError("no room"), RuntimeError("CUDA out of memory")]
)
def test_what_another_attempt_can_heal_is_tried_again_and_noted(tmp_path, error, caplog):
    evaluator = faulty(("search-001",), error, times=2)
    with caplog.at_level(logging.WARNING):
        study = run(tmp_path, a_plan(evaluator=evaluator, stack=1))
    assert evaluator.attempts["search-001"] == 3
    assert study.trial("search-001").status is Status.DONE
    notes = [event["note"] for event in events(study) if event["type"] == "status" and event["status"] == "failed"]
    assert notes == [f"{type(error).__name__}: {error}"] * 2
    assert caplog.text.count("it is retried") == 2


def test_attempts_are_counted_and_end(tmp_path):
    evaluator = faulty(("search-001",), OSError("connection lost"))
    study = run(tmp_path, a_plan(evaluator=evaluator, stack=1, retries=1))
    assert evaluator.attempts["search-001"] == 2
    assert study.trial("search-001").status is Status.FAILED


def test_an_error_in_the_work_fails_its_stack_and_the_study_goes_on(tmp_path):
    evaluator = faulty(("search-001",), ValueError("bad shape"))
    study = run(tmp_path, a_plan(evaluator=evaluator))
    assert evaluator.attempts["search-001"] == 1
    assert {t.id: t.note for t in study.trials if t.status is Status.FAILED} == dict.fromkeys(
        ("search-000", "search-001"), "ValueError: bad shape"
    )
    assert study.recommendation is not None


def test_a_failed_search_trial_keeps_its_charge(tmp_path):
    study = run(tmp_path, a_plan(evaluator=faulty(("search-001",), ValueError("bad")), stack=1))
    assert study.history().of(Role.SEARCH).spent(LADDER) == pytest.approx(3.0)


def test_a_missing_expert_is_a_warning_and_the_search_does_without_the_ensemble(tmp_path, caplog):
    def no_ensemble(study):
        raise StudyError("no finished expert for d0; run the study to train it")

    evaluator = faulty(("expert-d0",), ValueError("bad"))
    with caplog.at_level(logging.WARNING):
        study = run(tmp_path, a_plan(evaluator=evaluator, predictor=no_ensemble))
    assert "mde unavailable" in caplog.text
    assert study.recommendation is not None


def test_a_new_start_tries_failed_experts_and_validation_runs_again_but_not_the_search(tmp_path):
    broken = ("expert-d0", "search-001", "valid-natural-1")
    run(tmp_path, a_plan(evaluator=faulty(broken, ValueError("bad")), stack=1))
    study = run(tmp_path, a_plan(stack=1))
    assert [t.id for t in study.trials if t.status is not Status.DONE] == ["search-001"]


def test_a_study_with_a_failed_validation_run_is_not_finished(tmp_path):
    study = run(tmp_path, a_plan(evaluator=faulty(("valid-natural-1",), ValueError("bad")), stack=1))
    assert not finished(study, a_plan(stack=1))


def test_a_study_with_a_failed_search_run_is_finished(tmp_path):
    study = run(tmp_path, a_plan(evaluator=faulty(("search-001",), ValueError("bad")), stack=1))
    assert finished(study, a_plan(stack=1))


def test_an_environment_that_fails_ends_the_study_and_keeps_what_finished(tmp_path):
    with pytest.raises(ResourceError, match="disk"):
        run(tmp_path, a_plan(evaluator=faulty(("search-001",), ResourceError("no disk space left")), stack=1))
    assert Study(tmp_path).trial("search-000").status is Status.DONE
    resumed = run(tmp_path, a_plan(stack=1))
    assert essence(resumed) == essence(run(tmp_path / "whole", a_plan(stack=1)))


@dataclass(frozen=True)
class DivergingEvaluator:
    """A synthetic evaluator in which one trial of a stack diverges after its first rung."""

    inner: object
    victim: str

    def fingerprint(self, trials, kind):
        return self.inner.fingerprint(trials, kind)

    def evaluate(self, job, directory):
        results = self.inner.evaluate(job, directory)
        return [
            replace(r, status=Status.ABANDONED, observations=r.observations[:1], note="loss is not finite")
            if r.trial == self.victim
            else r
            for r in results
        ]


def test_a_stack_is_one_process_but_not_one_fate(tmp_path):
    study = run(tmp_path, a_plan(evaluator=DivergingEvaluator(a_plan().evaluator, "search-001")))
    assert {t.id: t.note for t in study.trials if t.status is not Status.DONE} == {"search-001": "loss is not finite"}
    assert [o.fidelity for o in study.observations if o.trial == "search-001"] == ["low"]


@dataclass
class RecordingTracker:
    """Counts what a tracker is shown."""

    seen: list

    def project(self, study):
        self.seen.append(len(study.observations))

    def finish(self, study, artifacts, *, failed=False):
        raise AssertionError("run_study leaves the end to its caller")


def test_the_tracker_sees_every_change_and_the_end(tmp_path):
    tracker, plan = RecordingTracker([]), a_plan()
    run_study(Study(tmp_path), plan, executor=SerialExecutor(plan.evaluator, tmp_path), tracker=tracker)
    assert tracker.seen == sorted(tracker.seen)
    assert tracker.seen[-1] == len(Study(tmp_path).observations)
