"""What a worker does with a job, and the executor that does it in this process.

An executor moves plain data out and reports back; it decides nothing. The worker
writes the result file before it answers, so a driver that dies loses no finished job,
and a job whose result is there already is not done again. What a worker does with a
job is a function of evaluator, job and directory: `run_job` for trials, another one
for other plain jobs (replays), whose reports then carry what that function returns.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import MixoptError
from .observation import Observation, Status
from .protocols import Evaluator, Job, JobReport, TrialResult
from .storage import RunDirectory, read_json, write_json

logger = logging.getLogger(__name__)

# (evaluator, job, directory) -> results. Not only trials run here, so the types are the function's own.
Run = Callable[[Any, Any, Path], Any]


def run_job(evaluator: Evaluator, job: Job, directory: Path) -> tuple[TrialResult, ...]:
    """Do a job in this process unless its result is there; leave the result file behind."""
    path = RunDirectory(directory).result(job.fingerprint)
    known = read_json(path)
    if known is None:
        results = evaluator.evaluate(job, directory)
        known = [{**vars(r), "observations": [o.to_json() for o in r.observations]} for r in results]
        write_json(path, known)
    # Only now: until the result is whole, the checkpoint is what a new attempt goes on from.
    for leftover in path.parent.glob("checkpoint*"):
        leftover.unlink()
    return read_results(known)


def read_results(data: Sequence[dict[str, Any]]) -> tuple[TrialResult, ...]:
    """Rebuild the results of a job from its result file."""
    return tuple(
        TrialResult(
            item["trial"], Status(item["status"]), tuple(map(Observation.from_json, item["observations"])), item["note"]
        )
        for item in data
    )


def failure(job: Any, error: Exception) -> JobReport:
    """Turn an error into a report; what mixopt or the disk raised on purpose ends the study."""
    if isinstance(error, MixoptError):
        raise error
    retryable = isinstance(error, MemoryError | OSError) or "out of memory" in str(error).lower()
    return JobReport(job, None, f"{type(error).__name__}: {error}", retryable)


class SerialExecutor:
    """Runs one job at a time in this process.

    Args:
        evaluator: What runs the jobs.
        directory: The run directory.
        run: What is called with evaluator, job and directory.
    """

    slots = 1

    def __init__(self, evaluator: Any, directory: Path, *, run: Run = run_job) -> None:
        self._evaluator, self._directory, self._run = evaluator, directory, run
        self._queue: deque[Any] = deque()

    def submit(self, job: Any) -> None:
        """Queue a job."""
        self._queue.append(job)

    def collect(self, timeout: float) -> Sequence[JobReport]:
        """Run the next job to its end and report it."""
        if not self._queue:
            return []
        job = self._queue.popleft()
        try:
            return [JobReport(job, self._run(self._evaluator, job, self._directory))]
        except Exception as error:
            logger.debug("job failed", exc_info=True)
            return [failure(job, error)]

    def interrupt(self) -> None:
        """Do nothing: the work of this process sees the request itself."""

    def shutdown(self) -> None:
        """Forget what is queued."""
        self._queue.clear()
