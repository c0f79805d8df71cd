"""Recipes trained on a prepared study's text, for our own measurements.

Uniform mixture, one stack per setting, the objective at every milestone. A result is
kept per (setting, seed) and not trained again; nothing is written to the study.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixopt.identity import fingerprint
from mixopt.mixture import Mixture
from mixopt.objective import Objective
from mixopt.proxies.config import ProxyConfig
from mixopt.proxies.evaluators import MeasuredSet, ProxyEvaluator
from mixopt.proxies.optim import initial_state
from mixopt.proxies.scoring import score
from mixopt.proxies.tokens import MixtureSampler, TokenShard
from mixopt.proxies.train import Milestone, ProxyRun, StackTrainer
from mixopt.seeding import derive
from mixopt.storage import RunDirectory, read_json, write_json
from mixopt.study import Header

from . import build

Progress = Callable[[str], None]
# Steps of one stack before the next has its turn: what slows the machine down hits all settings.
_TURN = 25


@dataclass(frozen=True, eq=False)
class Ground:
    """A study made ready to train recipes on.

    Attributes:
        header: What the study is about.
        evaluator: Its models and data.
        objective: What is measured.
        shards: Training text by domain.
        sets: The evaluation sets that the objective needs.
        out: Folder of the results.
        progress: Told what happens, a line each.
    """

    header: Header
    evaluator: ProxyEvaluator
    objective: Objective
    shards: Mapping[str, TokenShard]
    sets: Mapping[str, MeasuredSet]
    out: Path
    progress: Progress

    @classmethod
    def prepare(cls, study: Path, *, out: Path, progress: Progress) -> Ground:
        """Tokenize a study's text (kept in its run directory) and open it."""
        location = build.locate(study)
        header, evaluator = build.prepare(location, progress)
        evaluator.limit_threads()
        objective, files = build.parse_objective(header), RunDirectory(location.directory)
        shards = {name: TokenShard(files.tokens / folder) for name, folder in evaluator.shards.items()}
        sets = evaluator.measured(files, evaluator.models[header.ladder.target.model])
        needed = {name: on for name, on in sets.items() if set(on.passages.columns) & set(objective.columns)}
        return cls(header, evaluator, objective, shards, needed, out, progress)

    def train(
        self, settings: Mapping[str, ProxyConfig], *, tokens: Sequence[int], seeds: int
    ) -> dict[str, list[dict[str, Any]]]:
        """Return {setting: one result per seed}, in turns of a few steps each.

        A result has `seed`, `diverged` (why, or empty) and `points`, one per milestone
        that was reached: `tokens`, `objective` and `process_seconds` of training since
        the start, without the time of measuring.

        Args:
            settings: {name: shape and recipe}.
            tokens: Milestones in training tokens, increasing.
            seeds: Runs per setting.
        """
        entries = {
            name: [_Entry(self._path(name, config, tokens, s), s) for s in range(seeds)]
            for name, config in settings.items()
        }
        turns = [
            _Turn(self, name, config, tokens, missing)
            for name, config in settings.items()
            if (missing := [entry for entry in entries[name] if read_json(entry.path) is None])
        ]
        while any(turn.trainer.active for turn in turns):
            for turn in turns:
                turn.advance()
        return {name: [entry.result() for entry in mine] for name, mine in entries.items()}

    def measure(self, milestone: Milestone) -> float:
        """Return the objective of a model's averaged weights."""
        columns: dict[str, float] = {}
        for on in self.sets.values():
            columns |= on.columns(score(milestone.average, on.rows)[0])
        return float(self.objective.value(columns))

    def _path(self, name: str, config: ProxyConfig, tokens: Sequence[int], seed: int) -> Path:
        content = [config.to_json(), list(tokens), self.evaluator.data, self.evaluator.tokenizer]
        key = fingerprint([*content, self.header.objective, seed])
        return self.out / f"{name}-seed{seed}-{key[:8]}.json"


@dataclass(frozen=True)
class _Entry:
    path: Path
    seed: int

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] | None = read_json(self.path)
        assert found is not None, f"{self.path} was written by the turn that trained it"
        return found


@dataclass
class _Turn:
    """One setting's stack of the seeds that are missing."""

    ground: Ground
    name: str
    config: ProxyConfig
    tokens: Sequence[int]
    entries: Sequence[_Entry]
    points: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    seconds: float = 0.0
    started: float = 0.0
    measuring: float = 0.0

    def __post_init__(self) -> None:
        mixture, length = Mixture.uniform(self.ground.header.domain_names), self.config.sequence_length
        self.milestones = {self.config.num_steps(count): count for count in self.tokens}
        self.runs = [
            ProxyRun(
                str(entry.seed),
                MixtureSampler(self.ground.shards, mixture, seed=entry.seed, sequence_length=length),
                tuple(self.milestones),
                initial_state(self.config, derive(entry.seed, "init")),
            )
            for entry in self.entries
        ]
        self.points = {run.name: [] for run in self.runs}
        self.trainer = StackTrainer(self.config, self.runs, self.ground.evaluator.resolved_device)

    def advance(self) -> None:
        """Train some steps; keep the results once all models are at their end."""
        if not self.trainer.active:
            return
        for _ in range(_TURN):
            if not self.trainer.active:
                break
            num_models, self.started, self.measuring = len(self.trainer.runs), time.process_time(), 0.0
            self.trainer.advance(self._record)
            self.seconds += (time.process_time() - self.started - self.measuring) / num_models
        if not self.trainer.active:
            self._keep()

    def _record(self, reached: Milestone) -> None:
        start = time.process_time()
        seconds = self.seconds + (start - self.started - self.measuring) / len(self.trainer.runs)
        value = self.ground.measure(reached)
        point = {"tokens": self.milestones[reached.step], "objective": value, "process_seconds": seconds}
        self.points[reached.run.name].append(point)
        self.measuring += time.process_time() - start

    def _keep(self) -> None:
        for entry, run in zip(self.entries, self.runs, strict=True):
            points = self.points[run.name]
            write_json(entry.path, {"seed": entry.seed, "diverged": run.diverged, "points": points})
            shown = run.diverged or ", ".join(f"{p['objective']:.4f} at {p['tokens']:,} tokens" for p in points[-1:])
            self.ground.progress(f"bench done setting={self.name} seed={entry.seed} {shown}")
