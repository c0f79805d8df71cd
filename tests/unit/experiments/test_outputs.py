import json
from pathlib import Path

import pytest
import yaml

from mixopt import Mixture
from mixopt.config import validate
from mixopt.experiments.build import Location
from mixopt.experiments.outputs import artifacts, mixture_yaml, round_weights, summarize, write_outputs
from tests.unit.experiments.finished_study import BEST, DOMAINS, HEADER, NAMES, finished_study, started_study


def location_of(directory: Path, **fields):
    study = {
        "name": "three-sets",
        "domains": {name: {"path": f"{name}.txt"} for name in NAMES},
        "objective": HEADER.objective,
        **fields,
    }
    return Location(validate(study, "study.yaml"), directory)


@pytest.mark.parametrize("weights", [[1 / 3] * 3, [0.99999, 0.00001, 0.0], [0.33335, 0.33335, 0.3333], [1.0, 0, 0]])
def test_rounded_weights_sum_to_one_and_stay_near(weights):
    mixture = Mixture.normalized(("a", "b", "c"), weights)
    rounded = round_weights(mixture)
    assert sum(rounded.values()) == pytest.approx(1, abs=1e-12)
    assert all(abs(rounded[name] - weight) < 1e-4 for name, weight in mixture.as_dict().items())


def test_weights_on_the_grid_are_not_changed():
    mixture = Mixture(("a", "b", "c"), [0.1234, 0.5766, 0.3])
    assert round_weights(mixture) == {"a": 0.1234, "b": 0.5766, "c": 0.3}


def test_a_domain_without_weight_gets_none_by_rounding():
    assert round_weights(Mixture.normalized(("a", "b", "c", "d"), [1, 1, 1, 0]))["d"] == 0


def test_the_mixture_file_says_what_to_train_on_and_in_which_unit(tmp_path):
    data = yaml.safe_load(mixture_yaml(finished_study(tmp_path)))
    assert data["weights"] == dict(zip(NAMES, BEST.tolist(), strict=True))
    assert data["unit"] == "tokens"
    assert (data["study"], data["tokenizer"], data["fidelity"]) == ("three-sets", "t0", "top")
    assert data["objective"]["unit"] == HEADER.objective["unit"]
    assert data["objective"]["std"] == 0.03


def test_the_mixture_file_is_a_mixture_again(tmp_path):
    data = yaml.safe_load(mixture_yaml(finished_study(tmp_path)))
    assert Mixture.from_mapping(NAMES, data["weights"]).as_dict() == data["weights"]


def test_outputs_are_where_the_dashboard_looks_for_them(tmp_path):
    study = finished_study(tmp_path)
    write_outputs(location_of(tmp_path), study)
    written = [path for path in artifacts(study) if path.exists()]
    assert written == [tmp_path / "report" / "report.html", tmp_path / "mixture.yaml"]


def test_the_summary_is_plain_data(tmp_path):
    summary = summarize(location_of(tmp_path), finished_study(tmp_path))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_epochs_follow_the_target_tokens_of_the_final_model(tmp_path):
    location = location_of(tmp_path, constraints={"target_tokens": 3_000_000})
    summary = summarize(location, finished_study(tmp_path))
    assert summary["epochs_at_tokens"] == 3_000_000
    assert summary["contenders"][0]["epochs"]["python"] == pytest.approx(0.4 * 3_000_000 / 150_000)


def test_without_a_target_epochs_are_those_of_the_top_rung(tmp_path):
    summary = summarize(location_of(tmp_path), finished_study(tmp_path))
    sizes = {domain.name: domain.num_tokens for domain in DOMAINS}
    natural = next(c for c in summary["contenders"] if c["label"] == "natural")
    assert summary["epochs_at_tokens"] == 512_000
    # The natural mixture passes over every domain equally often.
    assert set(natural["epochs"].values()) == {round(512_000 / sum(sizes.values()), 4)}


def test_the_summary_of_an_unfinished_study_has_no_recommendation(tmp_path):
    summary = summarize(location_of(tmp_path), started_study(tmp_path))
    assert (summary["recommendation"], summary["contenders"], summary["comparison"]) == (None, [], [])
    assert summary["search_spent"] > 0
