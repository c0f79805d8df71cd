"""Ray as it is found: starting or joining it, what its nodes are like, and our code on them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ResourceError

logger = logging.getLogger(__name__)

# Page faults cost a CPU worker 8-40% of its time with the allocator's defaults (docs/log.md).
ALLOCATOR_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "270000000",
}
_CONNECT_SECONDS = 15
_SILENT_SECONDS = 20
HEAD_GONE = "Ray is gone: {}; what finished is kept, run the same command again (for a cluster, once it is up)"
_SURVEY_SECONDS = 120
_REMEDY = (
    "If the cluster asks for a token, export RAY_AUTH_MODE=token (and RAY_AUTH_TOKEN_PATH); "
    "drop the address to use a local Ray"
)
_PACKAGES = ("mixopt", "mixopt.proxies", "mixopt.search", "mixopt.experiments")


@dataclass(frozen=True)
class Node:
    """A node as one of its workers finds it.

    Attributes:
        host: Its name.
        python: Version of Python.
        torch: Version of torch, empty where there is none.
        free_bytes: Free space of its temporary folder.
        sees: Whether it sees the run directory.
    """

    host: str
    python: str
    torch: str
    free_bytes: int
    sees: bool


def connect(num_cpus: int, address: str | None, *, ship: bool = True) -> None:
    """Join the cluster at `address`, or start Ray on this machine; do nothing where that is done.

    Args:
        num_cpus: CPUs of a Ray of our own.
        address: `host:port`, `ray://host:port` or `auto`.
        ship: Send mixopt's own code to the nodes of a cluster.

    Raises:
        ResourceError: If it does not answer.
    """
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
                # A local Ray's workers inherit our environment, those of a cluster were started by others.
                with _environment(ship) as environment:
                    _within(
                        _CONNECT_SECONDS, lambda: ray.init(address=address, runtime_env=environment, **quiet), address
                    )
            else:
                # `local`: a cluster that happens to run on this machine, or left its traces, is not ours to use.
                ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **quiet)
    except ResourceError:
        raise
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"run.address: cannot connect to Ray at {address or 'this machine'}: {error}. {_REMEDY}"
        ) from error
    logger.info("ray ready address=%s resources=%s", address or "local", dict(ray.cluster_resources()))


def survey(directory: Path) -> list[Node]:
    """Ask a worker on every node what it finds.

    Raises:
        ResourceError: If a node does not answer, naming it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marker = directory / f".seen-{uuid.uuid4().hex}"
    marker.touch()
    try:
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        asked = {
            ray.remote(_look)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                max_retries=2,
            )
            .remote(marker): node["NodeManagerAddress"]
            for node in nodes
        }
        ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_SURVEY_SECONDS)
        if silent:
            raise ResourceError(
                f"run.address: the node {asked[silent[0]]} did not answer within {_SURVEY_SECONDS} s; check it or remove it"
            )
        found = [_answer(ref) for ref in ready]
        return sorted((node for node in found if node), key=lambda node: node.host)
    finally:
        marker.unlink(missing_ok=True)


@dataclass
class Head:
    """The head of a cluster and the node of this process, watched.

    A minute after the death of either Ray would end this process without a clear word.

    Attributes:
        address: Host and port of the head, or None where they mean nothing here (`ray://`).
        node: Host and port of Ray's process on this machine, or None likewise.
        answered: When it answered last, on the monotonic clock.
    """

    address: tuple[str, int] | None
    node: tuple[str, int] | None
    answered: float

    @classmethod
    def of(cls, given: str | None) -> Head:
        """Return the head of the cluster that this process is connected to by the address `given`."""
        import ray

        if (given or "").startswith("ray://"):
            return cls(None, None, time.monotonic())
        here = ray.get_runtime_context()
        host, _, port = here.gcs_address.rpartition(":")
        mine = next((node for node in ray.nodes() if node["NodeID"] == here.get_node_id()), None)
        node = (mine["NodeManagerAddress"], mine["NodeManagerPort"]) if mine else None
        return cls((host, int(port)), node, time.monotonic())

    def answers(self) -> bool:
        """Whether the head listens.

        Raises:
            ResourceError: If it has been silent for long (one that is restarted gets the time in between), or the node
                of this process is gone.
        """
        try:
            if self.node:
                socket.create_connection(self.node, timeout=3.0).close()
        except OSError as error:
            raise ResourceError(HEAD_GONE.format("its process on this machine died")) from error
        try:
            if self.address:
                socket.create_connection(self.address, timeout=3.0).close()
            self.answered = time.monotonic()
        except OSError as error:
            if time.monotonic() - self.answered > _SILENT_SECONDS:
                raise ResourceError(HEAD_GONE.format(f"its head has not answered for {_SILENT_SECONDS} s")) from error
            return False
        return True


def _answer(ref: Any) -> Node | None:
    """Return what a worker found, or None if its node is gone by now."""
    import ray

    try:
        return Node(**ray.get(ref))
    except ray.exceptions.RayTaskError as error:
        raise ResourceError(
            "run.address: a node cannot run mixopt; install the same Python, torch and Ray there as here: "
            f"{str(error).strip().splitlines()[-1]}"
        ) from error
    except ray.exceptions.RayError as error:
        logger.warning("node gone while it was asked reason=%s", str(error).strip().splitlines()[0])
        return None


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


def _look(marker: Path) -> dict[str, Any]:
    """Runs on a node; plain data, as the classes of an installed mixopt may differ."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = ""
    return {
        "host": socket.gethostname(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch,
        "free_bytes": shutil.disk_usage(tempfile.gettempdir()).free,
        "sees": marker.exists(),
    }


@contextlib.contextmanager
def _environment(ship: bool) -> Iterator[dict[str, Any]]:
    """Yield Ray's runtime environment; Ray has packed our code when the block ends."""
    environment: dict[str, Any] = {"env_vars": ALLOCATOR_SETTINGS}
    if not ship:
        yield environment
        return
    with tempfile.TemporaryDirectory() as folder:
        yield {**environment, "py_modules": [str(stage_code(Path(folder)))]}


def stage_code(folder: Path) -> Path:
    """Copy the modules of mixopt to `folder`/mixopt as a wheel would lay them out, without data."""
    for name in _PACKAGES:
        found = importlib.util.find_spec(name)
        target = folder.joinpath(*name.split("."))
        target.mkdir(parents=True)
        for source in (found and found.submodule_search_locations) or ():
            for module in Path(source).glob("*.py"):
                shutil.copy(module, target)
    return folder / "mixopt"


def _within(seconds: float, call: Callable[[], Any], address: str) -> None:
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
        raise ResourceError(f"run.address: Ray at {address} did not answer within {seconds:g} s. {_REMEDY}")
    if failure:
        raise failure[0]
