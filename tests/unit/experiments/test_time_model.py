"""The time model: recovers what made the times, predicts after three runs, never says less than nothing."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from mixopt import Mixture
from mixopt.experiments.time_model import FEWEST_RUNS, Leg, TimeModel, fit_study, legs_to
from mixopt.fidelity import Ladder
from mixopt.observation import Observation, Role, Status, Trial
from mixopt.protocols import TrialResult
from mixopt.proxies.config import ProxyConfig
from mixopt.proxies.cost import training_flops
from mixopt.proxies.train import StackTrainer
from mixopt.study import Study
from tests.unit.experiments.finished_study import HEADER
from tests.unit.proxies.builders import CPU, make_run, shards, small_config, train

TRUTH = TimeModel(fixed=0.4, per_flop=3e-11, per_expert_step=2e-5)
CONFIG = ProxyConfig(1024)


def ladder_of(config, *tokens):
    return Ladder.from_flops([(f"r{n}", "shape", 1, n, training_flops(config, n)) for n in tokens], 0.05)


LADDER = ladder_of(CONFIG, 128_000, 256_000, 512_000)


def noisy(legs, rng, error=0.1):
    return [TRUTH.seconds([leg]) * np.exp(error * rng.standard_normal()) for leg in legs]


def test_times_without_noise_are_recovered():
    shapes = [ProxyConfig(1024, depth=d, experts=e) for d in (1, 2, 4) for e in (4, 8, 16)]
    legs = [leg for shape in shapes for leg in legs_to(LADDER.target, ladder_of(shape, 1000, 512_000), shape)]
    fitted = TimeModel.fit(legs, [TRUTH.seconds([leg]) for leg in legs])
    predicted = [fitted.seconds([leg]) / TRUTH.seconds([leg]) for leg in legs]
    assert predicted == pytest.approx([1.0] * len(legs), rel=0.02)


@pytest.mark.parametrize("rung", ["r128000", "r512000"])
def test_a_run_is_predicted_within_a_quarter_after_three_runs_with_a_tenth_of_noise(rung):
    """Over 200 draws: three runs to one rung, a prediction for the target."""
    rng, wanted = np.random.default_rng(0), TRUTH.seconds(legs_to(LADDER.target, LADDER, CONFIG))
    ratios = []
    for _ in range(200):
        legs = [leg for _ in range(FEWEST_RUNS) for leg in legs_to(LADDER[rung], LADDER, CONFIG)]
        fitted = TimeModel.fit(legs, noisy(legs, rng))
        ratios.append(fitted.seconds(legs_to(LADDER.target, LADDER, CONFIG)) / wanted)
    assert np.quantile(np.abs(np.array(ratios) - 1), 0.95) < 0.25


def test_no_part_is_negative():
    rng = np.random.default_rng(1)
    legs = [Leg(flops, steps) for flops, steps in rng.uniform(0, 1, size=(6, 2)) * [1e12, 1e5]]
    for _ in range(20):
        fitted = TimeModel.fit(legs, rng.uniform(0.1, 10, size=6).tolist())
        assert min(fitted.fixed, fitted.per_flop, fitted.per_expert_step) >= 0


def test_runs_of_one_length_are_explained_by_their_flops():
    """Nothing tells the parts apart; a run of twice the FLOPs must not be said to take as long."""
    leg = Leg(1e11, 1000.0)
    fitted = TimeModel.fit([leg] * 3, [4.0] * 3)
    assert fitted.seconds([leg]) == pytest.approx(4.0, rel=0.02)
    assert fitted.seconds([Leg(2e11, 2000.0)]) == pytest.approx(8.0, rel=0.05)


def test_a_dense_proxy_has_no_expert_steps():
    dense = replace(CONFIG, router="dense")
    assert all(leg.expert_steps == 0 for leg in legs_to(LADDER.target, LADDER, dense))


def test_the_legs_of_a_run_add_up_to_it():
    legs = legs_to(LADDER.target, LADDER, CONFIG)
    assert len(legs) == 3
    assert sum(leg.flops for leg in legs) == pytest.approx(LADDER.target.flops)
    assert sum(leg.expert_steps for leg in legs) == CONFIG.experts * CONFIG.num_steps(512_000)


def test_real_runs_are_predicted_from_three_shorter_ones(tmp_path):
    """Ratios within one process; half is for a machine that others use too (docs/log.md has quiet ones)."""
    config, data = small_config(), shards(tmp_path)
    torch.set_num_threads(1)

    def seconds(num_steps):
        run = make_run("a", data, config, seed=0, milestones=[num_steps])
        trainer = StackTrainer(config, [run], CPU)
        start = time.process_time()
        train(trainer)
        return time.process_time() - start

    def leg(num_steps):
        flops = training_flops(config, num_steps * config.tokens_per_step)
        return Leg(flops, config.experts * num_steps)

    seconds(10)
    lengths = (20, 40, 60)
    fitted = TimeModel.fit([leg(n) for n in lengths], [seconds(n) for n in lengths])
    assert fitted.seconds([leg(100)]) / seconds(100) == pytest.approx(1, abs=0.5)


def logged(directory, num_runs):
    """A study of finished runs to the top rung, each leg timed by the truth."""
    study = Study(directory)
    study.begin(HEADER)
    ladder, mixture = study.header.ladder, Mixture.uniform(study.header.domain_names)
    for i in range(num_runs):
        trial = Trial(f"search-{i:03d}", Role.SEARCH, mixture, ladder.target.name, i, "test")
        study.propose([trial])
        losses = {s.name: 3.0 for s in study.header.eval_sets}
        observations = tuple(
            Observation(trial.id, rung.name, losses, flops=leg.flops, process_seconds=TRUTH.seconds([leg]))
            for rung, leg in zip(ladder.nested(ladder.target.name), legs_to(ladder.target, ladder, CONFIG), strict=True)
        )
        study.finish(TrialResult(trial.id, Status.DONE, observations))
    return study, {ladder.target.model: CONFIG}


def test_a_study_is_fitted_from_its_third_run_on(tmp_path):
    study, models = logged(tmp_path, FEWEST_RUNS - 1)
    assert fit_study(study, models) is None
    study, models = logged(tmp_path / "more", FEWEST_RUNS)
    fitted, num_runs = fit_study(study, models)
    assert num_runs == FEWEST_RUNS
    legs = legs_to(study.header.ladder.target, study.header.ladder, CONFIG)
    assert fitted.seconds(legs) == pytest.approx(TRUTH.seconds(legs), rel=0.05)


def test_runs_of_other_shapes_say_nothing(tmp_path):
    study, _ = logged(tmp_path, FEWEST_RUNS)
    assert fit_study(study, {"another": CONFIG}) is None


def test_a_study_that_was_not_begun_has_no_runs(tmp_path):
    assert fit_study(Study(tmp_path), {}) is None
