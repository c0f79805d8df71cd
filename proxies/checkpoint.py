"""State of one model as named tensors, and its files.

A stack is saved as the states of its models, so that models can leave it, be
continued elsewhere, or be resumed together. Files are safetensors with JSON metadata,
written atomically; a damaged one is treated as absent.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mixopt.identity import fingerprint
from mixopt.storage import atomic_path

logger = logging.getLogger(__name__)

VERSION = 1


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
    """Write the states of a stack and plain metadata into one file."""
    from safetensors.torch import save_file

    tensors = {f"{i}/{name}": t.contiguous() for i, state in enumerate(states) for name, t in state.tensors.items()}
    header = {"version": VERSION, "steps": [state.step for state in states], "metadata": metadata}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"mixopt": json.dumps(header), "checksum": _checksum(header, tensors)})


def load_states(path: Path) -> tuple[list[ModelState], dict[str, Any]] | None:
    """Return states and metadata, or None where the file is missing, damaged or of another version."""
    from safetensors import safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            info = file.metadata()
            header = json.loads(info["mixopt"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        if header["version"] != VERSION or info["checksum"] != _checksum(header, tensors):
            raise ValueError("another version or checksum")
    except Exception as error:  # safetensors raises its own kinds for torn files
        logger.warning("checkpoint damaged path=%s reason=%s; it is ignored", path, error)
        return None
    states = []
    for i, step in enumerate(header["steps"]):
        prefix = f"{i}/"
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        states.append(ModelState(step, own))
    return states, header["metadata"]


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    import hashlib

    digest = hashlib.sha256(fingerprint(header).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()
