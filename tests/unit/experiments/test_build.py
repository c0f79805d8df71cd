"""Models of a ladder: rungs of one depth share a recipe, decayed rungs share nothing."""

import pytest

from mixopt import Mixture
from mixopt.config import validate
from mixopt.errors import ConfigError
from mixopt.experiments import build
from mixopt.observation import Role, Status, Trial
from mixopt.protocols import Job
from mixopt.proxies.laws import law_learning_rate
from mixopt.proxies.train import emulates_bfloat16
from mixopt.storage import RunDirectory
from tests.e2e.command_line import small_study

SMALL = {"width": 32, "head_dim": 16, "experts": 2, "top_k": 1, "sequence_length": 32, "batch_size": 2}
LONG = [{"name": "short", "tokens": 10_000_000}, {"name": "long", "tokens": 100_000_000}]


def study(**fields):
    base = {"name": "s", "domains": {"web": {"path": "web"}}, "objective": {"expression": "loss/web"}}
    return validate({**base, **fields}, "here")


def ladder_and_models(**fields):
    config = study(**fields)
    return build.build_ladder(config, 1024), build.rung_models(config, 1024)


def test_rungs_of_one_depth_share_the_rate_of_the_longest():
    ladder, models = ladder_and_models(proxy={"depth": 8}, ladder=LONG)
    (short_name, short), (long_name, long) = models["short"], models["long"]
    assert (short_name, short) == (long_name, long)
    assert long.learning_rate == law_learning_rate(ladder["long"].flops)
    assert [rung.name for rung in ladder.nested("long")] == ["short", "long"]


def test_a_longer_top_rung_is_another_model_where_it_changes_the_recipe():
    _, models = ladder_and_models(proxy={"depth": 8}, ladder=LONG)
    _, longer = ladder_and_models(proxy={"depth": 8}, ladder=[*LONG, {"name": "top", "tokens": 400_000_000}])
    assert models["short"][0] != longer["short"][0]


def test_a_longer_top_rung_keeps_the_model_where_the_recipe_stays():
    rungs = [{"name": "low", "tokens": 128_000}, {"name": "top", "tokens": 512_000}]
    _, models = ladder_and_models(ladder=rungs)
    _, longer = ladder_and_models(ladder=[*rungs, {"name": "more", "tokens": 1_024_000}])
    assert models["low"] == longer["low"]


def test_rungs_of_other_depths_have_a_recipe_of_their_own():
    ladder = [{"name": "small", "tokens": 100_000}, {"name": "deep", "tokens": 100_000, "depth": 2}]
    _, models = ladder_and_models(ladder=ladder)
    assert models["small"][1].learning_rate == pytest.approx(6e-3)
    assert models["deep"][1].learning_rate == pytest.approx(6e-3 / 2**0.5)


def test_decayed_rungs_do_not_nest():
    ladder, models = ladder_and_models(proxy={"decay": 0.3})
    assert len({name for name, _ in models.values()}) == 3
    assert len(build.proxy_models(study(proxy={"decay": 0.3}), 1024)) == 3
    assert [rung.name for rung in ladder.nested("top")] == ["top"]


@pytest.mark.parametrize("field", ["dtype", "optimizer"])
def test_an_unknown_name_is_refused_with_its_field(field):
    with pytest.raises(ConfigError, match=rf"proxy\.{field}"):
        study(proxy={field: "other"})


def test_a_precision_that_is_slow_on_this_machine_is_said(tmp_path, caplog):
    location = build.locate(small_study(tmp_path, proxy={**SMALL, "dtype": "bfloat16"}), tmp_path / "run")
    _, evaluator = build.prepare(location)
    assert ("bfloat16 slow" in caplog.text) == emulates_bfloat16(evaluator.resolved_device)


def test_a_decayed_run_is_observed_at_its_own_rung_only(tmp_path):
    location = build.locate(small_study(tmp_path, proxy={**SMALL, "decay": 0.5}), tmp_path / "run")
    header, evaluator = build.prepare(location)
    trial = Trial("t", Role.SEARCH, Mixture.uniform(header.domain_names), "top", 0, "test")
    (result,) = evaluator.evaluate(Job("job", (trial,)), location.directory)
    assert result.status is Status.DONE
    assert [observation.fidelity for observation in result.observations] == ["top"]
    assert (RunDirectory(location.directory).trial("t") / "state.safetensors").exists()
