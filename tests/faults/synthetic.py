"""A study on a synthetic problem as a process runs it: real service, executor, ledger and result files."""

import json
import resource
import signal
import time
from pathlib import Path

from mixopt.errors import MixoptError
from mixopt.stopping import INTERRUPTED, on_signals
from mixopt.study import Study
from tests.unit.mixopt.synthetic_study import a_plan, run

BUDGET = 60.0
TIMES = ("process_seconds", "wall_seconds")


def finish_study(folder, *, limit_bytes=0, jump_seconds=0, budget=BUDGET):
    """Run or resume the study to its end.

    Args:
        folder: The run directory.
        limit_bytes: Size that no file may exceed, or 0.
        jump_seconds: How far the clock jumps back and forth, at every look at it.
        budget: Of the search, in runs of the top rung.
    """
    if limit_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    if jump_seconds:
        _jump(jump_seconds)
    folder = Path(folder)
    try:
        with on_signals(signal.SIGINT, signal.SIGTERM):
            run(folder, a_plan(budget=budget))
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except MixoptError as error:
        # Beside the run directory, as nothing may be written into it.
        folder.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None


def _jump(seconds):
    """Replace the wall clock by one that jumps: a private one, as the machine's is not ours."""
    true, looks = time.time, []

    def jumping():
        looks.append(1)
        return true() + seconds * (-1) ** len(looks)

    time.time = jumping


def events(folder):
    """Return a ledger's events without what differs between runs."""
    lines = [json.loads(line) for line in (Path(folder) / "study.jsonl").read_bytes().splitlines()]
    return [{key: value for key, value in event.items() if key not in ("time", "crc")} for event in lines]


def outcome(folder):
    """Return all that a study found out, whatever failed and was tried again on the way."""
    told = [event for event in events(folder) if event["type"] not in ("status", "result")]
    study = Study(Path(folder))
    numbers = {o.key: {k: v for k, v in o.to_json().items() if k not in TIMES} for o in study.observations}
    return told, {trial.id: trial.status for trial in study.trials}, numbers
