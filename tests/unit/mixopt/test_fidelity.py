import pytest

from mixopt import ConfigError, Fidelity, Ladder

RUNGS = [
    ("low", "d1", 10, 100, 1.0),
    ("mid", "d1", 10, 200, 2.0),
    ("wide", "d2", 40, 100, 5.0),
    ("top", "d1", 10, 1000, 10.0),
]


def ladder(fixed_cost=0.1):
    return Ladder.from_flops(RUNGS, fixed_cost)


@pytest.mark.parametrize("fixed_cost", [0.0, 0.1, 0.9])
def test_a_run_at_the_top_rung_costs_one(fixed_cost):
    assert ladder(fixed_cost).target.cost == pytest.approx(1)


def test_a_cost_is_the_fixed_part_and_a_share_of_the_flops():
    assert [rung.cost for rung in ladder()] == pytest.approx([0.19, 0.28, 0.55, 1.0])


def test_a_continuation_costs_the_difference_and_the_fixed_part():
    assert ladder().price("top", start="low") == pytest.approx(1 - 0.19 + 0.1)
    assert ladder().price("mid") == pytest.approx(0.28)


def test_going_on_in_steps_costs_one_fixed_part_per_step_more():
    steps = ladder().price("low") + ladder().price("mid", start="low") + ladder().price("top", start="mid")
    assert steps == pytest.approx(ladder().price("top") + 2 * 0.1)


def test_a_run_passes_the_rungs_of_its_shape_below_its_own():
    assert [rung.name for rung in ladder().nested("top")] == ["low", "mid", "top"]
    assert [rung.name for rung in ladder().nested("wide")] == ["wide"]


def test_a_continued_run_passes_only_the_rungs_beyond_its_start():
    assert [rung.name for rung in ladder().nested("top", above="low")] == ["mid", "top"]
    assert ladder().nested("mid", above="mid") == ()


def test_the_target_is_the_last_rung():
    assert ladder().target.name == "top"
    assert len(ladder()) == 4


def test_positions_run_from_zero_to_one_in_order():
    positions = [ladder().position(rung.name) for rung in ladder()]
    assert positions[0] == 0
    assert positions[-1] == 1
    assert positions == sorted(positions)
    assert Ladder.from_flops(RUNGS[:1], 0.1).position("low") == 1


def test_costs_must_rise():
    with pytest.raises(ConfigError, match="more expensive from first to last"):
        Ladder.from_flops([RUNGS[3], RUNGS[0]], 0.1)


def test_declared_prices_replace_the_flops_and_nothing_else():
    priced = Ladder.from_flops(RUNGS, 0.1, prices=[2.0, 3.0, 4.0, 8.0])
    assert [rung.cost for rung in priced] == pytest.approx([0.1 + 0.9 * p / 8 for p in (2, 3, 4, 8)])
    assert [rung.flops for rung in priced] == [rung.flops for rung in ladder()]
    assert priced.price("top", start="low") == pytest.approx(0.9 * (8 - 2) / 8 + 0.1)


@pytest.mark.parametrize("unit", [1.0, 3600.0, 1e-9])
def test_the_unit_of_prices_does_not_matter(unit):
    priced = Ladder.from_flops(RUNGS, 0.1, prices=[unit * flops for *_, flops in RUNGS])
    assert [rung.cost for rung in priced] == pytest.approx([rung.cost for rung in ladder()])


def test_prices_must_rise_and_the_error_says_where_they_stand():
    with pytest.raises(
        ConfigError, match=r"more expensive from first to last.*correct their prices \(ladder\[\]\.cost\)"
    ):
        Ladder.from_flops(RUNGS, 0.1, prices=[2.0, 3.0, 3.0, 8.0])


def test_changed_costs_are_named_rung_by_rung():
    priced = Ladder.from_flops(RUNGS[1:], 0.1, prices=[3.0, 5.0, 10.0])
    assert ladder().cost_changes(priced) == ["rung mid costs 0.37 top-rung runs instead of 0.28"]
    assert ladder().cost_changes(ladder()) == []


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan")])
def test_a_rung_that_costs_nothing_is_refused(cost):
    with pytest.raises(ConfigError, match="positive and finite, that of b is not"):
        Ladder((Fidelity("a", "m", 1, 1, 1.0, 0.5), Fidelity("b", "m", 1, 2, 2.0, cost)))


def test_a_ladder_of_finished_runs_may_have_rungs_of_one_price_and_nothing_nests():
    rungs = Ladder((Fidelity("a", "a", 0, 0, 0.0, 1.0), Fidelity("b", "b", 0, 0, 0.0, 1.0)))
    assert [rungs.position(name) for name in "ab"] == [1.0, 1.0]
    assert [rung.name for rung in rungs.nested("b")] == ["b"]
    assert rungs.index("b") == 1


def test_names_are_unique_and_there_is_at_least_one():
    with pytest.raises(ConfigError, match=r"unique, got \['low', 'low'\]"):
        Ladder.from_flops([RUNGS[0], ("low", "d1", 10, 200, 2.0)], 0.1)
    with pytest.raises(ConfigError, match="at least one rung"):
        Ladder(())


def test_an_unknown_rung_names_those_that_are_there():
    with pytest.raises(ConfigError, match=r"unknown rung 'tp' .*; the ladder has low, mid, wide, top"):
        ladder()["tp"]
