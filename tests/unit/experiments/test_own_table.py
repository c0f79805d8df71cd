"""The table of our own proxies with accuracies: its shape, and replays that are judged on accuracies."""

import csv
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from mixopt.proxies.model import ProxyStack
from mixopt.proxies.scoring import ScoringRows, score
from mixopt.runs import read_runs
from mixopt.search.replay import Case, replay
from tests.bench.own_table import MOST_OF_UNIFORM, NUM_REPLICATES, PER_KIND, likeliest, on_text, planned
from tests.unit.proxies.builders import VOCAB, small_config, write_shard

TABLE = Path(__file__).parents[2] / "data" / "own_runs.csv"
RUNGS = {"low": 128_000, "mid": 256_000, "top": 512_000}
ACCURACIES = "mean(score/*)"


@cache
def a_table():
    return read_runs(TABLE)


def rung_of(table, name):
    return table.select(np.flatnonzero(np.array(table.fidelities) == name))


def means(table, kind):
    return np.mean([values for name, values in table.columns.items() if name.startswith(kind)], axis=0)


def test_loss_on_a_text_is_the_evaluators_and_accuracy_counts_the_likeliest_tokens(tmp_path):
    rows = ScoringRows.cut(write_shard(tmp_path / "a", num_docs=3), 16)
    model = ProxyStack(small_config(), 1).initialize([torch.Generator().manual_seed(0)])
    assert on_text(model, rows)[0] == pytest.approx(-score(model, rows).mean(dtype=np.float64), rel=1e-6)
    asked = [replace(rows, targets=np.full_like(rows.targets, token)) for token in range(VOCAB)]
    best = np.concatenate([score(model, one) for one in asked]).argmax(0)
    for shift, accuracy in ((0, 1.0), (1, 0.0)):
        targets = rows.targets.copy()
        targets[rows.mask] = (best + shift) % VOCAB
        assert on_text(model, replace(rows, targets=targets))[1] == accuracy


def test_options_are_compared_per_token():
    logprobs = np.array([-1.0, -2.0, -1.0, -1.0, -1.0, -0.5, -3.0], dtype=np.float32)
    offsets = np.array([0, 2, 5, 6, 7])  # sums -3, -3, means -1.5, -1; then -0.5, -3
    assert likeliest(logprobs, offsets, 2).tolist() == [1, 0]


def test_reading_changes_nothing_and_ignores_no_column():
    assert a_table().notes == ()


def test_every_trial_has_every_rung_once():
    trials = [run.rpartition("@")[0] for run in rung_of(a_table(), "top").runs]
    assert len(trials) == len(set(trials)) == 2 * PER_KIND + NUM_REPLICATES
    assert set(a_table().runs) == {f"{trial}@{rung}" for trial in trials for rung in RUNGS}


def test_every_run_has_a_loss_and_an_accuracy_on_every_text():
    table = a_table()
    losses = {name.removeprefix("loss/") for name in table.columns if name.startswith("loss/")}
    scores = {name.removeprefix("score/") for name in table.columns if name.startswith("score/")}
    assert len(losses) == 11  # 8 domains and 3 targets
    assert scores == losses | {"mc_order"}
    table.require(table.columns)


def test_costs_are_proportional_to_tokens():
    table = a_table()
    assert table.tokens.tolist() == [RUNGS[name] for name in table.fidelities]
    assert (table.tokens / table.costs == RUNGS["low"]).all()


def test_the_mixtures_are_those_that_the_script_draws():
    runs = planned(a_table().domains)
    found = rung_of(a_table(), "top")
    assert [run.partition("@")[0] for run in found.runs] == [run.name for run in runs]
    assert found.seeds == tuple(run.seed for run in runs)
    assert np.array_equal(found.weights, [run.mixture.weights for run in runs])


def test_dense_mixtures_are_within_a_factor_of_uniform_and_sparse_ones_go_beyond():
    table = a_table()
    far = np.exp(np.abs(np.log(np.maximum(table.weights, 1e-9) * len(table.domains))).max(1))
    is_dense = np.array([run.startswith("dense") for run in table.runs])
    assert far[is_dense].max() <= MOST_OF_UNIFORM * 1.0001  # six decimals
    assert far[~is_dense].min() > MOST_OF_UNIFORM


def test_replicates_have_the_mixture_of_their_trial_and_another_seed():
    found = rung_of(a_table(), "top")
    trials = [run.partition("@")[0] for run in found.runs]
    pairs = [(trials.index(name.removesuffix("-again")), i) for i, name in enumerate(trials) if name.endswith("-again")]
    assert len(pairs) == NUM_REPLICATES
    for first, again in pairs:
        assert np.array_equal(found.weights[first], found.weights[again])
        assert found.seeds[first] != found.seeds[again]
        assert means(found, "loss/")[first] != means(found, "loss/")[again]


def test_longer_training_lowers_every_mean_loss_and_raises_every_mean_accuracy():
    low, mid, top = (rung_of(a_table(), name) for name in RUNGS)
    for shorter, longer in ((low, mid), (mid, top)):
        assert (means(longer, "loss/") < means(shorter, "loss/")).all()
        assert (means(longer, "score/") > means(shorter, "score/")).all()


def test_numbers_have_at_most_six_digits():
    with open(TABLE, newline="") as file:
        rows = list(csv.DictReader(file))
    cells = [row[name] for row in rows for name in row if name.startswith(("weight/", "loss/", "score/"))]
    assert all(float(f"{float(cell):.6g}") == float(cell) for cell in cells)


@pytest.mark.parametrize(("optimizer", "seed"), [("random", 0), ("random", 1), ("mfbo", 0)])
def test_optimizers_search_accuracies_within_the_budget(optimizer, seed):
    case = Case.of(a_table(), "top", ACCURACIES)
    result = replay(case, optimizer, seed=seed, budget=2.0)
    bought = {decision.run: decision for decision in result.decisions}
    assert len(bought) == len(result.decisions)
    assert result.decisions[-1].total_cost <= 2.0 + 1e-9
    assert result.stopped == "budget"
    accuracy = dict(zip(a_table().runs, means(a_table(), "score/"), strict=True))
    assert {run: d.value for run, d in bought.items()} == pytest.approx({run: -accuracy[run] for run in bought})


def test_the_best_target_run_is_the_most_accurate():
    case, top = Case.of(a_table(), "top", ACCURACIES), rung_of(a_table(), "top")
    assert case.best == pytest.approx(-means(top, "score/").max())
    assert case.initial_regret > 0
