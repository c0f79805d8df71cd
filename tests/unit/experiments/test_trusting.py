"""What is shown of the predictor: the rows of a study with experts, and nothing where there is nothing."""

import numpy as np
import pytest
import yaml

from mixopt.experiments.report import write_report
from mixopt.experiments.trusting import trust_rows
from mixopt.passages import Passages, save_passages
from mixopt.scores import ScoreCard, save_scores
from mixopt.storage import write_json
from tests.e2e.command_line import mixopt
from tests.unit.experiments.finished_study import EVAL_SETS, HEADER, NAMES, finished_study, losses, started_study

NUM_TOKENS = 1000


def with_scores(study):
    """Give every expert scores on each set, whose mean is about what its run showed."""
    for i, eval_set in enumerate(EVAL_SETS):
        save_passages(study.files.scores, Passages(eval_set.name, np.array([0, NUM_TOKENS]), f"f-{eval_set.name}"))
        for k, domain in enumerate(NAMES):
            noise = np.random.default_rng(10 * i + k).uniform(-0.5, 0.5, NUM_TOKENS)
            logprobs = -losses(np.eye(4)[k], "top")[eval_set.name] + noise
            key = f"{domain}-{eval_set.name}"
            card = ScoreCard(
                domain, f"expert-{domain}", "top", 7, f"e-{domain}", "t0", eval_set.name, f"f-{eval_set.name}"
            )
            save_scores(study.files.scores, key, logprobs.astype(np.float32), card)
    for domain in NAMES:
        keys = {s.name: f"{domain}-{s.name}" for s in EVAL_SETS}
        write_json(study.files.expert(domain), {"trial": f"expert-{domain}", "fidelity": "top", "scores": keys})
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return with_scores(finished_study(tmp_path_factory.mktemp("study") / "run"))


def test_there_is_a_row_per_column_that_runs_have_and_one_of_the_objective(study):
    rows = trust_rows(study)
    assert [row["column"] for row in rows] == [*(f"loss/{s.name}" for s in EVAL_SETS), "objective"]
    assert all(row["verdict"] in ("trusted", "unclear", "not trusted") for row in rows)
    assert all(row["num_mixtures"] >= 5 for row in rows)


def test_losses_are_in_the_unit_of_the_objective(study):
    rows = {row["column"]: row for row in trust_rows(study)}
    both = [rows["loss/jargon"], rows["loss/code"]]
    assert rows["objective"]["shift"] == pytest.approx(np.mean([row["shift"] for row in both]))
    assert EVAL_SETS[0].bits_per_byte != pytest.approx(1)


def test_a_study_without_all_scores_says_nothing(tmp_path, caplog):
    assert trust_rows(finished_study(tmp_path / "none")) == []
    assert "mde unavailable" in caplog.text


def test_status_shows_the_table_and_has_it_in_json(study):
    config = {
        "name": "three-sets", "domains": {name: {"path": f"{name}.txt"} for name in NAMES},
        "objective": dict(HEADER.objective), "ladder": [{"name": r.name, "tokens": r.num_tokens} for r in HEADER.ladder],
        "run": {"tracking_uri": "none"},
    }  # fmt: skip
    study.files.config.write_text(yaml.safe_dump(config))
    assert mixopt("status", study.files.path, "--json").data["predictor"] == trust_rows(study)
    text = mixopt("status", study.files.path).out
    assert "rank agreement" in text
    assert f"{trust_rows(study)[-1]['rank']:.2f} [" in text


def test_the_report_has_a_section_and_its_numbers_only_where_there_are_any(study, tmp_path):
    text = write_report(study, tmp_path / "with.html").read_text(encoding="utf-8")
    assert "Can the predictor be trusted" in text
    assert "three-sets-predictor.csv" in text
    other = write_report(started_study(tmp_path / "other"), tmp_path / "without.html").read_text(encoding="utf-8")
    assert "Can the predictor be trusted" not in other
