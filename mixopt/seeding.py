"""Randomness by name: one integer seed per study, one stream per consumer.

Each consumer asks for its stream by name, so a new consumer changes no other
stream, and a resumed study draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """Derive a non-negative 63-bit seed from a root seed and a path of names."""
    path = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return the NumPy generator of the stream `names` below `seed`."""
    return np.random.default_rng(derive(seed, *names))
