import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mixopt import ConfigError, MixoptError
from mixopt.experiments.benchmarks import (
    Benchmark,
    Ground,
    Result,
    decision_rows,
    notes,
    paired,
    pooled,
    random_objectives,
    run_all,
    summarize,
    table_fingerprint,
)
from mixopt.runs_table import RunsTable
from mixopt.search.hard import TARGET, at_rung, hard_case
from mixopt.search.replay import Decision, Replay, Score

SETTINGS = Benchmark("top", {"all": "mean(loss/*)"}, ("random",), range(3), 6.0)


def a_table():
    return at_rung(hard_case("nested", 0), TARGET)


def a_result(optimizer, seed, cost, label="all", stopped="budget"):
    job = replace(SETTINGS.jobs(Ground(a_table()))[0], optimizer=optimizer, seed=seed, label=label)
    score = Score(cost, cost < 10, cost / 20, 0.0 if cost < 10 else 0.5)
    decision = Decision(1, "r0", "top", 1.0, 1.0, None, 0.5, 0.25, 0.1)
    return Result(job, Replay((decision,), score, 0.25, {"top": seed}, stopped))


def results_in(folder):
    return sorted(folder.glob("jobs/*/result.json"))


def test_a_finished_replay_is_not_done_again(tmp_path):
    table, jobs = a_table(), SETTINGS.jobs(Ground(a_table()))
    first = run_all(Ground(table), jobs, cache=tmp_path)
    times = [path.stat().st_mtime_ns for path in results_in(tmp_path)]
    assert run_all(Ground(table), jobs, cache=tmp_path) == first
    assert [path.stat().st_mtime_ns for path in results_in(tmp_path)] == times
    assert len(times) == 3


def test_an_interrupted_benchmark_goes_on_where_it_was(tmp_path):
    table, jobs, seen = a_table(), SETTINGS.jobs(Ground(a_table())), []

    class StopError(Exception):
        pass

    def stop_after_one(result):
        raise StopError

    with pytest.raises(StopError):
        run_all(Ground(table), jobs, cache=tmp_path, done=stop_after_one)
    (kept,) = results_in(tmp_path)
    before = kept.stat().st_mtime_ns
    resumed = run_all(Ground(table), jobs, cache=tmp_path, done=seen.append)
    assert kept.stat().st_mtime_ns == before
    assert [r.job.seed for r in seen] == [r.job.seed for r in resumed] == [0, 1, 2]


def test_a_damaged_result_is_done_again(tmp_path):
    table, jobs = a_table(), SETTINGS.jobs(Ground(a_table()))
    first = run_all(Ground(table), jobs, cache=tmp_path)
    results_in(tmp_path)[0].write_text("{}")
    again = run_all(Ground(table), jobs, cache=tmp_path)
    assert [r.replay.score for r in again] == [r.replay.score for r in first]


def test_without_a_cache_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_all(Ground(a_table()), SETTINGS.jobs(Ground(a_table())))
    assert list(tmp_path.iterdir()) == []


def test_results_hold_plain_finite_numbers_only(tmp_path):
    run_all(Ground(a_table()), SETTINGS.jobs(Ground(a_table())), cache=tmp_path)
    value = json.loads(results_in(tmp_path)[0].read_text())["value"]
    assert Replay.from_json(value).to_json() == value


@pytest.mark.parametrize(
    "change",
    [
        {"target": "low0"},
        {"objectives": {"all": "loss/c0"}},
        {"seeds": range(7, 8)},
        {"budget": 7.0},
        {"max_decisions": 3},
        {"optimizers": ("mfbo",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_makes_another_job(change):
    table, base = hard_case("nested", 0), replace(SETTINGS, seeds=range(1))
    changed = replace(base, **change)
    assert changed.jobs(Ground(table))[0].fingerprint != base.jobs(Ground(table))[0].fingerprint
    assert base.jobs(Ground(table))[0].fingerprint == base.jobs(Ground(table))[0].fingerprint


def test_the_label_of_an_objective_is_no_part_of_a_job():
    one, other = (replace(SETTINGS, objectives={label: "loss/c0"}).jobs(Ground(a_table()))[0] for label in ("a", "b"))
    assert one.fingerprint == other.fingerprint


def test_any_changed_number_changes_the_fingerprint_of_a_table():
    table = a_table()
    values = table.columns["loss/c0"].copy()
    values[3] = np.nextafter(values[3], 9)
    changed = [
        replace(table, columns={**table.columns, "loss/c0": values}),
        replace(table, columns={**table.columns, "loss/c0": np.where(np.arange(40) == 0, np.nan, values)}),
        replace(table, costs=table.costs * 2),
        replace(table, runs=("other", *table.runs[1:])),
    ]
    assert len({table_fingerprint(t) for t in (table, *changed)}) == 5


def test_random_objectives_weight_all_losses_in_sorted_order():
    drawn = random_objectives(["score/q", "loss/b", "loss/a"], 3, 5)
    expected = np.random.default_rng(5).dirichlet([0.5, 0.5], size=3)
    assert list(drawn) == ["random-1", "random-2", "random-3"]
    assert [list(w) for w in drawn.values()] == [["loss/a", "loss/b"]] * 3
    assert np.array_equal([list(w.values()) for w in drawn.values()], expected)


def test_random_objectives_weight_scores_where_there_is_no_loss():
    assert list(random_objectives(["score/q", "score/p"], 1, 0)["random-1"]) == ["score/p", "score/q"]
    assert random_objectives([], 0, 0) == {}
    with pytest.raises(ConfigError, match="need loss/ or score/ columns"):
        random_objectives([], 1, 0)


def test_a_summary_holds_means_and_standard_errors_over_seeds():
    (row,) = summarize([a_result("random", seed, cost) for seed, cost in enumerate((2.0, 4.0, 12.0))])
    assert row["cost_to_best_mean"] == 6.0
    assert row["cost_to_best_se"] == pytest.approx(np.std([2, 4, 12], ddof=1) / math.sqrt(3))
    assert row["success"] == pytest.approx(2 / 3)
    assert (row["seeds"], row["auc_mean"], row["runs_bought"]) == (3, pytest.approx(0.3), {"top": 1.0})
    assert row["seconds_per_decision"] == pytest.approx(0.1)


def test_one_seed_has_no_standard_error():
    (row,) = summarize([a_result("random", 0, 2.0)])
    assert row["cost_to_best_se"] is None


def test_the_cheapest_to_the_best_comes_first_within_an_objective():
    rows = summarize([a_result("a", 0, 5.0), a_result("b", 0, 2.0), a_result("a", 0, 1.0, label="other")])
    assert [(row["objective"], row["optimizer"]) for row in rows] == [("all", "b"), ("all", "a"), ("other", "a")]


def test_pooled_errors_are_over_objectives():
    group = [a_result("a", s, c, label) for label, costs in (("x", (1, 3)), ("y", (5, 7))) for s, c in enumerate(costs)]
    (row,) = pooled(group, "two")
    assert (row["cost_to_best_mean"], row["cost_to_best_se"]) == (4.0, pytest.approx(2.0))
    assert (row["objectives"], row["seeds"], row["objective"]) == (2, 2, "two")


def test_a_paired_difference_ignores_what_both_share():
    hard = [1.0, 5.0, 9.0]
    one = [a_result("a", seed, cost + 0.5) for seed, cost in enumerate(hard)]
    other = [a_result("b", seed, cost) for seed, cost in enumerate(hard)]
    found = paired(one, other, "cost_to_best")
    assert (found.mean, found.error, found.num_pairs) == (0.5, 0.0, 3)
    assert not found.not_worse
    assert paired(other, one, "cost_to_best").not_worse


def test_two_standard_errors_are_not_worse():
    other = [a_result("b", seed, 3.0) for seed in range(2)]
    found = paired([a_result("a", 0, 3.0), a_result("a", 1, 5.0)], other, "cost_to_best")
    assert (found.mean, found.error) == (1.0, pytest.approx(1.0))
    assert found.not_worse


def test_one_pair_shows_nothing():
    found = paired([a_result("a", 0, 9.0)], [a_result("b", 0, 3.0)], "cost_to_best")
    assert (found.mean, found.error) == (6.0, None)
    assert found.not_worse


def test_a_comparison_without_common_seeds_is_refused():
    with pytest.raises(ConfigError, match="common objectives and seeds"):
        paired([a_result("a", 0, 1.0)], [a_result("b", 1, 1.0)], "auc")


def test_every_decision_is_a_row():
    rows = decision_rows([a_result("a", 4, 1.0)])
    assert [(r["optimizer"], r["objective"], r["seed"], r["step"], r["value"]) for r in rows] == [
        ("a", "all", 4, 1, None)
    ]


def test_notes_name_constant_objectives_and_caps():
    table = RunsTable(
        ("a", "b"), ("r", "s"), ("top", "top"), np.array([[0.2, 0.8], [0.7, 0.3]]), {"loss/x": np.ones(2)}, np.ones(2)
    )
    settings = replace(SETTINGS, objectives={"flat": "loss/x"}, seeds=range(1), budget=2.0, max_decisions=1)
    jobs = settings.jobs(Ground(table))
    said = notes(table, jobs, run_all(Ground(table), jobs))
    assert said[0] == "flat: all runs at top have the same objective, so every regret is 0"
    assert said[1] == "random: 1 replays ended at the cap of 1 decisions, before the budget was spent"


def test_a_replay_that_breaks_ends_the_benchmark_with_its_name():
    job = replace(SETTINGS.jobs(Ground(a_table()))[0], expression={"loss/c0": "much"})
    with pytest.raises(MixoptError, match="replay of random on all with seed 0 failed"):
        run_all(Ground(a_table()), [job])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizers": ("best",)}, "unknown optimizer 'best'; known are mfbo"),
        ({"target": "1b"}, "unknown fidelity '1b'; the table has"),
        ({"objectives": {"all": "loss/zz"}}, "unknown column 'loss/zz'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(SETTINGS, **change).jobs(Ground(a_table()))
