"""What a Ray worker finds when it starts."""

from pathlib import Path

import pytest

from mixopt import Mixture, Observation, Role, Status, Trial
from mixopt.cluster import ALLOCATOR_SETTINGS
from mixopt.protocols import Job, TrialResult
from mixopt.ray_executor import RayExecutor


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
