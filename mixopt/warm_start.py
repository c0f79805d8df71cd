"""Warm starts: experts and search runs forked from seed models instead of drawn anew.

There is one seed model per model shape, trained once on a broad mixture. A fork keeps
its weights and starts its own count of tokens, learning-rate warm-up and data stream.
The seed model is charged once, as a trial of its own; a fork is charged its own tokens.
A domain added later leaves the seed model as it is, so that all forks share one; a
changed or removed one makes it, and all its forks, invalid.

Validation runs start from scratch: a final comparison must not rest on the seed model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmStart:
    """What seed models are trained on, and how long.

    Attributes:
        mixture: `uniform` or `natural`.
        rungs: {model: rung that its seed model is trained to}.
    """

    mixture: str
    rungs: Mapping[str, str]

    def of(self, model: str) -> tuple[str, str] | None:
        """Return mixture and rung of a model's seed, or None where there is none."""
        return (self.mixture, self.rungs[model]) if model in self.rungs else None
