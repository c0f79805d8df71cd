"""Workers, Ray's head and the driver killed on a real Ray, with proxies that really train."""

import os
import signal

import pytest

from .processes import SECONDS, command_line, events_of, named, wait_until
from .real import checkpoints, write_study
from .synthetic import events, outcome

pytestmark = [pytest.mark.faults, pytest.mark.ray]

RAY = ("--executor", "ray")


def run(path, directory, log, *flags):
    """Run or resume a study on Ray to its end; return what it found out."""
    with command_line("run", path, "--dir", directory, *RAY, *flags, cwd=path.parent, log=log) as process:
        assert process.wait(SECONDS) == 0, log.read_text()
    return outcome(directory)


def notes(directory):
    """Return the reasons of the failures in a ledger."""
    return [event["note"] for event in events(directory) if event["type"] == "status" and event["status"] == "failed"]


def test_a_worker_killed_in_training_goes_on_from_its_checkpoint(fault, real, tmp_path):
    root, undisturbed = real
    path, directory, log = write_study(root), tmp_path / "run", tmp_path / "err"
    with fault("kill -9 of a Ray worker in training", 2) as told:
        with command_line("run", path, "--dir", directory, *RAY, cwd=root, log=log) as process:
            for _ in range(2):
                wait_until(lambda: checkpoints(directory), process)
                before = checkpoints(directory)[0].stat().st_mtime
                os.kill(wait_until(lambda: named(process.pid, "ray::_work_shared"), process)[0], signal.SIGKILL)
                wait_until(lambda t=before: any(p.stat().st_mtime > t for p in checkpoints(directory)), process)
            assert process.wait(SECONDS) == 0, log.read_text()
        reasons = notes(directory)
        assert reasons
        assert all(reason.startswith("worker lost") for reason in reasons)
        assert outcome(directory) == undisturbed
        told.details.append(f"{len(reasons)} retries with their reason in the ledger; losses the same to the last bit")


def test_a_driver_killed_on_ray_loses_nothing(fault, real, tmp_path):
    root, undisturbed = real
    path, directory, log = write_study(root), tmp_path / "run", tmp_path / "err"
    with fault("kill -9 of the driver on Ray, proxies in training, and of all it started", 3):
        for results in (0, 3, 5):
            with command_line("run", path, "--dir", directory, *RAY, cwd=root, log=log) as process:
                wait_until(lambda n=results: events_of(directory, "result") >= n, process)
                wait_until(lambda: checkpoints(directory), process)
        assert run(path, directory, log) == undisturbed


@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_when_ray_dies_one_message_says_so_and_the_next_command_goes_on(fault, real, tmp_path, part):
    root, undisturbed = real
    path, directory, log = write_study(root), tmp_path / "run", tmp_path / "err"
    with fault(f"kill -9 of Ray's {part} during a run") as told:
        with command_line("run", path, "--dir", directory, *RAY, cwd=root, log=log) as process:
            wait_until(lambda: checkpoints(directory), process)
            os.kill(named(process.pid, f"/{part} ")[0], signal.SIGKILL)
            code = process.wait(SECONDS)
        text = log.read_text()
        assert "Traceback" not in text
        if code:
            assert code == 1
            assert "error: Ray is gone: " in text
            assert "run the same command again" in text
        told.details.append(f"the command ended with {code}")
        assert run(path, directory, log) == undisturbed
