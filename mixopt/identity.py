"""Identity by content: canonical JSON and its fingerprint.

Fingerprints name caches and jobs and decide what a resumed study may reuse. They
are never used to compare floats.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_HEX_DIGITS = 16


def canonical_json(value: Any) -> str:
    """Serialize `value` so that equal contents give equal text (NaN is refused)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of `value`'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:_HEX_DIGITS]


def file_fingerprint(path: Path) -> str:
    """Return the first 16 hex digits of the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 16):
            digest.update(block)
    return digest.hexdigest()[:_HEX_DIGITS]
