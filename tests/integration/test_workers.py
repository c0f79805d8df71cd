"""What a Ray worker finds when it starts, and when it gets its work."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from mixopt import Mixture, Observation, Role, Status, Trial
from mixopt.cluster import ALLOCATOR_SETTINGS
from mixopt.protocols import Job, TrialResult
from mixopt.ray_executor import RayExecutor
from mixopt.search.problems import SyntheticEvaluator
from mixopt.service import run_study
from mixopt.storage import read_json
from mixopt.study import Study
from mixopt.tracking import NullTracker
from tests.unit.mixopt.synthetic_study import LADDER, PROBLEM, a_plan, events


@pytest.mark.slow
@pytest.mark.ray
def test_workers_start_with_the_allocator_settings(tmp_path):
    """Read from what the process was started with: later is too late for the allocator."""

    class Looker:
        def evaluate(self, job, directory):
            found = Path("/proc/self/environ").read_text().split("\0")
            return [TrialResult("t", Status.DONE, (Observation("t", "top", {"x": 1.0}),), "\n".join(found))]

    executor = RayExecutor(Looker(), tmp_path, workers=1)
    try:
        executor.submit(Job("job", (Trial("t", Role.SEARCH, Mixture.uniform(("a", "b")), "top", 0, "test"),)))
        reports = []
        while not reports:
            reports = executor.collect(5.0)
    finally:
        executor.shutdown()
    started_with = reports[0].results[0].note.split("\n")
    assert {f"{name}={value}" for name, value in ALLOCATOR_SETTINGS.items()} <= set(started_with)


class HoldsTheFirst(SyntheticEvaluator):
    """Ends the first run of the search only after four others have."""

    def evaluate(self, job, directory):
        deadline = time.monotonic() + 120
        while job.trials[0].id == "search-000" and not _others_ended(directory):
            assert time.monotonic() < deadline, "the other worker was not given runs of its own"
            time.sleep(0.05)
        return super().evaluate(job, directory)


def _others_ended(directory):
    results = [read_json(path) for path in directory.glob("jobs/*/result.json")]
    return sum(result[0]["trial"].startswith("search") for result in results) >= 4


@pytest.mark.slow
@pytest.mark.ray
def test_without_a_barrier_a_worker_that_is_slow_does_not_hold_the_other(tmp_path):
    plan = a_plan(evaluator=HoldsTheFirst(PROBLEM, LADDER), predictor=None, budget=5.0, stack=1, validation_seeds=0)
    plan, study = replace(plan, synchronous=False), Study(tmp_path)
    executor = RayExecutor(plan.evaluator, tmp_path, workers=2)
    try:
        run_study(study, plan, executor=executor, tracker=NullTracker())
    finally:
        executor.shutdown()
    order = [event["trial"] for event in events(study) if event["type"] == "result"]
    assert order == [f"search-00{i}" for i in (1, 2, 3, 4, 0)]
