"""Bench `warmstart`: do mixtures rank the same when their runs start from a seed model?

Random mixtures are trained from scratch to the top rung (cold), and again for a part of
those tokens (warm) from a model trained on the uniform mixture: one of the same shape
(seed), and one of half the width that was grown (grown). Ranks are compared by
Spearman's correlation, per evaluation set and for the objective; 0.8 is asked of warm
starts. Two cold runs of different seeds show what noise leaves to be reached.

Every run is kept as a file of its own and not trained again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.errors import ConfigError, TrainingError
from mixopt.identity import fingerprint
from mixopt.mixture import Array, Mixture
from mixopt.observation import losses_and_scores
from mixopt.proxies.checkpoint import ModelState, load_states, save_states
from mixopt.proxies.config import ProxyConfig
from mixopt.proxies.evaluators import MeasuredSet
from mixopt.proxies.growth import Growth, grow
from mixopt.proxies.optim import initial_state
from mixopt.proxies.scoring import score
from mixopt.proxies.tokens import MixtureSampler
from mixopt.proxies.train import Milestone, ProxyRun, StackTrainer
from mixopt.seeding import derive, generator
from mixopt.storage import RunDirectory, read_json, write_json

from . import build
from .bench_runs import Ground, Progress

NUM_MIXTURES = 16
STARTS = ("cold", "seed", "grown")
# Shares of the top rung's tokens: of a seed model, of warm runs, and of cold runs to compare those with.
SEED_SHARE = 0.25
SHARES = (0.125, 0.25, 0.5)
ENOUGH = 0.8  # below it a warm start is a fidelity of its own (METHODS 5)
_STACK = 4
_RESAMPLES = 2000


def run(study: Path, *, out: Path, seeds: int, progress: Progress) -> dict[str, Any]:
    """Train cold and warm runs of the same mixtures and compare their ranks.

    Returns:
        Plain data. `rows`, one per start and length: `objective` (`rho`, the mean of
        Spearman's correlation with cold runs of the top rung over pairs of runs of
        different noise, and its 95% bootstrap interval over mixtures; None where there
        is no such pair), `sets` (`rho` of each evaluation set), `spread` (standard
        deviation of the objective over mixtures, relative to the cold runs'), `level`
        (mean objective minus the cold runs'). `left_out`: mixtures of which a run
        diverged. `enough`: (start, tokens) of the warm rows with `rho` of at least 0.8.
    """
    bench = _Bench(Ground.prepare(study, out=out, progress=progress), RunDirectory(build.locate(study).directory))
    results = {(start, seed): bench.results(start, seed) for seed in range(seeds) for start in STARTS}
    return _summary(results, seeds, bench)


def table(result: dict[str, Any]) -> str:
    """Return the comparison as Markdown: a row per start and length."""
    lines = [
        f"Spearman's correlation with cold runs of {result['top_tokens']:,} tokens over {result['num_mixtures']} mixtures, "
        f"{result['seeds']} seeds, with a 95% bootstrap interval over mixtures.",
        "",
        "| start | tokens | objective | mean of sets | least of sets | spread | level |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        cells = ["", "", ""]
        if row["objective"] is not None:
            rho, sets = row["objective"], row["sets"]
            least = min(sets, key=sets.__getitem__)
            cells = [f"{rho['rho']:.2f} [{rho['low']:.2f}, {rho['high']:.2f}]", f"{np.mean(list(sets.values())):.2f}"]
            cells.append(f"{sets[least]:.2f} ({least})")
        numbers = f"{row['spread']:.2f} | {row['level']:+.3f}"
        lines.append(f"| {row['start']} | {row['tokens']:,} | {' | '.join(cells)} | {numbers} |")
    return "\n".join(lines)


# --- training ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Bench:
    """Trains what is missing.

    Attributes:
        ground: The prepared study.
        files: Its run directory.
    """

    ground: Ground
    files: RunDirectory

    @cached_property
    def config(self) -> ProxyConfig:
        """Shape and recipe of the top rung."""
        config = self.ground.evaluator.models[self.ground.header.ladder.target.model]
        if config.decay:
            raise ConfigError("proxy.decay: runs are read off at several lengths here, which needs decay 0")
        return config

    @cached_property
    def top_tokens(self) -> int:
        """Tokens of a cold run."""
        return self.ground.header.ladder.target.num_tokens

    @cached_property
    def sets(self) -> Mapping[str, MeasuredSet]:
        """Every evaluation set of the study."""
        return self.ground.evaluator.measured(self.files, self.config)

    @cached_property
    def mixtures(self) -> list[Mixture]:
        """Drawn from Dirichlet(1), the same for all starts and seeds."""
        names = self.ground.header.domain_names
        draws = generator(0, "bench warmstart").dirichlet(np.ones(len(names)), NUM_MIXTURES)
        return [Mixture.normalized(names, weights) for weights in draws]

    def lengths(self, start: str) -> tuple[int, ...]:
        """Return the tokens at which runs of a start are measured."""
        return tuple(round(share * self.top_tokens) for share in (SHARES if start != "cold" else (*SHARES, 1.0)))

    def results(self, start: str, seed: int) -> list[dict[str, Any]]:
        """Return one result per mixture: `diverged`, and `points` with `tokens`, `losses` and `objective`."""
        paths = [self._path(start, seed, i) for i in range(NUM_MIXTURES)]
        missing = [i for i in range(NUM_MIXTURES) if read_json(paths[i]) is None]
        first = self._seed_model(start, seed) if missing and start != "cold" else None
        for stack in (missing[i : i + _STACK] for i in range(0, len(missing), _STACK)):
            for i, result in self._trained(start, seed, stack, first):
                write_json(paths[i], result)
                last = f"{result['points'][-1]['objective']:.4f}" if result["points"] else result["diverged"]
                self.ground.progress(f"bench done start={start} seed={seed} mixture={i} objective={last}")
        found: list[dict[str, Any] | None] = [read_json(path) for path in paths]
        return [result for result in found if result is not None]

    def _trained(
        self, start: str, seed: int, stack: Sequence[int], first: ModelState | None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        lengths = {self.config.num_steps(tokens): tokens for tokens in self.lengths(start)}
        points: dict[str, list[dict[str, Any]]] = {str(i): [] for i in stack}
        # Data order is a run's own, so warm runs share no noise with cold ones.
        seeds = [derive(seed, start, i) for i in stack]
        runs = [
            ProxyRun(
                str(i), self._sampler(self.mixtures[i], own), tuple(lengths),
                first or initial_state(self.config, derive(own, "init")),
            )
            for i, own in zip(stack, seeds, strict=True)
        ]  # fmt: skip

        def measure(reached: Milestone) -> None:
            points[reached.run.name].append({"tokens": lengths[reached.step], **self._measured(reached)})

        self._train(self.config, runs, measure)
        for one in runs:
            yield int(one.name), {"diverged": one.diverged, "points": points[one.name]}

    def _train(self, config: ProxyConfig, runs: Sequence[ProxyRun], measure: Any = lambda reached: None) -> None:
        trainer = StackTrainer(config, runs, self.ground.evaluator.resolved_device)
        while trainer.active:
            trainer.advance(measure)

    def _measured(self, reached: Milestone) -> dict[str, Any]:
        columns: dict[str, float] = {}
        for on in self.sets.values():
            columns |= on.columns(score(reached.average, on.rows)[0])
        losses, _ = losses_and_scores(columns)
        return {"losses": losses, "objective": float(self.ground.objective.value(columns))}

    def _sampler(self, mixture: Mixture, seed: int) -> MixtureSampler:
        return MixtureSampler(self.ground.shards, mixture, seed=seed, sequence_length=self.config.sequence_length)

    def _seed_model(self, start: str, seed: int) -> ModelState:
        """Return where warm runs start: trained on the uniform mixture, and grown if it was smaller."""
        small = half_width(self.config) if start == "grown" else self.config
        path = self._path(start, seed, None).with_suffix(".safetensors")
        saved = load_states(path, small)
        if saved is None:
            own = derive(seed, start, "seed model")
            end = small.num_steps(round(SEED_SHARE * self.top_tokens))
            sampler = self._sampler(Mixture.uniform(self.ground.header.domain_names), own)
            one = ProxyRun(path.stem, sampler, (end,), initial_state(small, derive(own, "init")))
            self._train(small, [one])
            if one.diverged:
                raise TrainingError(f"the seed model {one.diverged}; lower proxy.learning_rate")
            save_states(path, [one.state], {"start": start, "seed": seed})
            saved = [one.state], {}
        return grow(saved[0][0], small, self.config, growth=Growth(), seed=derive(seed, "grow"))

    def _path(self, start: str, seed: int, number: int | None) -> Path:
        lengths = [SEED_SHARE * self.top_tokens, *self.lengths(start)]
        evaluator, mixture = self.ground.evaluator, None if number is None else self.mixtures[number].as_dict()
        content = [self.config.to_json(), lengths, evaluator.data, evaluator.tokenizer, self.ground.header.objective]
        key = fingerprint([*content, mixture, start, seed])
        return self.ground.out / f"{start}-seed{seed}-{'start' if number is None else number}-{key[:8]}.json"


def half_width(config: ProxyConfig) -> ProxyConfig:
    """Return a shape with half the width, heads and hidden units.

    Raises:
        ConfigError: If the width cannot be halved.
    """
    if config.num_heads % 2 or config.expert_width % 2 or config.shared_width % 2:
        raise ConfigError(
            f"proxy.width: expected an even number of heads and even hidden widths to halve, got width {config.width} "
            f"with head_dim {config.head_dim}, expert_width {config.expert_width}, shared_width {config.shared_width}"
        )
    return replace(
        config, width=config.width // 2, kv_heads=max(1, config.kv_heads // 2),
        expert_width=config.expert_width // 2, shared_width=config.shared_width // 2,
    )  # fmt: skip


# --- comparing -----------------------------------------------------------------


def _summary(results: Mapping[tuple[str, int], list[dict[str, Any]]], seeds: int, bench: _Bench) -> dict[str, Any]:
    whole = [i for i in range(NUM_MIXTURES) if not any(runs[i]["diverged"] for runs in results.values())]
    if len(whole) < 3:
        raise TrainingError(
            f"only {len(whole)} of {NUM_MIXTURES} mixtures trained to their end; lower proxy.learning_rate"
        )

    def values(start: str, tokens: int, name: str | None) -> Array:
        """Return (seeds, mixtures) objectives, or losses on one evaluation set."""
        found = [
            [next(p for p in results[start, seed][i]["points"] if p["tokens"] == tokens) for i in whole]
            for seed in range(seeds)
        ]
        return np.array([[p["objective"] if name is None else p["losses"][name] for p in row] for row in found])

    top = bench.top_tokens

    def row(start: str, tokens: int) -> dict[str, Any]:
        mine, cold, related = values(start, tokens, None), values("cold", top, None), start == "cold"
        sets = {name: agreement(values(start, tokens, name), values("cold", top, name), related) for name in bench.sets}
        return {
            "start": start, "tokens": tokens, "objective": agreement(mine, cold, related),
            "sets": {name: found["rho"] for name, found in sets.items() if found is not None},
            "spread": float((mine.std(axis=1) / cold.std(axis=1)).mean()), "level": float(mine.mean() - cold.mean()),
        }  # fmt: skip

    rows = [row(start, tokens) for start in STARTS for tokens in bench.lengths(start)]
    warm = [found for found in rows if found["start"] != "cold"]
    return {
        "name": "warmstart", "objective": dict(bench.ground.header.objective), "seeds": seeds, "top_tokens": top,
        "num_mixtures": len(whole), "left_out": [i for i in range(NUM_MIXTURES) if i not in whole], "rows": rows,
        "enough": [[found["start"], found["tokens"]] for found in warm if found["objective"]["rho"] >= ENOUGH],
    }  # fmt: skip


def agreement(one: Array, other: Array, related: bool = False) -> dict[str, float] | None:
    """Return how well two sets of runs rank the same mixtures, run against run.

    Args:
        one: (R, M) values of R repetitions.
        other: (R, M) values of R repetitions.
        related: Whether repetition r of both shares its noise; such pairs are left out.

    Returns:
        `rho`, the mean over pairs of repetitions, and the 95% percentile interval
        `low`, `high` over resampled mixtures; None where no pair is left.
    """
    pairs = [(r, s) for r in range(len(one)) for s in range(len(other)) if not (related and r == s)]
    if not pairs:
        return None
    num = one.shape[1]
    draws = generator(0, "bootstrap").integers(num, size=(_RESAMPLES, num))
    chosen = np.concatenate([np.arange(num)[None], draws])
    ranks = [_standardized(_ranks(values[:, chosen])) for values in (one, other)]
    rho = np.mean([(ranks[0][r] * ranks[1][s]).mean(axis=-1) for r, s in pairs], axis=0)
    low, high = np.quantile(rho[1:], [0.025, 0.975])
    return {"rho": float(rho[0]), "low": float(low), "high": float(high)}


def _ranks(values: Array) -> Array:
    """Return ranks along the last axis; equal values, which resampling makes, share their mean rank."""
    one, other = values[..., :, None], values[..., None, :]
    return np.asarray((one > other).sum(-1) + ((one == other).sum(-1) + 1) / 2)


def _standardized(ranks: Array) -> Array:
    centered = ranks - ranks.mean(axis=-1, keepdims=True)
    spread = centered.std(axis=-1, keepdims=True)
    # A resample of one mixture alone has no order: correlation 0.
    return np.asarray(centered / np.where(spread > 0, spread, 1.0))
