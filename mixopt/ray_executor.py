"""Jobs as plain Ray tasks, on this machine or a cluster."""

from __future__ import annotations

import logging
import math
import signal
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cluster import HEAD_GONE, Head, Node, connect, probe_address, survey
from .errors import ResourceError
from .execution import Run, failure, run_job
from .protocols import JobReport
from .stopping import on_signals, safe_points, take_back_signals
from .transfer import Answer, Files, MessageDepot, UrlDepot, digest_of, list_files, study_key, work_apart

logger = logging.getLogger(__name__)

SHARED, MESSAGES, AUTO = "shared", "ray", "auto"


@dataclass(frozen=True)
class Resources:
    """What a job asks Ray for, and where it may be had.

    Attributes:
        num_cpus: CPUs per job.
        num_gpus: GPUs per job (a fraction shares one; Ray counts, it does not divide the memory). None: one where
            the cluster has any.
        memory: Bytes per job that Ray sets aside, or 0.
        address: Address of a running cluster, or None for a Ray of our own.
        storage: How files reach workers: `shared` (they see the run directory), `ray` (with messages), a URL that
            driver and nodes reach, or `auto` (shared where all nodes see it, else ray).
        ship: Send mixopt's own code to the nodes of a cluster.
        autoscaling: Wait for resources that are not there yet instead of refusing.
    """

    num_cpus: int = 1
    num_gpus: float | None = 0.0
    memory: int = 0
    address: str | None = None
    storage: str = AUTO
    ship: bool = True
    autoscaling: bool = False


class RayExecutor:
    """Runs jobs as plain Ray tasks on a local Ray or an existing cluster.

    A given address is probed at once; Ray itself starts with the first job.

    Args:
        evaluator: What runs the jobs; sent once to the object store.
        directory: The run directory.
        workers: Jobs at the same time.
        resources: What a job needs, and where.
        inputs: Files and folders of the run directory that a job reads, for workers that do not see it.
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
        resources: Resources | None = None,
        inputs: Callable[[Any], Iterable[str]] = lambda job: (),
        run: Run = run_job,
    ) -> None:
        self.slots, self._run, self._inputs = workers, run, inputs
        self._directory = Path(directory).resolve()
        self._resources = resources or Resources()
        self._running: dict[Any, Any] = {}
        self._unsent_evaluator = evaluator
        self._task: Any = None
        self._depot: UrlDepot | None = None
        self._sent: dict[Path, tuple[str, Any]] = {}
        self._waiting = 0
        if self._resources.address:
            probe_address(self._resources.address)

    def submit(self, job: Any) -> None:
        """Send a job to a worker."""
        if self._task is None:
            self._connect()
        where = self._directory if self._storage == SHARED else self._parcel(job)
        self._running[self._task.remote(self._evaluator, job, where, self._run)] = job

    def collect(self, timeout: float) -> Sequence[JobReport]:
        """Return reports of finished jobs, waiting for the first at most `timeout` seconds."""
        import ray

        if not self._running:
            return []
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
        if self._head.answers() and not ready:
            self._say_what_waits()
        return [self._report(ref) for ref in ready]

    def interrupt(self) -> None:
        """Ask the workers to save their state and stop."""
        import ray

        for ref in self._running:
            ray.cancel(ref, force=False)

    def shutdown(self) -> None:
        """Cancel what runs and leave Ray."""
        if self._task is None:
            return
        import ray

        for ref in self._running:
            ray.cancel(ref, force=True)
        self._running.clear()
        ray.shutdown()

    def _connect(self) -> None:
        wanted = self._resources
        connect(self.slots * wanted.num_cpus, wanted.address, ship=wanted.ship)
        import ray

        take_back_signals()
        self._head = Head.of(wanted.address)
        self._needs = _needs(wanted)
        if not wanted.autoscaling:
            _require(self._needs)
        self._storage = _storage(wanted, self._directory)
        if self._storage not in (SHARED, MESSAGES):
            self._depot = UrlDepot(f"{self._storage.rstrip('/')}/{study_key(self._directory)}")
        self._evaluator = ray.put(self._unsent_evaluator)
        # Retries are ours, so that their reason is in the ledger.
        options = {
            "num_cpus": self._needs["CPU"],
            "num_gpus": self._needs.get("GPU", 0),
            "memory": self._needs.get("memory"),
            "max_retries": 0,
            "max_calls": 0,
        }
        self._task = ray.remote(**options)(_work_shared if self._storage == SHARED else _work_apart)

    # --- files for workers that do not see the run directory --------------------

    def _parcel(self, job: Any) -> _Parcel:
        files: Files = {}
        contents = {}
        for name, path in list_files(self._directory, self._inputs(job)):
            files[name], ref = self._send(path)
            contents[files[name]] = ref
        return _Parcel(study_key(self._directory), files, {} if self._depot else contents, self._depot)

    def _send(self, path: Path) -> tuple[str, Any]:
        """Return digest and reference of a file's content; tokens, which every job reads, are sent once."""
        import ray

        if path in self._sent:
            return self._sent[path]
        digest = digest_of(path)
        if self._depot:
            self._depot.send(path, digest)
            found = digest, None
        else:
            content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
            found = digest, ray.put(content)
        if path.is_relative_to(self._directory / "tokens"):
            self._sent[path] = found
        return found

    # --- reports ----------------------------------------------------------------

    def _report(self, ref: Any) -> JobReport:
        import ray

        job = self._running.pop(ref)
        try:
            answer = ray.get(ref)
            return JobReport(job, answer.unpack(self._directory, self._depot) if isinstance(answer, Answer) else answer)
        except ray.exceptions.LocalRayletDiedError as error:
            raise ResourceError(HEAD_GONE.format("its process on this machine died")) from error
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
            return JobReport(job, None, f"worker lost: {type(error).__name__}", retryable=True)
        except ray.exceptions.OutOfMemoryError as error:
            return JobReport(job, None, f"out of memory: {error}", retryable=True)
        except ray.exceptions.RayTaskError as error:
            return failure(job, error.cause if isinstance(error.cause, Exception) else error)
        except ray.exceptions.RayError as error:
            return JobReport(job, None, f"{type(error).__name__}: {error}", retryable=True)
        except OSError as error:
            return failure(job, error)

    def _say_what_waits(self) -> None:
        """Log, when it changes, how many jobs the cluster cannot run yet."""
        import ray

        have = ray.cluster_resources()
        waiting = max(0, len(self._running) - _room(self._needs, have))
        if waiting and waiting != self._waiting:
            logger.warning("jobs wait for the cluster waiting=%d each_needs=%s it_has=%s", waiting, self._needs, have)
        self._waiting = waiting


def examine(wanted: Resources, directory: Path) -> list[Node]:
    """Join a cluster, check that it can run a job, and return its nodes.

    Raises:
        ResourceError: If it does not answer or lacks the resources.
    """
    if wanted.address:
        probe_address(wanted.address)
    connect(wanted.num_cpus, wanted.address, ship=wanted.ship)
    import ray

    try:
        if not wanted.autoscaling:
            _require(_needs(wanted))
        return survey(directory)
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class _Parcel:
    """What a worker needs that does not see the run directory."""

    key: str
    files: Files
    contents: dict[str, Any]  # references by digest
    depot: UrlDepot | None


def _work_shared(evaluator: Any, job: Any, directory: Path, run: Run) -> Any:
    if not directory.is_dir():
        raise ResourceError(
            f"run.storage: the node {socket.gethostname()} does not see {directory}; set run.storage to ray or to a URL "
            "that driver and nodes reach"
        )
    # The driver cancels with what Python takes for SIGINT.
    with on_signals(signal.SIGINT), safe_points():
        return run(evaluator, job, directory)


def _work_apart(evaluator: Any, job: Any, parcel: _Parcel, run: Run) -> Answer:
    import ray

    depot = parcel.depot or MessageDepot(lambda digest: ray.get(parcel.contents[digest]))
    with on_signals(signal.SIGINT), safe_points():
        return work_apart(evaluator, job, parcel.files, run=run, key=parcel.key, depot=depot)


def _needs(wanted: Resources) -> dict[str, float]:
    """Return {resource: amount} per job, in Ray's names."""
    import ray

    num_gpus = wanted.num_gpus
    if num_gpus is None:
        num_gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
    needs = {"CPU": float(wanted.num_cpus), "GPU": num_gpus, "memory": float(wanted.memory)}
    return {name: amount for name, amount in needs.items() if amount}


def _require(needs: dict[str, float]) -> None:
    """Refuse at once what no node offers; Ray would wait for ever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, amount in needs.items():
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if amount > most:
            field = {"CPU": "run.threads", "GPU": "run.device", "memory": "run.memory"}[name]
            raise ResourceError(
                f"{field}: a job needs {amount:g} {name}, the largest node of this Ray has {most:g}; ask for less, "
                "or set run.autoscaling if such nodes are started on demand"
            )


def _room(needs: dict[str, float], have: dict[str, float]) -> int:
    """Return how many jobs fit a cluster at once."""
    return math.floor(min(have.get(name, 0.0) / amount for name, amount in needs.items()))


def _storage(wanted: Resources, directory: Path) -> str:
    """Return how files reach workers, after asking every node of a cluster."""
    if wanted.address is None and wanted.storage == AUTO:
        return SHARED
    if wanted.storage not in (AUTO, SHARED):
        return wanted.storage
    nodes = survey(directory)
    blind = [node.host for node in nodes if not node.sees]
    if blind and wanted.storage == SHARED:
        raise ResourceError(
            f"run.storage: shared, but {', '.join(blind)} does not see {directory}; set run.storage to ray or to a URL"
        )
    if blind:
        logger.info("run directory unseen nodes=%s; files travel with Ray's messages", ",".join(blind))
    # Nodes that are yet to come cannot be asked.
    return SHARED if nodes and not blind else MESSAGES
