"""The driver killed, cut off from disk or misled by its clock: the next command ends with the same ledger."""

import json
import os
import random
import signal
import time

import pytest

from mixopt import StudyError
from mixopt.stopping import INTERRUPTED
from mixopt.storage import RunDirectory
from mixopt.study import Study
from tests.e2e.command_line import mixopt
from tests.e2e.studies import small_study

from .processes import wait_until, warm
from .synthetic import events, finish_study, outcome

LONG, YEAR = 250.0, 365 * 86400.0


def finished(folder, **options):
    """Run or resume the study in a process of its own; return its exit code."""
    process = warm().Process(target=finish_study, args=(folder,), kwargs=options)
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return ledgers of studies that nobody disturbed, by budget."""
    made = {}

    def make(budget):
        if budget not in made:
            folder = tmp_path_factory.mktemp("uninterrupted") / "study"
            assert finished(folder, budget=budget) == 0
            made[budget] = events(folder)
        return made[budget]

    return make


@pytest.mark.parametrize(
    ("times", "budget"), [pytest.param(3, 60.0, id="few"), pytest.param(20, LONG, marks=pytest.mark.faults, id="many")]
)
def test_a_driver_killed_at_random_moments_loses_and_repeats_nothing(fault, tmp_path, uninterrupted, times, budget):
    whole, rng, folder = uninterrupted(budget), random.Random(times), tmp_path / "study"
    with fault("kill -9 of the driver at random moments, serial, synthetic runs", times) as told:
        moments = []
        for _ in range(times):
            process = warm().Process(target=finish_study, args=(folder,), kwargs={"budget": budget})
            process.start()
            # A random number of further bytes in the ledger, then a random fraction of an event.
            size, more = _size(folder), rng.randrange(1, 2 * len(json.dumps(whole)) // times)
            wait_until(lambda target=size + more, it=process: _size(folder) >= target or not it.is_alive())
            time.sleep(rng.uniform(0, 0.003))
            process.kill()
            process.join()
            moments.append(len(Study(folder).observations))
        assert finished(folder, budget=budget) == 0
        assert events(folder) == whole
        told.details.append(f"with {min(moments)} to {max(moments)} results in the ledger, the same in the end")


def _size(folder):
    path = RunDirectory(folder).ledger
    return path.stat().st_size if path.exists() else 0


def test_a_clock_that_jumps_by_a_year_changes_no_number_and_no_order(fault, tmp_path, uninterrupted):
    with fault("clock that jumps a year back and forth at every look", 1) as told:
        assert finished(tmp_path / "study", jump_seconds=YEAR, budget=60.0) == 0
        assert events(tmp_path / "study") == uninterrupted(60.0)
        times = [json.loads(line)["time"] for line in RunDirectory(tmp_path / "study").ledger.open()]
        assert times != sorted(times)
        seconds = [(o.process_seconds, o.wall_seconds) for o in Study(tmp_path / "study").observations]
        assert min(map(min, seconds)) >= 0
        told.details.append(f"{len(times)} events with jumping times; order, durations and numbers unchanged")


@pytest.mark.parametrize("limit", [600, 5_000, 20_000])
def test_a_driver_that_may_write_no_further_stops_with_one_message_and_goes_on_later(
    fault, tmp_path, uninterrupted, limit
):
    with fault("limit on file sizes reached (RLIMIT_FSIZE), serial, synthetic runs"):
        folder = tmp_path / "study"
        assert finished(folder, limit_bytes=limit, budget=60.0) == 1
        message = folder.with_suffix(".error").read_text()
        assert "ResourceError: cannot write" in message
        assert "raise it and run the same command again" in message
        assert finished(folder, budget=60.0) == 0
        assert events(folder) == uninterrupted(60.0)


def test_a_second_driver_is_refused_with_the_name_of_the_first(fault, tmp_path):
    path = small_study(tmp_path)
    with fault("two drivers on one study"), RunDirectory(tmp_path / "run").locked():
        answer = mixopt("run", path, "--dir", tmp_path / "run")
        assert answer.code == 1
        assert "error: another mixopt (process " in answer.err
        assert "wait for it or stop it first" in answer.err
        assert not (tmp_path / "run" / "study.jsonl").exists()


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.faults)])
def test_a_driver_stopped_by_signals_goes_on_where_it_was(fault, tmp_path, uninterrupted, times):
    """An exception raised in the middle of scipy's Sobol tables would leave them half filled, and other runs proposed."""
    rng, folder = random.Random(times), tmp_path / "study"
    with fault("SIGINT or SIGTERM to the driver, serial, synthetic runs", times) as told:
        codes = []
        for i in range(times):
            process = warm().Process(target=finish_study, args=(folder,), kwargs={"budget": LONG})
            process.start()
            size = _size(folder) + 1
            wait_until(lambda target=size, it=process: _size(folder) >= target or not it.is_alive())
            time.sleep(rng.uniform(0, 0.05))
            os.kill(process.pid, (signal.SIGINT, signal.SIGTERM)[i % 2])
            process.join()
            codes.append(process.exitcode)
        assert set(codes) == {INTERRUPTED}
        assert finished(folder, budget=LONG) == 0
        assert events(folder) == uninterrupted(LONG)
        told.details.append(f"exit code {INTERRUPTED} each time")


def test_a_bit_flip_in_the_ledger_is_named_with_its_line_and_a_cut_there_goes_on(fault, tmp_path, uninterrupted):
    whole, folder = uninterrupted(60.0), tmp_path / "study"
    assert finished(folder, budget=60.0) == 0
    ledger = RunDirectory(folder).ledger
    found, content, rng = outcome(folder), ledger.read_bytes(), random.Random(5)
    with fault("bit flip in the middle of the ledger", 200) as told:
        refused = 0
        for _ in range(200):
            at = rng.randrange(len(content))
            damaged = bytearray(content)
            damaged[at] ^= 1 << rng.randrange(8)
            ledger.write_bytes(bytes(damaged))
            line = content[:at].count(b"\n") + 1
            try:
                assert Study(folder).observations  # the flip changed a blank, or fell on the last line's end
                assert events(folder) == whole
            except StudyError as error:
                refused += 1
                assert f"line {line}:" in str(error)  # noqa: PT017
        cut = content[: content.index(b"\n", len(content) // 2) + 1]
        ledger.write_bytes(cut)
        assert finished(folder, budget=60.0) == 0
        assert outcome(folder) == found
        told.details.append(
            f"{refused} refused with the line, the others changed nothing; cut before it, the study goes on"
        )
