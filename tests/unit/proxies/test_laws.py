"""Rates and batches: measured below the law's budget, published above it; sizes grow with the dial."""

from dataclasses import asdict

import pytest

from mixopt.errors import ConfigError
from mixopt.proxies.config import ProxyConfig
from mixopt.proxies.cost import training_flops
from mixopt.proxies.laws import (
    LARGEST_RATE,
    LAW_FLOPS,
    law_batch_tokens,
    law_learning_rate,
    rate,
    recipe,
    sizes,
)

VOCAB = 1024
# Tokens at which a run of depth 8 (5M active parameters) is well above the law's budget.
LONG = 100_000_000


def test_the_law_has_its_published_values():
    """C of the paper counts forward FLOPs: 1e18 there are 3e18 training FLOPs."""
    assert law_learning_rate(3e18) == pytest.approx(1.1576 * 1e18**-0.1529)
    assert law_learning_rate(3e18) == pytest.approx(2.05e-3, rel=0.01)
    assert law_batch_tokens(3e18) == pytest.approx(2.51e5, rel=0.01)


def test_the_rate_falls_with_the_budget_and_is_clamped():
    rates = [law_learning_rate(10.0**power) for power in range(10, 21)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == LARGEST_RATE


def test_the_batch_grows_with_the_budget():
    batches = [law_batch_tokens(10.0**power) for power in range(14, 21)]
    assert batches == sorted(batches)


@pytest.mark.parametrize(("depth", "learning_rate"), [(1, 6e-3), (2, 4.243e-3), (3, 3.464e-3), (4, 3e-3)])
def test_short_runs_keep_the_measured_recipe(depth, learning_rate):
    config = recipe(VOCAB, {"depth": depth}, 512_000)
    assert config == ProxyConfig(VOCAB, depth)
    assert (config.batch_size, config.experts, config.top_k) == (4, 8, 2)
    assert config.learning_rate == pytest.approx(learning_rate, rel=1e-3)


def test_long_runs_follow_the_law():
    config = recipe(VOCAB, {"depth": 8}, LONG)
    flops = training_flops(config, LONG)
    assert flops > LAW_FLOPS
    assert config.learning_rate == law_learning_rate(flops)
    assert config.tokens_per_step == pytest.approx(law_batch_tokens(flops), rel=0.01)


def test_the_law_begins_above_its_budget():
    tokens = int(LAW_FLOPS / training_flops(ProxyConfig(VOCAB, 8), 1))
    assert recipe(VOCAB, {"depth": 8}, tokens - 1) == ProxyConfig(VOCAB, 8)
    assert recipe(VOCAB, {"depth": 8}, tokens + 2).batch_size > 4


@pytest.mark.parametrize(("name", "value"), [("learning_rate", 1e-3), ("batch_size", 7)])
def test_what_the_study_file_says_wins(name, value):
    config, free = recipe(VOCAB, {"depth": 8, name: value}, LONG), recipe(VOCAB, {"depth": 8}, LONG)
    assert asdict(config) == {**asdict(free), name: value}


def test_the_batch_of_the_law_can_be_cut_into_equal_parts():
    assert recipe(VOCAB, {"depth": 8, "accumulate": 7}, LONG).batch_size % 7 == 0


def test_every_expert_sees_enough_tokens_per_step():
    config = recipe(VOCAB, {"depth": 8, "experts": 512}, LONG)
    assert config.tokens_per_step * config.top_k / config.experts >= 64


def test_the_rate_warms_up_and_stays():
    config = ProxyConfig(VOCAB, learning_rate=1.0, warmup_steps=4)
    assert [rate(config, step, 100) for step in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]


def test_decay_is_linear_to_zero_over_the_last_part():
    config = ProxyConfig(VOCAB, learning_rate=1.0, warmup_steps=1, decay=0.25)
    assert [rate(config, step, 100) for step in (0, 75, 80, 90, 99, 100)] == pytest.approx([1, 1, 0.8, 0.4, 0.04, 0])


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_no_share_is_refused(decay):
    with pytest.raises(ConfigError, match=r"proxy\.decay: expected a share"):
        ProxyConfig(VOCAB, decay=decay)


def test_parts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ConfigError, match=r"proxy\.accumulate: expected a divisor of batch_size \(4\), got 3"):
        ProxyConfig(VOCAB, batch_size=4, accumulate=3)


def test_a_derived_batch_is_a_multiple_of_its_parts():
    assert [ProxyConfig(VOCAB, accumulate=parts).batch_size for parts in (1, 2, 3, 4, 8)] == [4, 4, 6, 4, 8]


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match=r"proxy\.dtype: expected one of float32, bfloat16, got 'float16'"):
        ProxyConfig(VOCAB, dtype="float16")


def test_sizes_grow_with_the_dial():
    rows = sizes(range(1, 41), VOCAB)
    for name in ("total", "active", "flops_per_token"):
        values = [getattr(row, name) for row in rows]
        assert values == sorted(values)
        assert len(set(values)) == len(values)


def test_the_dial_reaches_a_billion_parameters_of_which_a_third_are_active():
    (row,) = sizes([32], VOCAB)
    assert row.total == pytest.approx(1e9, rel=0.05)
    assert row.active == pytest.approx(0.3e9, rel=0.05)


def test_the_smallest_size_is_that_of_the_quickstart():
    (row,) = sizes([1], VOCAB)
    assert (row.total, row.active) == (139_968, 103_104)
