"""Replays through local Ray workers."""

import pytest

from mixopt.experiments.benchmarks import Benchmark, Ground, run_all
from mixopt.search.hard import TARGET, at_rung, hard_case


@pytest.mark.slow
@pytest.mark.ray
def test_workers_give_what_one_process_gives(tmp_path):
    table = at_rung(hard_case("nested", 0), TARGET)
    jobs = Benchmark(TARGET, {"all": "mean(loss/*)"}, ("random",), range(3), 6.0).jobs(Ground(table))
    serial = run_all(Ground(table), jobs)
    parallel = run_all(Ground(table), jobs, workers=2, cache=tmp_path)
    assert [r.replay.score for r in parallel] == [r.replay.score for r in serial]
    assert [[d.run for d in r.replay.decisions] for r in parallel] == [
        [d.run for d in r.replay.decisions] for r in serial
    ]
    assert len(list(tmp_path.glob("jobs/*/result.json"))) == 3
