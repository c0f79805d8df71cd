import json

import pytest

from mixopt.experiments import build
from mixopt.experiments.estimate import summarize
from mixopt.storage import RunDirectory
from mixopt.study import Study
from tests.e2e.command_line import small_study


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Configuration, header, evaluator and plan of a small study on real shards."""
    folder = tmp_path_factory.mktemp("study")
    study = small_study(
        folder,
        constraints={"bounds": {"web": [0.1, 0.9]}},
        search={"budget": 5, "fixed_cost": 0.2},
        validation={"baselines": ["natural", "uniform"], "mixtures": {"mine": {"web": 1.0}}, "seeds": 3},
        experts={"fidelity": "low"},
    )
    location = build.locate(study, folder / "run")
    header, evaluator = build.prepare(location)
    return location, header, evaluator, build.build_plan(location, header, evaluator)


@pytest.fixture(scope="module")
def summary(prepared):
    location, header, evaluator, plan = prepared
    return summarize(location.config, header, evaluator, plan, Study(location.directory))


def test_runs_are_counted_in_runs_at_the_top_rung(summary, prepared):
    low = prepared[1].ladder["low"].cost
    runs = summary["runs_at_top"]
    assert runs["experts"] == pytest.approx(2 * low, abs=0.005)
    assert runs["search"] == 5
    assert runs["validation"] == 3 * 4
    assert runs["total"] == pytest.approx(runs["experts"] + 5 + 12, abs=0.011)


def test_the_top_rung_costs_one_and_the_others_their_share(summary):
    costs = {rung["name"]: rung["cost"] for rung in summary["ladder"]}
    assert costs == {"low": pytest.approx(0.2 + 0.8 / 2), "top": 1.0}


def test_epochs_are_tokens_of_the_top_rung_over_those_of_the_domain(summary):
    tokens = {domain["name"]: domain["tokens"] for domain in summary["domains"]}
    assert summary["epochs_at_top"] == {name: round(512 / count, 2) for name, count in tokens.items()}


def test_flops_and_time_scale_with_the_runs_and_the_workers(summary, prepared):
    config, header = prepared[0].config, prepared[1]
    estimated = summary["estimated"]
    total = 2 * header.ladder["low"].cost + 5 + 12
    assert estimated["flops"] == pytest.approx(total * header.ladder.target.flops)
    assert abs(estimated["wall_seconds"] - estimated["process_seconds"] / config.run.workers) <= 1


def test_some_parameters_rest(summary):
    assert 0 < summary["params"]["active"] < summary["params"]["total"]


def test_only_constraints_that_were_set_are_shown(summary):
    assert summary["constraints"] == {"bounds": {"web": [0.1, 0.9]}}


def test_the_estimate_is_plain_data(summary):
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_estimate_begins_no_study(summary, prepared):
    assert not RunDirectory(prepared[0].directory).ledger.exists()
