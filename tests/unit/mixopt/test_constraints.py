from itertools import product

import numpy as np
import pytest

from mixopt import ConfigError, Constraints, Domain, Group, Mixture

NAMES = ("a", "b", "c")


def bounded(lower=(0, 0, 0), upper=(1, 1, 1), groups=()):
    return Constraints(NAMES, np.array(lower, dtype=float), np.array(upper, dtype=float), tuple(groups))


def sized(*tokens):
    return [Domain(name, count, 1, count) for name, count in zip(NAMES, tokens, strict=False)]


def grid(steps=20):
    """Every mixture of three domains in steps of 1/20."""
    points = [(i, j, steps - i - j) for i, j in product(range(steps + 1), repeat=2) if i + j <= steps]
    return np.array(points) / steps


def test_lower_bounds_beyond_one_are_named():
    with pytest.raises(ConfigError, match=r"lower bounds sum to 1\.2, more than 1; lower some"):
        bounded(lower=(0.4, 0.4, 0.4))


def test_upper_bounds_below_one_are_named_with_their_values():
    with pytest.raises(
        ConfigError, match=r"sum to 0\.9, less than 1 \(a 0\.3, b 0\.3, c 0\.3\); raise bounds or max_epochs"
    ):
        bounded(upper=(0.3, 0.3, 0.3))


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.4), (-0.1, 1), (0, 1.1), (np.nan, 1)])
def test_a_bound_that_is_no_interval_names_its_domain(low, high):
    with pytest.raises(ConfigError, match=r"constraints\.bounds\.b: expected 0 <= low <= high <= 1"):
        bounded(lower=(0, low, 0), upper=(1, high, 1))


def test_groups_that_contradict_the_bounds_are_named():
    with pytest.raises(ConfigError, match=r"0\.9 <= a \+ b <= 1.*relax one"):
        bounded(lower=(0, 0, 0.2), groups=[Group(("a", "b"), minimum=0.9)])


def test_groups_that_contradict_each_other_are_named():
    with pytest.raises(ConfigError, match=r"0\.7 <= a.*0\.5 <= b \+ c"):
        bounded(groups=[Group(("a",), minimum=0.7), Group(("b", "c"), minimum=0.5)])


def test_an_unknown_domain_names_those_that_are_there():
    with pytest.raises(ConfigError, match="unknown domain 'x'; the study's domains are a, b, c"):
        bounded(groups=[Group(("a", "x"), maximum=0.5)])
    with pytest.raises(ConfigError, match=r"constraints\.bounds: unknown domain 'x'"):
        Constraints.with_epoch_caps(sized(1, 1, 1), {"x": (0, 1)})


def test_an_epoch_cap_is_epochs_times_tokens_over_target():
    constraints = Constraints.with_epoch_caps(sized(100, 400, 2000), {}, target_tokens=1000, max_epochs=2)
    assert constraints.upper == pytest.approx([0.2, 0.8, 1.0])


def test_the_tighter_of_bound_and_cap_holds():
    bounds = {"a": (0.0, 0.1), "b": (0.05, 0.95)}
    constraints = Constraints.with_epoch_caps(sized(100, 400, 2000), bounds, target_tokens=1000, max_epochs=2)
    assert constraints.upper == pytest.approx([0.1, 0.8, 1.0])
    assert constraints.lower == pytest.approx([0, 0.05, 0])


@pytest.mark.parametrize("limits", [{"target_tokens": 1000}, {"max_epochs": 1.0}, {}])
def test_without_target_and_epochs_there_is_no_cap(limits):
    assert Constraints.with_epoch_caps(sized(1, 1, 1), {}, **limits).trivial


def test_caps_that_no_mixture_meets_say_which_text_is_short():
    with pytest.raises(ConfigError, match=r"epoch caps included.*a 0\.1, b 0\.1, c 0\.2.*lower target_tokens"):
        Constraints.with_epoch_caps(sized(100, 100, 200), {}, target_tokens=1000, max_epochs=1)


def test_a_cap_below_a_lower_bound_names_the_domain():
    with pytest.raises(ConfigError, match=r"constraints\.bounds\.a.*epoch caps included"):
        Constraints.with_epoch_caps(sized(100, 9000, 9000), {"a": (0.5, 1)}, target_tokens=1000, max_epochs=1)


def test_the_plain_simplex_allows_every_mixture():
    constraints = Constraints.simplex(NAMES)
    assert constraints.trivial
    assert all(constraints.violation(point) <= 1e-12 for point in grid())


def test_violation_is_the_distance_beyond_the_worst_limit():
    constraints = bounded(upper=(0.5, 1, 1), groups=[Group(("b", "c"), minimum=0.4, maximum=0.6)])
    assert constraints.violation(np.array([0.5, 0.3, 0.2])) == pytest.approx(0, abs=1e-12)
    assert constraints.violation(np.array([0.2, 0.3, 0.5])) == pytest.approx(0.2)
    assert constraints.violation(np.array([0.9, 0.1, 0.0])) == pytest.approx(0.4)


def test_allows_forgives_rounding_only():
    constraints = bounded(upper=(0.5, 1, 1))
    assert constraints.allows(Mixture(NAMES, [0.5 + 5e-8, 0.5 - 5e-8, 0]))
    assert not constraints.allows(Mixture(NAMES, [0.5 + 1e-6, 0.5 - 1e-6, 0]))


@pytest.mark.parametrize("costs", [(1, 2, 3), (-1, 0.5, 0.4), (0, 0, -1)])
def test_linear_optimum_is_as_good_as_every_point_of_a_grid(costs):
    # All limits lie on the grid, so one of its points is a best vertex.
    constraints = bounded((0.1, 0, 0.05), (0.6, 0.7, 0.5), [Group(("a", "c"), minimum=0.4, maximum=0.8)])
    feasible = [point for point in grid() if constraints.violation(point) <= 1e-9]
    best = constraints.linear_optimum(np.array(costs, dtype=float))
    assert constraints.violation(best) <= 1e-9
    assert best @ costs == pytest.approx(min(point @ costs for point in feasible))


def test_the_interior_point_keeps_away_from_every_limit():
    constraints = bounded((0.1, 0, 0), (0.6, 1, 1), [Group(("a", "b"), minimum=0.3, maximum=0.7)])
    point = constraints.interior_point()
    total = point[0] + point[1]
    assert point.sum() == pytest.approx(1)
    assert min(point[0] - 0.1, 0.6 - point[0], point[1], point[2], total - 0.3, 0.7 - total) > 0.05


def test_a_single_feasible_mixture_is_its_own_interior():
    assert bounded((0.2, 0.3, 0.5), (0.2, 0.3, 0.5)).interior_point() == pytest.approx([0.2, 0.3, 0.5])


def test_pull_inside_leaves_feasible_points_alone():
    constraints = bounded((0.1, 0, 0), (0.6, 1, 1), [Group(("a", "b"), maximum=0.7)])
    feasible = np.array([point for point in grid() if constraints.violation(point) <= 1e-12])
    assert np.abs(constraints.pull_inside(feasible) - feasible).max() <= 1e-12


def test_pull_inside_lands_on_the_way_to_the_interior():
    constraints = bounded(upper=(0.5, 1, 1))
    outside, center = np.array([1.0, 0, 0]), constraints.interior_point()
    moved = constraints.pull_inside(outside[None])[0]
    shares = (moved - center) / (outside - center)
    assert moved[0] == pytest.approx(0.5)
    assert np.ptp(shares) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "constraints",
    [
        bounded((0.3, 0, 0), (0.3, 1, 1)),
        bounded(groups=[Group(("a", "b"), minimum=0.5, maximum=0.5)]),
    ],
    ids=["fixed weight", "fixed sum"],
)
def test_rounding_in_a_fixed_weight_moves_a_point_by_rounding_only(constraints):
    # What an optimizer returns meets an equality to 1e-10 or so, never exactly.
    point = np.array([0.3, 0.2, 0.5]) + np.array([1e-11, 0, -1e-11])
    assert np.abs(constraints.pull_inside(point[None])[0] - point).max() <= 1e-7
