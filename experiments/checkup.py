"""What `mixopt doctor` looks at: versions, disk, memory, cores, Ray, tracking, hub."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mixopt.errors import MixoptError, ResourceError
from mixopt.storage import free_bytes

from . import build

_NODE_BYTES = 1e9
_LIBRARIES = ("torch", "botorch", "gpytorch", "ray", "mlflow", "datasets", "tokenizers", "numpy")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: Short name.
        ok: Whether it will do.
        detail: What was found, and the remedy where it will not do.
    """

    what: str
    ok: bool
    detail: str


def examine(location: build.Location | None) -> Iterator[Finding]:
    """Yield findings on this machine and, with a study, on what it needs."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", sys.version_info >= (3, 11), f"{version} (3.11 or newer is needed)")
    for name in _LIBRARIES:
        yield _library(name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = location.config.run.workers if location else 1
    local = location is None or location.config.run.address is None
    yield Finding(
        "cores",
        cores >= workers or not local,
        f"{cores} for {workers} workers" + _hint(cores < workers, "lower run.workers"),
    )
    directory = location.directory if location else Path.cwd()
    free = free_bytes(directory)
    yield Finding("disk", free > 1e9, f"{free / 1e9:.1f} GB free at {directory}")
    memory = _available_memory()
    if memory is not None:
        needed = 5e8 * workers + 1e9
        yield Finding("memory", memory > needed, f"{memory / 1e9:.1f} GB available, about {needed / 1e9:.1f} GB needed")
    yield Finding(
        "hub",
        True,
        "offline (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") == "1" else "online if the network is",
    )
    if location:
        yield from _study(location)


def _study(location: build.Location) -> Iterator[Finding]:
    run = location.config.run
    if run.address is None:
        yield _attempt("device", lambda: _device(run.device))
    yield _attempt("space", lambda: _space(location))
    yield _attempt("ray", lambda: _ray(location))
    yield _attempt("tracking", lambda: _tracking(location))
    yield _attempt("text", lambda: _text(location))


def _attempt(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, look())
    except MixoptError as error:
        return Finding(what, False, str(error))


def _device(name: str) -> str:
    from mixopt.proxies.evaluators import resolve_device

    return str(resolve_device(name))


def _space(location: build.Location) -> str:
    build.check_space(location)
    return "enough for the study's states and scores"


def _ray(location: build.Location) -> str:
    from mixopt.ray_executor import examine

    run = location.config.run
    if run.executor == "serial":
        return "not used (run.executor: serial)"
    if run.address is None:
        wanted = run.gpus or 0.0
        if wanted:
            _device("cuda")
        return "a Ray on this machine is started with the first job"
    nodes = examine(build.job_resources(run), location.directory)
    here = ".".join(map(str, sys.version_info[:3])), importlib.metadata.version("torch")
    for node in nodes:
        if (node.python, node.torch) != here:
            raise ResourceError(
                f"run.address: {node.host} has Python {node.python} and torch {node.torch or 'none'}, this machine "
                f"{here[0]} and {here[1]}; results would differ by node: install the same"
            )
        if node.free_bytes < _NODE_BYTES:
            raise ResourceError(f"run.address: {node.host} has {node.free_bytes / 1e9:.1f} GB free; free some")
    seen = sum(node.sees for node in nodes)
    return f"{len(nodes)} nodes at {run.address}, {seen} see the run directory (run.storage: {run.storage})"


def _tracking(location: build.Location) -> str:
    from mixopt.tracking import shown_uri

    return shown_uri(getattr(build.build_tracker(location), "uri", "off"))


def _text(location: build.Location) -> str:
    from mixopt.study import Study

    header, _ = build.prepare(location)
    study = Study(location.directory)
    study.check(header, accept_changes=False)
    known = " as in the ledger" if study.headers else ""
    return (
        f"{len(header.domains)} domains, {sum(d.num_tokens for d in header.domains):,} tokens, tokenizer "
        f"{header.tokenizer}{known}"
    )


def _library(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, f"not installed; run: {sys.executable} -m pip install {name}")


def _hint(wanted: bool, text: str) -> str:
    return f"; {text}" if wanted else ""


def _available_memory() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
