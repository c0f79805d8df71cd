"""The verb `bench`: results per setting and seed, kept and not trained again; verdicts from numbers alone."""

import json

import numpy as np
import pytest

from mixopt.experiments import bench_lr, bench_moe, bench_sizes
from mixopt.proxies.config import ROUTERS
from tests.e2e.command_line import mixopt, small_study

TINY = {"evaluation": {"tokens": 128, "domain_tokens": 128}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def study(folder):
    path = small_study(folder, **TINY)
    path.rename(folder / "runs.yaml")
    return folder / "runs.yaml"


@pytest.fixture(scope="module")
def sweep(folder, study):
    """What `bench lr` prints on a study of seconds, and where its results lie."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        answer = mixopt("bench", "lr", study, "--seeds", 2, "--out", folder / "lr", "--json")
    assert answer.code == 0, answer.err
    return answer, folder / "lr"


def test_the_sweep_has_five_points_at_every_rung(sweep):
    rungs = sweep[0].data["rungs"]
    assert [rung["rung"] for rung in rungs] == ["low", "top"]
    for rung in rungs:
        assert [point["factor"] for point in rung["points"]] == [0.25, 0.5, 1.0, 2.0, 4.0]
        assert all(point["seeds"] == 2 and np.isfinite(point["mean"]) for point in rung["points"])


def test_there_is_one_result_per_setting_and_seed(sweep):
    assert len(list(sweep[1].glob("*.json"))) == 5 * 2


def test_what_is_done_is_not_trained_again(sweep, folder, study, monkeypatch):
    answer, out = sweep
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    lost = sorted(before)[3]
    lost.unlink()
    again = mixopt("bench", "lr", study, "--seeds", 2, "--out", out, "--json")
    assert again.err.count("bench done") == 1
    changed = [path for path, when in before.items() if path.stat().st_mtime_ns != when]
    assert changed == [lost]
    # A run alone and in a stack of two sums in another order.
    for old, new in zip(answer.data["rungs"], again.data["rungs"], strict=True):
        assert [p["mean"] for p in new["points"]] == pytest.approx([p["mean"] for p in old["points"]], rel=1e-3)


def test_every_router_is_compared_at_equal_tokens_and_at_equal_time(folder, study, monkeypatch):
    monkeypatch.chdir(folder)
    answer = mixopt("bench", "moe-vs-dense", study, "--seeds", 1, "--json")
    assert answer.code == 0, answer.err
    rows = {row["router"]: row for row in answer.data["settings"]}
    assert set(rows) == set(ROUTERS)
    assert rows["topk"]["tokens_difference"]["mean"] == 0
    assert rows["topk"]["equal_time"]["mean"] == pytest.approx(rows["topk"]["equal_tokens"]["mean"], rel=1e-6)
    assert rows["dense"]["flops_per_token"] == pytest.approx(rows["topk"]["flops_per_token"], rel=0.05)
    assert (folder / "runs" / "bench" / "moe-vs-dense").is_dir()


def test_the_tables_have_a_row_per_case(sweep, folder, study):
    assert bench_lr.table(sweep[0].data).count("\n") == 1 + 2
    sizes = bench_sizes.run(study, out=folder, seeds=1, progress=print)
    assert bench_sizes.table(sizes).count("\n") == 1 + len(bench_sizes.DEPTHS)
    assert json.loads(json.dumps(sizes)) == sizes


def curve(values, *, seconds_per_token=1e-3):
    points = [{"tokens": t, "objective": v, "process_seconds": seconds_per_token * t} for t, v in values.items()]
    return {"seed": 0, "diverged": "", "points": points}


def test_a_time_between_two_milestones_is_interpolated():
    result = curve({100: 5.0, 400: 4.0})
    assert bench_moe._objective_after(result, 0.2) == pytest.approx(4.5)
    assert bench_moe._objective_at(result, 400) == 4.0


def test_a_time_that_was_not_reached_has_no_value():
    assert np.isnan(bench_moe._objective_after(curve({100: 5.0, 400: 4.0}), 1.0))
    assert bench_moe._spread([1.0, np.nan]) == {"mean": None, "std": None}


def test_diverged_runs_are_not_the_best_rate():
    rung = type("Rung", (), {"name": "top", "num_tokens": 400})
    curves = {0.25: [curve({400: 4.0})], 1.0: [curve({400: 3.0})], 4.0: [curve({})]}
    found = bench_lr._at_rung(rung, 6e-3, curves)
    assert (found["best_factor"], found["within_2x"]) == (1.0, True)
    assert bench_lr._cell(found["points"][2]) == "diverged"


def test_a_best_rate_far_from_the_default_is_said():
    rung = type("Rung", (), {"name": "top", "num_tokens": 400})
    curves = {1.0: [curve({400: 4.0})], 4.0: [curve({400: 3.0})]}
    assert not bench_lr._at_rung(rung, 6e-3, curves)["within_2x"]


def test_an_unknown_bench_is_refused():
    answer = mixopt("bench", "speed")
    assert answer.code == 2
    assert "expected one of lr, moe-vs-dense, sizes, warmstart, got 'speed'" in answer.err
