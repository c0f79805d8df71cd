"""Trials that fail by themselves: out of memory, diverging; and files of theirs that are damaged."""

import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mixopt.execution import SerialExecutor
from mixopt.observation import Role, Status
from mixopt.ray_executor import RayExecutor
from mixopt.search.problems import SyntheticEvaluator
from mixopt.service import run_study
from mixopt.storage import read_json
from mixopt.study import Study
from mixopt.tracking import NullTracker
from tests.e2e.command_line import mixopt
from tests.unit.mixopt.synthetic_study import LADDER, PROBLEM, a_plan

from .processes import SECONDS, command_line, kill_group, wait_until
from .real import checkpoints, write_study
from .synthetic import events, outcome

GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Hungry(SyntheticEvaluator):
    """Asks for more memory than its process may have, at the first attempt at each job."""

    def evaluate(self, job, directory):
        first = Path(directory) / f"{job.fingerprint}.tried"
        if not first.exists():
            first.touch()
            before = resource.getrlimit(resource.RLIMIT_AS)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTE // 8, before[1]))
            try:
                np.ones(GIGABYTE)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, before)
        return super().evaluate(job, directory)


@pytest.mark.parametrize("kind", ["serial", pytest.param("ray", marks=[pytest.mark.faults, pytest.mark.ray])])
def test_a_job_out_of_memory_is_tried_again_with_its_reason_in_the_ledger(fault, tmp_path, kind):
    plan = a_plan(evaluator=Hungry(PROBLEM, LADDER))
    with fault(f"a job out of memory (a real MemoryError), {kind}") as told:
        (tmp_path / "hungry").mkdir()
        executor = (
            SerialExecutor(plan.evaluator, tmp_path / "hungry")
            if kind == "serial"
            else RayExecutor(plan.evaluator, tmp_path / "hungry", workers=2)
        )
        try:
            run_study(Study(tmp_path / "hungry"), plan, executor=executor, tracker=NullTracker())
        finally:
            executor.shutdown()
        calm = a_plan()
        executor = SerialExecutor(calm.evaluator, tmp_path / "calm")
        run_study(Study(tmp_path / "calm"), calm, executor=executor, tracker=NullTracker())
        notes = [e["note"] for e in events(tmp_path / "hungry") if e.get("status") == "failed"]
        assert notes
        assert all("MemoryError" in note and "Unable to allocate" in note for note in notes)
        assert outcome(tmp_path / "hungry") == outcome(tmp_path / "calm")
        told.times = len(notes)
        told.details.append("each tried again; same results")


@pytest.mark.slow
def test_a_diverging_proxy_is_given_up_with_its_curve_and_without_a_number(fault, tmp_path):
    path = write_study(tmp_path)
    path.write_text(path.read_text().replace("proxy:\n", "proxy:\n  learning_rate: 1.0e+6\n"))
    with fault("every proxy diverges") as told:
        answer = mixopt("run", path, "--dir", tmp_path / "run")
        assert answer.code == 1, answer.err
        assert "no run gave a result" in answer.err
        study = Study(tmp_path / "run")
        lost = [t for t in study.trials if t.status is Status.ABANDONED]
        assert {trial.role for trial in lost} == {Role.EXPERT}
        assert all(trial.note.startswith("diverged: ") for trial in lost)
        assert all((study.files.trial(trial.id) / "curve.jsonl").stat().st_size for trial in lost)
        assert study.observations == ()
        told.times = len(lost)


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_checkpoints_and_results_are_made_again(fault, real, tmp_path, damage):
    root, undisturbed = real
    path, directory, log = write_study(root), tmp_path / "run", tmp_path / "err"
    with fault(f"{damage} in every checkpoint and result file of a killed run") as told:
        with command_line("run", path, "--dir", directory, cwd=root, log=log) as process:
            wait_until(lambda: list(directory.glob("jobs/*/result.json")) and checkpoints(directory), process)
            kill_group(process)
        # A ledger that ends before the results that are there: they would be read, not made.
        ledger = directory / "study.jsonl"
        ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:3]))
        harmed = [*checkpoints(directory), *directory.glob("jobs/*/result.json")]
        for file in harmed:
            harm(file, damage)
        with command_line("run", path, "--dir", directory, cwd=root, log=log) as process:
            assert process.wait(SECONDS) == 0, log.read_text()
        assert outcome(directory) == undisturbed
        assert log.read_text().count("damaged") >= 1
        told.times = len(harmed)


@pytest.mark.faults
def test_damaged_scores_of_experts_are_scored_again(fault, real, tmp_path):
    root, _ = real
    directory, path, log = shutil.copytree(root / "undisturbed", tmp_path / "run"), write_study(root), tmp_path / "err"
    with fault("cut or flip in scores of experts and their cards", 2 * 3) as told:
        # Of the rung that feeds the prior; nothing in a study reads the others.
        index = read_json(next(directory.glob("experts/*.json")))
        files = [directory / "scores" / f"{key}{end}" for key in index["scores"].values() for end in (".npy", ".json")]
        files += directory.glob("scores/*.npz")
        true = {file: file.read_bytes() for file in files}
        for _ in range(2):
            for suffix in (".npy", ".json", ".npz"):
                harm(next(file for file in files if file.suffix == suffix), ("cut", "flip")[suffix == ".npy"])
            with command_line("run", path, "--dir", directory, cwd=root, log=log) as process:
                assert process.wait(SECONDS) == 0, log.read_text()
            assert {file: file.read_bytes() for file in files} == true
        told.details.append("the same bytes again")


def harm(file, damage):
    content = bytearray(file.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) * 2 // 3] ^= 4
    file.write_bytes(bytes(content))


def test_a_result_file_that_is_damaged_is_never_read(fault, tmp_path):
    run_study(Study(tmp_path), a_plan(), executor=SerialExecutor(a_plan().evaluator, tmp_path), tracker=NullTracker())
    found, files = outcome(tmp_path), sorted(tmp_path.glob("jobs/*/result.json"))
    with fault("cut or flip in every result file, ledger gone", len(files)):
        for i, file in enumerate(files):
            harm(file, ("cut", "flip")[i % 2])
            assert read_json(file) is None
        (tmp_path / "study.jsonl").unlink()
        run_study(
            Study(tmp_path), a_plan(), executor=SerialExecutor(a_plan().evaluator, tmp_path), tracker=NullTracker()
        )
        assert outcome(tmp_path) == found
    shutil.rmtree(tmp_path)
