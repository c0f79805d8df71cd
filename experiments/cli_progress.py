"""Progress on stderr: a live panel on a terminal, one line per event elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mixopt.observation import Role, Status
from mixopt.protocols import Job
from mixopt.study import Study

from .comparison import UNIT_LABELS


class ProgressWatch:
    """Shows what is training, what was learned, cost spent and the best so far.

    Args:
        console: Where to draw; a terminal gets a live panel, a file one line per event.
        quiet: Show nothing.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._start = time.monotonic()
        self._phase, self._detail = "prepare", ""
        self._told: set[str] = set()
        self.seconds: dict[str, float] = {}
        self._phase_start = self._start
        live = console.is_terminal and not quiet
        self._live = Live(console=console, refresh_per_second=4, transient=True) if live else None

    def __enter__(self) -> ProgressWatch:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_phase()
        if self._live:
            self._live.stop()

    def phase(self, name: str, detail: str = "") -> None:
        """Begin a phase of the service."""
        self._close_phase()
        self._phase, self._detail = name, detail
        self._say(f"{name}: {detail}" if detail else name)
        if self._live:
            self._live.update(Text(f"{name} {detail}"))

    def note(self, text: str) -> None:
        """Say what preparation is doing."""
        self._detail = text
        self._say(f"{self._phase}: {text}")
        if self._live:
            self._live.update(Text(f"{self._phase}: {text}"))

    def update(self, study: Study, running: Sequence[Job]) -> None:
        """Redraw from the ledger and the curves of what runs."""
        if self._live:
            self._live.update(self._panel(study, running))
            return
        for trial in study.trials:
            if trial.status.finished and trial.id not in self._told:
                self._told.add(trial.id)
                self._say(_trial_line(study, trial.id) + f"  [{_summary(study)}]")

    def _close_phase(self) -> None:
        now = time.monotonic()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._phase_start
        self._phase_start = now

    def _say(self, line: str) -> None:
        if not self._quiet and not self._live:
            elapsed = time.monotonic() - self._start
            self._console.print(f"{elapsed:6.0f} s  {line}", highlight=False, markup=False, soft_wrap=True)

    def _panel(self, study: Study, running: Sequence[Job]) -> RenderableType:
        elapsed = time.monotonic() - self._start
        head = Text(f"{study.header.name}  {self._phase}  {elapsed:.0f} s  {self._detail}", style="bold")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("training", "rung", "steps done", "loss"):
            table.add_column(column, justify="left" if column in ("training", "rung") else "right")
        for job in running:
            for trial in job.trials:
                tokens, loss = last_point(study, trial.id)
                goal = study.header.ladder[trial.fidelity].num_tokens
                shown = "-" if loss is None else f"{loss:.3f}"
                table.add_row(trial.id, trial.fidelity, f"{tokens / goal:4.0%}", shown)
        recent = [t for t in study.trials if t.status.finished][-6:]
        learned = "\n".join(_trial_line(study, trial.id) for trial in recent)
        return Group(head, table, Text(learned, style="dim"), Text(_summary(study)))


def last_point(study: Study, trial_id: str) -> tuple[int, float | None]:
    """Return (tokens, training loss) of the last curve point of a trial, (0, None) without one."""
    with suppress(OSError, ValueError, IndexError, KeyError):
        lines = (study.files.trial(trial_id) / "curve.jsonl").read_text(encoding="utf-8").splitlines()
        point = json.loads(lines[-1])
        return int(point["tokens"]), float(point["loss"])
    return 0, None


def _trial_line(study: Study, trial_id: str) -> str:
    trial = study.trial(trial_id)
    if trial.status is not Status.DONE:
        return f"{trial.id} {trial.status}: {trial.note}"
    observations = [o for o in study.observations if o.trial == trial_id]
    value = study.value(observations[-1]) if observations else None
    weights = sorted(trial.mixture.as_dict().items(), key=lambda item: -item[1])
    shown = " ".join(f"{name} {weight:.2f}" for name, weight in weights[:3] if weight > 0)
    text = "" if value is None else f" objective {value:.4f}"
    return f"{trial.id} done at {trial.fidelity}{text}  ({shown}{' ...' if len(weights) > 3 else ''})"


def _summary(study: Study) -> str:
    header = study.header
    spent = study.history().of(Role.SEARCH).spent(header.ladder)
    unit = UNIT_LABELS[header.objective["unit"]]
    best = study.best()
    found = f"best measured {best[1]:.4f} {unit} ({best[0].id})" if best else "nothing measured at the top rung yet"
    return f"search spent {spent:.2f} of {header.budget:g} top-rung runs, {found}"
