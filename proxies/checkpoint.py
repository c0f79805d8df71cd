"""State of one model as named tensors, and its files.

A stack is saved as the states of its models, so that models can leave it, be
continued elsewhere, or be resumed together. Files are safetensors with JSON metadata,
written atomically. A damaged one is treated as absent; one of another version or
shape is an error, because making it again would not explain itself.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mixopt.errors import StudyError
from mixopt.identity import fingerprint
from mixopt.storage import atomic_path

from .config import ProxyConfig
from .model import ProxyStack

logger = logging.getLogger(__name__)

VERSION = 1
_REMEDY = "use the mixopt that wrote it, or remove the file (what it holds is trained again) or the run directory"


@dataclass(frozen=True)
class ModelState:
    """All that is needed to go on with one model.

    Attributes:
        step: Optimizer steps done.
        tensors: `weights/`, `ema/`, `first/`, `second/` (moments) and `buffers/` by
            parameter name, without the stack axis.
    """

    step: int
    tensors: Mapping[str, Tensor]


def save_states(path: Path, states: Sequence[ModelState], metadata: Mapping[str, Any]) -> None:
    """Write the states of a stack and plain metadata into one file.

    Raises:
        ResourceError: If it cannot be written; an earlier file is left as it was.
    """
    tensors = {f"{i}/{name}": t.contiguous() for i, state in enumerate(states) for name, t in state.tensors.items()}
    header = {"version": VERSION, "steps": [state.step for state in states], "metadata": metadata}
    with atomic_path(path) as temporary:
        write_tensors(temporary, tensors, {"mixopt": json.dumps(header), "checksum": _checksum(header, tensors)})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: With its number, also where the library hides it in a message of its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
        # The library makes files that only their owner can read; other files of a study are for all.
        path.chmod(0o644)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def load_states(path: Path, config: ProxyConfig | None = None) -> tuple[list[ModelState], dict[str, Any]] | None:
    """Return states and metadata, or None where the file is missing or damaged.

    Args:
        path: The file.
        config: Shape that the states must have, or None for any.

    Raises:
        StudyError: If the file is of another version or holds models of another shape.
    """
    from safetensors import safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            info = file.metadata()
            header = json.loads(info["mixopt"])
            version = header["version"]
            # What another version means by its checksum is not known.
            tensors = {name: file.get_tensor(name) for name in file.keys()} if version == VERSION else {}  # noqa: SIM118
        if version == VERSION and info["checksum"] != _checksum(header, tensors):
            raise ValueError("checksum does not match")
    except Exception as error:  # safetensors raises its own kinds for torn files
        logger.warning("checkpoint damaged path=%s reason=%s; it is ignored", path, error)
        return None
    if version != VERSION:
        raise StudyError(f"{path}: expected a checkpoint of version {VERSION}, got version {version}; {_REMEDY}")
    states = []
    for i, step in enumerate(header["steps"]):
        prefix = f"{i}/"
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        states.append(ModelState(step, own))
    if config is not None:
        _check_shapes(states, config, path)
    return states, header["metadata"]


def _check_shapes(states: Sequence[ModelState], config: ProxyConfig, path: Path) -> None:
    # Memory that nobody writes to costs nothing, and torch's meta device takes a second to start.
    shapes = {name: tuple(parameter.shape[1:]) for name, parameter in ProxyStack(config, 1).named_parameters()}
    expected = {f"{kind}/{name}": shape for kind in ("weights", "ema") for name, shape in shapes.items()}
    for state in states:
        found = {name: tuple(t.shape) for name, t in state.tensors.items() if name.startswith(("weights/", "ema/"))}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise StudyError(
                    f"{path} holds a model of another shape: expected {name} {_shown(expected.get(name))}, "
                    f"got {_shown(found.get(name))}; {_REMEDY}"
                )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "of " + " x ".join(map(str, shape))


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    import hashlib

    digest = hashlib.sha256(fingerprint(header).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()
