"""What a job reports of its routers: loads since the rung before, active experts, FLOPs as measured."""

import pytest

from mixopt.proxies.cost import training_flops

from .builders import small_config
from .test_evaluators import STEPS, a_continued, a_trial, an_evaluator, evaluate


@pytest.mark.parametrize("router", ["topk", "relu", "dense"])
def test_flops_of_each_rung_follow_its_measured_experts(tmp_path, router):
    config = small_config(router=router, depth=2)
    result = evaluate(an_evaluator(tmp_path, config), tmp_path, a_trial("t", fidelity="top"))["t"]
    before = 0
    for observation, steps in zip(result.observations, STEPS.values(), strict=True):
        tokens = (steps - before) * config.tokens_per_step
        assert observation.flops == pytest.approx(training_flops(config, tokens, observation.active_experts))
        assert len(observation.router_loads) == (0 if router == "dense" else 2)
        assert all(sum(load) == pytest.approx(1) for load in observation.router_loads)
        before = steps
    active = [o.active_experts for o in result.observations]
    assert {"topk": active == [2.0, 2.0], "relu": active[0] != active[1], "dense": active == [None, None]}[router]


def test_a_continued_run_reports_what_an_uninterrupted_one_does(tmp_path):
    config = small_config(router="relu")
    whole = evaluate(an_evaluator(tmp_path / "whole", config), tmp_path / "whole", a_trial("t", fidelity="top"))["t"]
    evaluator = an_evaluator(tmp_path / "parts", config)
    evaluate(evaluator, tmp_path / "parts", a_trial("t"))
    continued = evaluate(evaluator, tmp_path / "parts", a_continued("u", "t"))["u"]
    assert continued.observations[-1].router_loads == whole.observations[-1].router_loads
    assert continued.observations[-1].flops == whole.observations[-1].flops
