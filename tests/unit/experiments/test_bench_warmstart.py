"""The bench of warm starts: correlations by their definition, every run kept, both seed models used."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from mixopt.errors import ConfigError
from mixopt.experiments import bench_warmstart
from mixopt.experiments.bench_warmstart import agreement, half_width
from mixopt.proxies.config import ProxyConfig
from tests.e2e.studies import small_study

torch.set_num_threads(1)


def values(repetitions, mixtures, seed=0):
    return np.random.default_rng(seed).standard_normal((repetitions, mixtures))


def test_agreement_is_the_mean_of_spearmans_correlation_over_pairs():
    one, other = values(2, 12), np.round(values(3, 12, seed=1), 0)
    pairs = [spearmanr(a, b).statistic for a in one for b in other]
    assert agreement(one, other)["rho"] == pytest.approx(np.mean(pairs))


def test_equal_orders_agree_fully_and_opposite_ones_not_at_all():
    one = values(1, 10)
    assert agreement(one, np.exp(one)) == {"rho": pytest.approx(1), "low": pytest.approx(1), "high": pytest.approx(1)}
    assert agreement(one, -one)["rho"] == pytest.approx(-1)


def test_runs_that_share_their_noise_are_not_compared():
    one = values(2, 12)
    assert agreement(one[:1], one[:1], related=True) is None
    crossed = [spearmanr(one[0], one[1]).statistic] * 2
    assert agreement(one, one, related=True)["rho"] == pytest.approx(np.mean(crossed))


def test_more_mixtures_make_the_interval_narrower():
    widths = []
    for mixtures in (8, 80):
        truth = values(1, mixtures)
        found = agreement(truth + 0.5 * values(1, mixtures, seed=1), truth)
        assert found["low"] < found["rho"] < found["high"]
        widths.append(found["high"] - found["low"])
    assert widths[1] < 0.5 * widths[0]


def test_a_shape_that_cannot_be_halved_is_refused():
    config = ProxyConfig(64, width=64)
    assert half_width(config) == replace(config, width=32, expert_width=16, shared_width=32)
    with pytest.raises(ConfigError, match="even number of heads"):
        half_width(replace(config, width=32))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Results of a tiny study, and how to run it again."""
    root = tmp_path_factory.mktemp("bench")
    ladder = [{"name": "low", "tokens": 512}, {"name": "top", "tokens": 1024}]
    study = small_study(root, ladder=ladder, evaluation={"tokens": 128, "domain_tokens": 128})
    said = []

    def run():
        said.clear()
        patch = pytest.MonkeyPatch()
        patch.chdir(root)
        patch.setattr(bench_warmstart, "NUM_MIXTURES", 3)
        try:
            return bench_warmstart.run(study, out=root / "out", seeds=1, progress=said.append)
        finally:
            patch.undo()

    return run(), list(said), run, said, root / "out"


def test_every_start_is_measured_at_every_length(bench):
    result, _, _, _, _ = bench
    assert [(row["start"], row["tokens"]) for row in result["rows"]] == [
        ("cold", 128), ("cold", 256), ("cold", 512), ("cold", 1024),
        ("seed", 128), ("seed", 256), ("seed", 512), ("grown", 128), ("grown", 256), ("grown", 512),
    ]  # fmt: skip
    sets = {"python", "speeches", "spanish", "jargon"}
    assert all(set(row["sets"]) == sets for row in result["rows"] if row["start"] != "cold")
    assert len(bench_warmstart.table(result).splitlines()) == 4 + len(result["rows"])


def test_with_one_seed_there_is_no_cold_run_to_compare_cold_ones_with(bench):
    result, _, _, _, _ = bench
    assert [row["objective"] for row in result["rows"] if row["start"] == "cold"] == [None] * 4
    assert all(-1 <= row["objective"]["rho"] <= 1 for row in result["rows"] if row["start"] != "cold")


def test_a_second_run_trains_nothing_and_says_the_same(bench):
    result, first, run, said, out = bench
    assert sum("bench done" in line for line in first) == 3 * 3
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run() == result
    assert not [line for line in said if "bench done" in line]
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_missing_run_is_trained_again_from_the_kept_seed_model(bench):
    result, _, run, said, out = bench
    lost = next(out.glob("seed-seed0-2-*.json"))
    lost.unlink()
    again = run()
    assert [line.partition(" objective")[0] for line in said if "bench done" in line] == [
        "bench done start=seed seed=0 mixture=2"
    ]
    for one, other in zip(result["rows"], again["rows"], strict=True):
        # Alone in its stack the run's sums are rounded differently.
        assert one["level"] == pytest.approx(other["level"], abs=1e-4)
