"""Jobs as plain Ray tasks, on this machine or a cluster. The only door to Ray."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import ResourceError
from .execution import Run, failure, run_job
from .protocols import JobReport

logger = logging.getLogger(__name__)

# Page faults cost a CPU worker 8-40% of its time with the allocator's defaults (docs/log.md).
ALLOCATOR_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "270000000",
}
_CONNECT_SECONDS = 15


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
            return failure(job, error.cause if isinstance(error.cause, Exception) else error)
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
