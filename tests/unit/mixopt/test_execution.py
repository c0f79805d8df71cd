import json
import socket
from dataclasses import dataclass

import pytest

from mixopt import Mixture, Observation, ResourceError, Role, Status, TrainingError, Trial
from mixopt.cluster import probe_address
from mixopt.execution import SerialExecutor, read_results, run_job
from mixopt.protocols import Job, TrialResult
from mixopt.storage import RunDirectory


@dataclass
class CountingEvaluator:
    """Answers with the number of the call, or raises."""

    calls: int = 0
    error: Exception | None = None

    def fingerprint(self, trials, kind):
        return "".join(trial.id for trial in trials)

    def evaluate(self, job, directory):
        self.calls += 1
        if self.error:
            raise self.error
        losses = {"x": float(self.calls)}
        return [
            TrialResult(
                t.id,
                Status.DONE,
                (Observation(t.id, "top", losses, router_loads=[[0.5, 0.5]], epochs={"a": 0.1}),),
                "fine",
            )
            for t in job.trials
        ]


def a_job(name="t0"):
    return Job(name, (Trial(name, Role.SEARCH, Mixture.uniform(("a", "b")), "top", 1, "test"),))


def collected(executor):
    return executor.collect(0.0)


def test_a_job_leaves_its_result_behind_and_is_done_once(tmp_path):
    evaluator = CountingEvaluator()
    first, second = (run_job(evaluator, a_job(), tmp_path) for _ in range(2))
    assert first == second
    assert evaluator.calls == 1
    assert RunDirectory(tmp_path).result("t0").exists()


def test_a_damaged_result_is_done_again(tmp_path):
    evaluator = CountingEvaluator()
    run_job(evaluator, a_job(), tmp_path)
    path = RunDirectory(tmp_path).result("t0")
    path.write_text(path.read_text().replace("1.0", "9.0"))
    assert run_job(evaluator, a_job(), tmp_path)[0].observations[0].losses == {"x": 2.0}


def test_results_survive_their_file(tmp_path):
    result = run_job(CountingEvaluator(), a_job(), tmp_path)
    value = json.loads(RunDirectory(tmp_path).result("t0").read_text())["value"]
    assert read_results(value) == result
    assert result[0] == TrialResult(
        "t0", Status.DONE, (Observation("t0", "top", {"x": 1.0}, router_loads=[[0.5, 0.5]], epochs={"a": 0.1}),), "fine"
    )


def test_jobs_are_done_in_the_order_they_came(tmp_path):
    executor = SerialExecutor(CountingEvaluator(), tmp_path)
    for name in ("t0", "t1"):
        executor.submit(a_job(name))
    assert [collected(executor)[0].job.fingerprint for _ in range(2)] == ["t0", "t1"]
    assert collected(executor) == []


def test_nothing_is_done_after_shutdown(tmp_path):
    evaluator = CountingEvaluator()
    executor = SerialExecutor(evaluator, tmp_path)
    executor.submit(a_job())
    executor.shutdown()
    assert collected(executor) == []
    assert evaluator.calls == 0


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (OSError("gone"), True),
        (MemoryError("full"), True),
        (RuntimeError("CUDA out of memory"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("bad input"), False),
        (FloatingPointError("diverged"), False),
    ],
)
def test_only_lost_work_and_lack_of_memory_are_worth_another_attempt(tmp_path, error, retryable):
    executor = SerialExecutor(CountingEvaluator(error=error), tmp_path)
    executor.submit(a_job())
    (report,) = collected(executor)
    assert (report.results, report.retryable) == (None, retryable)
    assert report.error == f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("error", [ResourceError("no disk"), TrainingError("no expert")])
def test_what_mixopt_raises_on_purpose_is_not_swallowed(tmp_path, error):
    executor = SerialExecutor(CountingEvaluator(error=error), tmp_path)
    executor.submit(a_job())
    with pytest.raises(type(error)):
        collected(executor)


def closed_port():
    """A port at which nothing listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_without_a_cluster_is_refused_at_once(address):
    with pytest.raises(
        ResourceError, match=r"run\.address: no Ray cluster answers at .*; start it or drop the address"
    ):
        probe_address(address.format(closed_port()))


def test_an_address_without_a_port_number_is_refused():
    with pytest.raises(ResourceError, match=r"run\.address"):
        probe_address("127.0.0.1:port")


def test_an_address_that_listens_is_accepted():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        probe_address(f"127.0.0.1:{server.getsockname()[1]}")
    probe_address("auto")
