"""SIGINT and SIGTERM to `mixopt run`: one saves what runs, two end at once; the next command goes on."""

import signal
import time
from pathlib import Path

import pytest

from mixopt.observation import Status
from mixopt.stopping import INTERRUPTED
from mixopt.study import Study

from .processes import SECONDS, command_line, descendants, wait_until
from .real import checkpoints, write_study
from .synthetic import outcome


def training(directory):
    """Whether a job is in the middle of its training: a curve has begun, its result is not there."""
    return [path for path in directory.glob("trials/*/curve.jsonl") if path.stat().st_size] and not list(
        directory.glob("jobs/*/result.json")
    )


def goes_on(path, directory, log, *flags):
    with command_line("run", path, "--dir", directory, *flags, cwd=path.parent, log=log) as process:
        assert process.wait(SECONDS) == 0, log.read_text()
    return outcome(directory)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("executor", ["serial", pytest.param("ray", marks=pytest.mark.ray)])
def test_one_signal_saves_a_checkpoint_and_stops(fault, real, tmp_path, executor, number):
    root, undisturbed = real
    # No checkpoint would come by itself, so the one that is there is the signal's.
    path, directory = write_study(root, "patient.yaml", checkpoint_seconds=1000), tmp_path / "run"
    flags = ("--executor", executor)
    with fault(f"{number.name} while proxies train, {executor}") as told:
        log = tmp_path / "first.err"
        with command_line("run", path, "--dir", directory, *flags, cwd=root, log=log) as process:
            wait_until(lambda: training(directory), process)
            process.send_signal(number)
            assert process.wait(SECONDS) == INTERRUPTED, log.read_text()
            assert descendants(process.pid) == []
        saved = checkpoints(directory)
        assert saved
        assert "a second signal ends at once" in log.read_text()
        assert "what finished is kept. Go on with: mixopt run" in log.read_text()
        assert "Traceback" not in log.read_text()
        assert {trial.status for trial in Study(directory).trials} <= {Status.RUNNING, Status.PROPOSED}
        assert goes_on(path, directory, tmp_path / "second.err", *flags) == undisturbed
        told.details.append(f"exit code {INTERRUPTED}, {len(saved)} jobs went on from the checkpoint it saved")


@pytest.mark.faults
@pytest.mark.parametrize("executor", ["serial", pytest.param("ray", marks=pytest.mark.ray)])
def test_two_signals_end_at_once(fault, real, tmp_path, executor):
    root, undisturbed = real
    path, directory = write_study(root, "patient.yaml", checkpoint_seconds=1000), tmp_path / "run"
    flags = ("--executor", executor)
    with fault(f"SIGINT twice while proxies train, {executor}") as told:
        log = tmp_path / "first.err"
        with command_line("run", path, "--dir", directory, *flags, cwd=root, log=log) as process:
            wait_until(lambda: training(directory), process)
            below = descendants(process.pid)
            process.send_signal(signal.SIGINT)
            wait_until(lambda: "second signal" in log.read_text())
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == INTERRUPTED, log.read_text()
            wait_until(lambda: not alive(below))
        assert goes_on(path, directory, tmp_path / "second.err", *flags) == undisturbed
        told.details.append(f"exit code {INTERRUPTED}, no process left behind")


def alive(pids):
    """Return those of some processes that still run."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    time.sleep(0.1)
    return found
