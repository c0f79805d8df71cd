import json
from dataclasses import replace

import pytest
import yaml

from mixopt import Mixture
from mixopt.config import StudyConfig, load_config
from mixopt.errors import ConfigError
from mixopt.experiments import build
from mixopt.experiments.estimate import ladder_by_time, summarize
from mixopt.observation import Observation, Role, Status, Trial
from mixopt.protocols import TrialResult
from mixopt.storage import RunDirectory
from mixopt.study import Study
from tests.e2e.command_line import mixopt, small_study


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


# --- time and prices ------------------------------------------------------------

SECONDS = {"low": 3.0, "top": 8.0}


def timed(directory, header, *, num_runs=3):
    """A study of finished runs to the top rung, as long as `SECONDS` says."""
    study = Study(directory)
    study.begin(header)
    losses = {s.name: 3.0 for s in header.eval_sets}
    for i in range(num_runs):
        trial = Trial(f"search-{i:03d}", Role.SEARCH, Mixture.uniform(header.domain_names), "top", i, "test")
        study.propose([trial])
        legs = {"low": SECONDS["low"], "top": SECONDS["top"] - SECONDS["low"]}
        found = tuple(Observation(trial.id, rung, losses, process_seconds=time) for rung, time in legs.items())
        study.finish(TrialResult(trial.id, Status.DONE, found))
    return study


def test_before_three_runs_nothing_is_measured(summary, prepared, tmp_path):
    assert summary["measured"] is None
    location, header, evaluator, plan = prepared
    study = timed(tmp_path, header, num_runs=2)
    study.files = RunDirectory(location.directory)  # where the text is
    assert summarize(location.config, header, evaluator, plan, study)["measured"] is None


def test_after_three_runs_each_rung_has_its_time_and_the_estimate_is_made_of_it(prepared, tmp_path):
    location, header, evaluator, plan = prepared
    found = summarize(location.config, header, evaluator, plan, timed(tmp_path, header))
    assert found["measured"]["seconds"] == pytest.approx(SECONDS, rel=0.25)
    assert found["measured"]["from"] == found["estimated"]["from"] == "3 runs"
    total = 2 * header.ladder["low"].cost + 5 + 12
    assert found["estimated"]["process_seconds"] == pytest.approx(total * found["measured"]["seconds"]["top"], abs=1)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_lines_to_paste_make_a_ladder_that_costs_what_it_takes(prepared):
    config = prepared[0].config
    pasted = yaml.safe_load(ladder_by_time(config, SECONDS))
    by_time = StudyConfig.model_validate({**config.model_dump(), **pasted})
    costs = [rung.cost for rung in build.build_ladder(by_time, 320)]
    assert costs == pytest.approx([0.2 + 0.8 * 3 / 8, 1.0])
    without = [rung.model_copy(update={"cost": None}) for rung in by_time.ladder]
    assert without == config.ladder


def test_times_that_do_not_rise_make_no_ladder(prepared):
    assert ladder_by_time(prepared[0].config, {"low": 8.0, "top": 8.0}) is None


def test_check_prints_the_times_and_the_lines_to_paste(prepared, tmp_path):
    location, header, _, _ = prepared
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(location.config.model_dump(mode="json")))
    timed(tmp_path / "run", header)
    told = mixopt("check", study, "--dir", tmp_path / "run", "--json").data["measured"]
    assert told["seconds"] == pytest.approx(SECONDS, rel=0.25)
    printed = mixopt("check", study, "--dir", tmp_path / "run").out
    assert "search by time measured here" in printed
    assert printed.endswith(told["ladder"])


def priced(directory, costs):
    """The file of a small study with a cost per rung."""
    ladder = [{"name": n, "tokens": t, "cost": c} for n, t, c in zip(("low", "top"), (256, 512), costs, strict=True)]
    directory.mkdir(parents=True, exist_ok=True)
    return small_study(directory, ladder=ladder)


def test_declared_costs_are_what_runs_are_charged_and_flops_stay(prepared, tmp_path):
    header, _ = build.prepare(build.locate(priced(tmp_path, (1.0, 10.0)), tmp_path / "run"))
    assert header.ladder["low"].cost == pytest.approx(0.05 + 0.95 / 10)
    assert [rung.flops for rung in header.ladder] == [rung.flops for rung in prepared[1].ladder]


@pytest.mark.parametrize(("costs", "rung"), [((None, 1.0), "low"), ((1.0, None), "top")])
def test_all_rungs_have_a_cost_or_none(tmp_path, costs, rung):
    with pytest.raises(ConfigError, match=f"rung '{rung}' has no cost, others have; give all rungs a cost"):
        load_config(priced(tmp_path, costs))


@pytest.mark.parametrize("cost", [0.0, -1.0])
def test_a_cost_is_positive(tmp_path, cost):
    with pytest.raises(ConfigError, match=r"ladder\.0\.cost: Input should be greater than 0"):
        load_config(priced(tmp_path, (cost, 1.0)))


def test_costs_may_change_in_a_study_that_has_started_and_its_runs_are_charged_anew(prepared, tmp_path):
    """As with `search.fixed_cost`: nothing is trained again, nothing is asked."""
    location, header, evaluator, plan = prepared
    study = timed(tmp_path / "run", header)
    low, top = header.ladder
    dearer = replace(header, ladder=replace(header.ladder, rungs=(replace(low, cost=0.2 + 0.8 / 9), top)))
    found = summarize(location.config, dearer, evaluator, plan, study)
    assert found["changed_costs"] == ["rung low costs 0.2889 top-rung runs instead of 0.6"]
    before = study.history()
    study.begin(dearer)
    assert study.history() == before
    extra = Trial("search-003", Role.SEARCH, Mixture.uniform(header.domain_names), "low", 9, "test")
    study.propose([extra])
    assert study.spent() == pytest.approx(3 + 0.2 + 0.8 / 9)
