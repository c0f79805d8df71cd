"""Bench `sizes`: what the dial `depth` gives, from one CPU core to 1B parameters.

Nothing is trained. Shapes above depth 2 were not trained to an end here.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixopt.proxies.laws import sizes

from . import build
from .bench_runs import Progress

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32)


def run(study: Path, *, out: Path, seeds: int, progress: Progress) -> dict[str, Any]:
    """Return sizes and recipes for the study's vocabulary; `out` and `seeds` are not needed."""
    vocab_size = build.locate(study).config.tokenizer.vocab_size
    return {"name": "sizes", "vocab_size": vocab_size, "sizes": [asdict(size) for size in sizes(DEPTHS, vocab_size)]}


def table(result: dict[str, Any]) -> str:
    """Return the sizes as Markdown, a row per depth."""
    lines = [
        "| depth | width | experts | parameters | active | training FLOPs per token | learning rate | tokens per step |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for size in result["sizes"]:
        lines.append(
            f"| {size['depth']} | {size['width']} | {size['experts']} | {size['total'] / 1e6:.2f}M "
            f"| {size['active'] / 1e6:.2f}M | {size['flops_per_token']:.2g} | {size['learning_rate']:.2g} "
            f"| {size['batch_tokens']:,} |"
        )
    return "\n".join(lines)
