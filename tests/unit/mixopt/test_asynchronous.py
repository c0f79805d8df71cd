"""The search without a barrier: a free worker gets its next trials while others train."""

from dataclasses import dataclass, replace

import pytest

from mixopt import Role, Status
from mixopt.execution import SerialExecutor
from mixopt.service import run_study
from mixopt.study import Study
from mixopt.tracking import NullTracker
from tests.unit.mixopt.synthetic_study import LADDER, NAMES, a_plan, events, mfbo, quick_sobol, run


class NewestFirst(SerialExecutor):
    """Two workers, of which one holds its job until the other has no more to do."""

    slots = 2

    def collect(self, timeout):
        """Run the job that was submitted last."""
        self._queue.rotate(1)
        return super().collect(timeout)


def asynchronous(**fields):
    return replace(a_plan(**{"stack": 1, "validation_seeds": 0, **fields}), synchronous=False)


def run_beside(folder, plan):
    """Run a study on the two workers."""
    run_study(Study(folder), plan, executor=NewestFirst(plan.evaluator, folder), tracker=NullTracker())
    return Study(folder)


def ended(study):
    """Ids of the search's trials in the order of their results."""
    return [e["trial"] for e in events(study) if e["type"] == "result" and e["trial"].startswith("search")]


def test_a_worker_gets_trials_as_long_as_another_holds_its_own(tmp_path):
    study = run_beside(tmp_path, asynchronous(budget=6.0))
    order = ended(study)
    assert len(order) == 6
    assert order == [*sorted(order)[1:], "search-000"]


def test_with_a_barrier_it_waits_for_them(tmp_path):
    order = ended(run_beside(tmp_path, replace(asynchronous(budget=6.0), synchronous=True)))
    assert order == [f"search-00{i}" for i in (1, 0, 3, 2, 5, 4)]


@pytest.mark.parametrize("optimizer", [quick_sobol, mfbo])
@pytest.mark.parametrize("budget", [0.0, 0.04, 0.9, 1.0, 1.5])
def test_the_budget_counts_what_still_runs(tmp_path, budget, optimizer):
    study = run_beside(tmp_path, asynchronous(budget=budget, optimizer=optimizer))
    assert study.history().of(Role.SEARCH).spent(LADDER) <= budget + 1e-9
    assert study.stopped
    assert {trial.status for trial in study.trials} == {Status.DONE}


@dataclass
class Patient:
    """Wants nothing while anything runs."""

    inner: object
    asked: int = 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def propose(self, history, num, *, budget):
        self.asked += 1
        return [] if history.of(Role.SEARCH).pending else self.inner.propose(history, num, budget=budget)


def test_an_optimizer_that_waits_for_results_is_asked_again_when_they_are_there(tmp_path):
    patient = Patient(quick_sobol(None))
    study = run_beside(tmp_path, asynchronous(budget=3.0, optimizer=lambda predictor: patient))
    assert len(ended(study)) == 3
    assert patient.asked <= 2 * 3 + 1, "it is asked when something has ended, not all the time"
    assert [event["type"] for event in events(study)].count("stop") == 1


def test_one_worker_alone_writes_the_same_ledger_after_an_interruption(tmp_path):
    plan = asynchronous(optimizer=mfbo, budget=1.0)
    whole = run(tmp_path / "whole", plan)
    lines = whole.files.ledger.read_bytes().splitlines(keepends=True)
    for num_lines in range(2, len(lines), 5):
        folder = tmp_path / str(num_lines)
        folder.mkdir()
        (folder / "study.jsonl").write_bytes(b"".join(lines[:num_lines]))
        assert [e for e in events(run(folder, plan)) if e["type"] != "status"] == [
            e for e in events(whole) if e["type"] != "status"
        ], num_lines


@pytest.mark.parametrize(("batch_size", "stack", "sizes"), [(6, 4, {3}), (2, 4, {2}), (5, 1, {1})])
def test_a_free_worker_gets_as_many_trials_as_a_job_of_a_full_batch_holds(tmp_path, batch_size, stack, sizes):
    study = run_beside(tmp_path, asynchronous(budget=6.0, batch_size=batch_size, stack=stack))
    batches = [batch for batch in study.batches if study.trial(batch[0]).role is Role.SEARCH]
    assert {len(batch) for batch in batches} == sizes
    assert all(study.trial(batch[0]).mixture.domains == NAMES for batch in batches)


def test_what_was_proposed_with_a_barrier_ends_without_one(tmp_path):
    first = ended(run(tmp_path, a_plan(budget=2.0)))
    more = run_beside(tmp_path, asynchronous(budget=5.0, validation_seeds=2))
    assert len(first) == 2
    assert ended(more)[:2] == first
    assert len(ended(more)) == 5
