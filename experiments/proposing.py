"""A study proposed for a folder of text: ladder, budget, and what it will take here.

Runs and FLOPs follow from the study file. Time is that of a few training steps on the
sampled text, as in `mixopt check`: no model is trained to an end.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.config import StudyConfig
from mixopt.mixture import Domain
from mixopt.proxies.evaluators import ProxyEvaluator
from mixopt.proxies.tokenizer import TextTokenizer, train_tokenizer
from mixopt.proxies.tokens import TokenShard
from mixopt.study import Header

from . import build, estimate
from .initialize import Draft, FoundDomain
from .survey import Surveyed, rounded, survey, warnings, with_tokens

# Text repeated up to about four times teaches nearly as much as new text; arXiv:2305.16264, Section 5.
MOST_EPOCHS = 4.0
_TOP_RUNGS = (512_000, 256_000, 128_000, 64_000)
# Runs of search per domain; the quickstart has 12 for 8 domains.
_BUDGET_PER_DOMAIN = 1.5
_FEWEST_RUNS = 12


@dataclass(frozen=True)
class Proposal:
    """What is written into the study file and said about it.

    Attributes:
        domains: The domains with estimated sizes.
        draft: Ladder, budget and held-out shares.
        seconds_per_token: CPU seconds per training token at the top rung; None where the text is too short to time.
        warnings: In words.
    """

    domains: tuple[Surveyed, ...]
    draft: Draft
    seconds_per_token: float | None
    warnings: tuple[str, ...]


def propose(found: Sequence[FoundDomain], configure: Callable[[Draft], StudyConfig]) -> Proposal:
    """Sample the text and propose a study.

    Args:
        found: Domains of a folder.
        configure: Returns the validated study of a `Draft`.

    Raises:
        ConfigError: If a sampled file cannot be read.
    """
    surveyed = [survey(domain) for domain in found]
    with tempfile.TemporaryDirectory(prefix="mixopt-init-") as folder:
        return _propose(surveyed, configure, Path(folder))


def _propose(surveyed: Sequence[Surveyed], configure: Callable[[Draft], StudyConfig], folder: Path) -> Proposal:
    draft = Draft()
    filled = {d.found.name: d.sample for d in surveyed if d.sample}
    if not filled:
        return Proposal(tuple(surveyed), draft, None, tuple(warnings(surveyed, draft.top_tokens, MOST_EPOCHS)))
    train_tokenizer(filled, draft.vocab_size, folder / "tokenizer.json")
    tokenizer = TextTokenizer(folder / "tokenizer.json")
    shards = {
        name: TokenShard.build(folder, name, sample, tokenizer=tokenizer, key={"sample": name})
        for name, sample in filled.items()
    }
    meta = {name: shard.meta for name, shard in shards.items()}
    rates = {name: m["num_tokens"] / m["num_bytes"] for name, m in meta.items() if m["num_bytes"]}
    domains = with_tokens(surveyed, rates)
    draft = draft_for(domains)
    config = configure(draft)
    return Proposal(
        tuple(domains),
        draft,
        _time(config, tokenizer, {name: s for name, s in shards.items() if s.meta["num_tokens"]}, folder),
        tuple(warnings(domains, draft.top_tokens, MOST_EPOCHS)),
    )


def draft_for(domains: Sequence[Surveyed]) -> Draft:
    """Return a ladder and budget for that much text.

    The top rung is the longest at which the middle one of the domains is read at most
    four times by its expert; smaller domains are warned of instead of shortening all.
    """
    middle = float(np.median([domain.num_tokens for domain in domains]))
    top = next((tokens for tokens in _TOP_RUNGS if tokens <= MOST_EPOCHS * middle), _TOP_RUNGS[-1])
    return Draft(
        top_tokens=top,
        budget=max(_FEWEST_RUNS, math.ceil(_BUDGET_PER_DOMAIN * len(domains))),
        holdout={d.found.name: share for d in domains if (share := _holdout(d)) is not None},
        notes={d.found.name: f"about {rounded(d.num_tokens)} tokens" for d in domains},
    )


def _holdout(domain: Surveyed) -> float | None:
    """Return the share to hold out so that about 8 documents are, or None where the default does."""
    share = 8 / max(domain.num_documents, 1.0)
    return None if share <= 0.05 else min(0.3, math.ceil(20 * share) / 20)


def _time(config: StudyConfig, tokenizer: TextTokenizer, shards: dict[str, TokenShard], folder: Path) -> float | None:
    """Return CPU seconds per token, timed on the samples."""
    models = build.proxy_models(config, tokenizer.vocab_size)
    sequence = config.proxy.sequence_length
    long = {name: shard for name, shard in shards.items() if shard.meta["num_tokens"] > sequence}
    if not long:
        return None
    ladder = build.build_ladder(config, tokenizer.vocab_size)
    header = Header(
        name=config.name,
        seed=config.seed,
        domains=tuple(
            Domain(n, *(s.meta[key] for key in ("num_tokens", "num_docs", "num_bytes"))) for n, s in long.items()
        ),
        eval_sets=(),
        ladder=ladder,
        tokenizer=tokenizer.fingerprint,
        objective=config.objective.model_dump(),
        budget=config.search.budget,
        experts_fidelity=config.experts_fidelity,
    )
    evaluator = ProxyEvaluator(
        ladder=ladder,
        models=models,
        shards={name: shard.path.name for name, shard in long.items()},
        eval_shards={},
        data={},
        tokenizer=tokenizer.fingerprint,
        experts_fidelity=config.experts_fidelity,
    )
    return estimate.seconds_per_token(header, evaluator, folder, stack=config.run.stack)


def summarize(proposal: Proposal, config: StudyConfig, out: Path) -> dict[str, Any]:
    """Return plain data on a proposal written to `out`: domains, ladder, runs, estimated time and FLOPs, warnings."""
    ladder = build.build_ladder(config, proposal.draft.vocab_size)
    runs = {
        "experts": float(len(config.domains)),
        "search": config.search.budget,
        "validation": float(config.validation.seeds * (1 + len(config.validation.baselines))),
    }
    total, top = sum(runs.values()), ladder.target
    seconds = proposal.seconds_per_token and proposal.seconds_per_token * total * top.num_tokens
    return {
        "study": str(out),
        "domains": [_size(domain) for domain in proposal.domains],
        "ladder": [{"name": rung.name, "tokens": rung.num_tokens, "flops": rung.flops} for rung in ladder],
        "runs_at_top": {**runs, "total": total},
        "estimated": {
            "tokens_trained": total * top.num_tokens,
            "flops": total * top.flops,
            "process_seconds": seconds and round(seconds),
            "wall_seconds": seconds and round(seconds / config.run.workers),
            "workers": config.run.workers,
            "from": f"{estimate.PROBE_STEPS} training steps on a sample",
        },
        "warnings": list(proposal.warnings),
        "next": [f"mixopt check {out}", f"mixopt run {out}"],
    }


def _size(domain: Surveyed) -> dict[str, Any]:
    found, tokens = domain.found, domain.num_tokens
    return {
        "name": found.name,
        "path": str(found.path),
        "text": found.text,
        "files": len(found.files),
        "bytes": found.num_bytes,
        "documents": round(domain.num_documents),
        "tokens": round(tokens),
        "bytes_per_token": round(domain.text_bytes / tokens, 2) if tokens else None,
    }
