"""The first trials: how many a block has, and what is drawn from a list."""

import numpy as np
import pytest

from mixopt import Constraints, Fidelity, Ladder
from mixopt.search.initial import affordable, block_size, initial_design, listed_design
from mixopt.search.pool import Pool


def ladder(*costs):
    return Ladder(tuple(Fidelity(f"r{i}", f"r{i}", 0, 0, 0.0, cost) for i, cost in enumerate(costs)))


def a_pool(num=20, seed=0):
    """Rungs mixed up, `r1` the cheapest that has runs."""
    weights = np.random.default_rng(seed).dirichlet(np.ones(3), num)
    names = tuple("r2" if i % 3 else "r1" for i in range(num))
    return Pool(("a", "b", "c"), weights, names, np.array([0.2 if name == "r1" else 1.0 for name in names]))


LADDER = ladder(0.1, 0.2, 1.0)


def drawn(num, seed=0, pool=None):
    pool = pool or a_pool()
    return listed_design(num, pool=pool, left=np.arange(len(pool)), ladder=LADDER, seed=seed)


def keys(slots):
    return [(slot.weights.tobytes(), slot.fidelity) for slot in slots]


@pytest.mark.parametrize("num_domains", [1, 2, 10, 17, 64])
@pytest.mark.parametrize("cheapest", [1 / 3000, 0.01, 0.05, 0.2, 0.25, 0.26, 0.5, 1.0])
def test_a_block_has_two_runs_or_as_many_as_half_a_target_run_pays_up_to_two_per_degree_of_freedom(
    num_domains, cheapest
):
    size = block_size(num_domains, ladder(cheapest, 1.0))
    assert 2 <= size <= 2 * (num_domains + 1)
    assert size == 2 or size * cheapest <= 0.5 + 1e-9
    assert size == 2 * (num_domains + 1) or (size + 1) * cheapest > 0.5


def test_a_dearer_cheap_rung_never_makes_the_block_larger():
    sizes = [block_size(10, ladder(cost, 1.0)) for cost in np.geomspace(0.001, 1, 30)]
    assert sizes == sorted(sizes, reverse=True)


def test_costs_count_relative_to_the_target():
    assert block_size(10, ladder(0.05, 1.0)) == block_size(10, ladder(5.0, 100.0))


def test_a_listed_design_has_distinct_rows_of_the_cheapest_rung_that_the_list_has():
    pool, slots = a_pool(), drawn(100)
    rows = {weights.tobytes() for weights, name in zip(pool.weights, pool.fidelities, strict=True) if name == "r1"}
    assert {weights for weights, _ in keys(slots)} == rows
    assert len(slots) == len(rows)
    assert {slot.fidelity for slot in slots} == {"r1"}


def test_a_shorter_listed_design_is_the_beginning_of_a_longer_one():
    whole = keys(drawn(7))
    assert all(keys(drawn(num)) == whole[:num] for num in range(8))


def test_a_listed_design_follows_from_its_seed():
    assert keys(drawn(5, 1)) == keys(drawn(5, 1)) != keys(drawn(5, 2))


def test_replicates_in_a_list_are_slots_of_their_own():
    pool = Pool(("a", "b", "c"), np.tile(np.full(3, 1 / 3), (4, 1)), ("r1",) * 4, np.full(4, 0.2))
    assert len(drawn(9, pool=pool)) == 4


@pytest.mark.parametrize("num_domains", [1, 2, 5])
def test_a_block_is_feasible_at_the_cheapest_rung_and_seeded(num_domains):
    constraints = Constraints.simplex(tuple(f"d{i}" for i in range(num_domains)))

    def block(num, seed):
        settings = {"constraints": constraints, "ladder": LADDER, "center": constraints.interior_point()}
        return initial_design(num, optimum=None, seed=seed, **settings)

    assert {slot.fidelity for slot in block(6, 0)} == {"r0"}
    assert all(constraints.violation(slot.weights) <= 1e-9 for slot in block(6, 0))
    assert keys(block(4, 0)) == keys(block(6, 0))[:4]
    assert num_domains == 1 or keys(block(6, 0)) != keys(block(6, 1))


def test_only_a_cheaper_rung_of_the_same_shape_stands_in_for_one_that_is_too_dear():
    nested = Ladder.from_flops([("s", "small", 5, 50, 1.0), ("m1", "m", 9, 100, 2.0), ("m2", "m", 9, 400, 8.0)], 0.0)
    assert affordable("m2", nested, 1.0) == "m2"
    assert affordable("m2", nested, 0.5) == "m1"
    assert affordable("m2", nested, 0.2) is None
