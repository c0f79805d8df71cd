"""Processes that tests start, watch and kill: the command line, and studies forked from a warm process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

SECONDS = 120  # longest wait for anything; a limit on hanging, not a measurement


def warm():
    """Return the context whose processes are forked from one that has imported everything, so 20 cost little."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.synthetic"])
    return context


@contextmanager
def command_line(*words, cwd, log, **environment):
    """Run a verb in a process group of its own; whatever is left of it is killed at the end."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "mixopt.experiments.cli", *map(str, words)]
    with log.open("w") as err, log.with_suffix(".out").open("w") as out:
        process = subprocess.Popen(command, cwd=cwd, env=variables, stdout=out, stderr=err, start_new_session=True)
    try:
        yield process
    finally:
        kill_group(process)


def kill_group(process):
    """Send SIGKILL to a process and all it started, as a machine that goes down would."""
    family = [process.pid, *descendants(process.pid)]
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(SECONDS)


def descendants(pid):
    """Return the ids of all processes below one; Ray's are in process groups of their own."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def named(pid, text):
    """Return the ids of the processes below `pid` whose command line holds `text`."""
    found = []
    for child in descendants(pid):
        with suppress(OSError):
            if text in Path(f"/proc/{child}/cmdline").read_text().replace("\0", " "):
                found.append(child)
    return found


def wait_until(condition, process=None):
    """Wait until `condition()` is true and return its value; a process that ended before is an error."""
    end = time.monotonic() + SECONDS
    while not (value := condition()):
        assert process is None or process.poll() is None, f"the process ended with {process.poll()} before"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def events_of(directory, kind):
    """Return how many events of a kind a ledger holds by now."""
    path = Path(directory) / "study.jsonl"
    return path.read_text(errors="replace").count(f'"type": "{kind}"') if path.exists() else 0
