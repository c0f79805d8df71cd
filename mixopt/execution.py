"""Where jobs run: this process, or Ray. The only door to Ray.

An executor moves plain data out and reports back; it decides nothing. The worker
writes the result file before it answers, so a driver that dies loses no finished job,
and a job whose result is there already is not done again. What a worker does with a
job is a function of evaluator, job and directory: `run_job` for trials, another one
for other plain jobs (replays), whose reports then carry what that function returns.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import MixoptError, ResourceError
from .observation import Observation, Status
from .protocols import Evaluator, Job, JobReport, TrialResult
from .storage import RunDirectory, read_json, write_json

logger = logging.getLogger(__name__)

# Page faults cost a CPU worker 8-40% of its time with the allocator's defaults (docs/log.md).
ALLOCATOR_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "270000000",
}
_CONNECT_SECONDS = 15

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


def _failure(job: Any, error: Exception) -> JobReport:
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
            return [_failure(job, error)]

    def shutdown(self) -> None:
        """Forget what is queued."""
        self._queue.clear()


class RayExecutor:
    """Runs jobs as plain Ray tasks on a local Ray or an existing cluster.

    A given address is probed at once; Ray itself starts with the first job.

    Args:
        evaluator: What runs the jobs; sent once to the object store.
        directory: The run directory; workers must see it under the same path.
        workers: Jobs at the same time.
        address: Address of a running cluster, or None for a local Ray.
        num_cpus: CPUs per job.
        num_gpus: GPUs per job (a fraction shares one).
        run: What a worker calls with evaluator, job and directory; a function of a module.

    Raises:
        ResourceError: If the cluster does not answer or lacks the resources.
    """

    def __init__(
        self,
        evaluator: Any,
        directory: Path,
        *,
        workers: int,
        address: str | None = None,
        num_cpus: int = 1,
        num_gpus: float = 0.0,
        run: Run = run_job,
    ) -> None:
        self.slots, self._num_cpus, self._run = workers, num_cpus, run
        self._directory = Path(directory).resolve()
        self._running: dict[Any, Any] = {}
        self._unsent_evaluator, self._address, self._num_gpus = evaluator, address, num_gpus
        self._task: Any = None
        if address:
            probe_address(address)

    def _connect(self) -> None:
        self._start(self.slots * self._num_cpus, self._address)
        import ray

        num_gpus = self._num_gpus
        available = ray.cluster_resources()
        if num_gpus > available.get("GPU", 0):
            raise ResourceError(
                f"run.device: a job needs {num_gpus:g} GPU, Ray offers {available.get('GPU', 0):g}; use device: cpu"
            )
        self._evaluator = ray.put(self._unsent_evaluator)
        # A local Ray's workers inherit our environment, those of a cluster were started by others.
        environment = {"runtime_env": {"env_vars": ALLOCATOR_SETTINGS}} if self._address else {}
        # Retries are ours, so that their reason is in the ledger.
        options = {"num_cpus": self._num_cpus, "num_gpus": num_gpus, "max_retries": 0, "max_calls": 0}
        self._task = ray.remote(**options, **environment)(self._run)

    def submit(self, job: Any) -> None:
        """Send a job to a worker."""
        if self._task is None:
            self._connect()
        self._running[self._task.remote(self._evaluator, job, self._directory)] = job

    def collect(self, timeout: float) -> Sequence[JobReport]:
        """Return reports of finished jobs, waiting for the first at most `timeout` seconds."""
        import ray

        if not self._running:
            return []
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
        return [self._report(ref) for ref in ready]

    def shutdown(self) -> None:
        """Cancel what runs and leave Ray."""
        if self._task is None:
            return
        import ray

        for ref in self._running:
            ray.cancel(ref, force=True)
        self._running.clear()
        ray.shutdown()

    def _report(self, ref: Any) -> JobReport:
        import ray

        job = self._running.pop(ref)
        try:
            return JobReport(job, ray.get(ref))
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
            return JobReport(job, None, f"worker lost: {type(error).__name__}", retryable=True)
        except ray.exceptions.OutOfMemoryError as error:
            return JobReport(job, None, f"out of memory: {error}", retryable=True)
        except ray.exceptions.RayTaskError as error:
            return _failure(job, error.cause if isinstance(error.cause, Exception) else error)
        except ray.exceptions.RayError as error:
            return JobReport(job, None, f"{type(error).__name__}: {error}", retryable=True)

    @staticmethod
    def _start(num_cpus: int, address: str | None) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.update({key: os.environ.get(key, value) for key, value in ALLOCATOR_SETTINGS.items()})
        import ray

        if ray.is_initialized():
            return
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
        try:
            # Ray prints its notices; ours are log lines.
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                if address:
                    _within(_CONNECT_SECONDS, lambda: ray.init(address=address, **quiet), address)
                else:
                    ray.init(num_cpus=num_cpus, include_dashboard=False, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ResourceError(
                f"run.address: cannot connect to Ray at {address or 'this machine'}: {error}. "
                "If the cluster asks for a token, export RAY_AUTH_MODE=token (and RAY_AUTH_TOKEN_PATH); "
                "drop the address to use a local Ray"
            ) from error
        logger.info("ray ready address=%s resources=%s", address or "local", dict(ray.cluster_resources()))


def probe_address(address: str, timeout: float = 3.0) -> None:
    """Raise ResourceError at once if nothing listens at `host:port` (Ray itself would wait long)."""
    if address == "auto" or (address.startswith("ray://") is False and ":" not in address):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=timeout).close()
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"run.address: no Ray cluster answers at {address} ({error}); start it or drop the address"
        ) from error


def _within(seconds: float, call: Any, address: str) -> None:
    import threading

    failure: list[BaseException] = []

    def target() -> None:
        try:
            call()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise ResourceError(
            f"run.address: Ray at {address} did not answer within {seconds:g} s; check the cluster or drop the address"
        )
    if failure:
        raise failure[0]
