"""Whatever the polytope: what is said to be inside is inside, and what is said to be best is best."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt import ConfigError, Constraints, Domain, Group

LAW = settings(max_examples=40, deadline=None)


@st.composite
def polytopes(draw, wide=False):
    """Bounds and a group around a random point, so that at least this point is feasible."""
    k = draw(st.integers(2, 7))
    names = tuple(f"d{i}" for i in range(k))
    inside = np.random.default_rng(draw(st.integers(0, 10_000))).dirichlet(np.ones(k))
    room = np.array(draw(st.lists(st.floats(0.01 if wide else 0.0, 0.6), min_size=k, max_size=k)))
    groups = []
    if draw(st.booleans()):
        total = float(inside[: k // 2].sum())
        low, high = draw(st.floats(0.01 if wide else 0.0, 0.3)), draw(st.floats(0.01 if wide else 0.0, 0.3))
        groups = [Group(names[: k // 2], max(0.0, total - low), min(1.0, total + high))]
    return Constraints(names, np.maximum(0, inside - room), np.minimum(1, inside + room), tuple(groups)), inside


def points(k, seed, num=50):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.dirichlet(np.ones(k), num), rng.dirichlet(0.2 * np.ones(k), num), np.eye(k)])


@LAW
@given(polytopes(), st.integers(0, 9999))
def test_what_is_pulled_inside_is_inside(case, seed):
    constraints, _ = case
    pulled = constraints.pull_inside(points(len(constraints.domains), seed))
    assert constraints.violation(pulled) <= 1e-7
    assert np.all(pulled >= 0)


@LAW
@given(polytopes(), st.integers(0, 9999))
def test_feasible_points_are_left_alone(case, seed):
    constraints, inside = case
    pulled = constraints.pull_inside(points(len(constraints.domains), seed))
    # Feasible by the library's own word, also on the very border.
    for feasible in (inside[None], pulled):
        assert np.abs(constraints.pull_inside(feasible) - feasible).max() <= 1e-6


@LAW
@given(polytopes(wide=True))
def test_the_interior_point_has_room_on_every_side_that_has_some(case):
    constraints, _ = case
    point = constraints.interior_point()
    assert constraints.violation(point) <= 1e-9
    open_sides = constraints.upper - constraints.lower > 1e-6
    assert np.all(point[open_sides] > constraints.lower[open_sides])


@LAW
@given(polytopes(), st.integers(0, 9999))
def test_no_feasible_point_beats_the_linear_optimum(case, seed):
    constraints, inside = case
    k = len(constraints.domains)
    costs = np.random.default_rng(seed).normal(size=k)
    best = constraints.linear_optimum(costs)
    feasible = np.vstack([constraints.pull_inside(points(k, seed)), inside])
    assert constraints.violation(best) <= 1e-7
    assert float(best @ costs) <= (feasible @ costs).min() + 1e-6


@LAW
@given(polytopes(), st.integers(0, 9999))
def test_permuting_the_domains_changes_no_verdict(case, seed):
    constraints, _ = case
    k = len(constraints.domains)
    order = np.random.default_rng(seed).permutation(k)
    names = tuple(constraints.domains[i] for i in order)
    moved = Constraints(names, constraints.lower[order], constraints.upper[order], constraints.groups)
    for point in points(k, seed, num=5):
        assert moved.violation(point[order]) == pytest.approx(constraints.violation(point), abs=1e-12)


@LAW
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(1, 2000), st.floats(0.1, 8))
def test_caps_are_feasible_exactly_if_the_text_suffices(tokens, target, epochs):
    domains = [Domain(f"d{i}", count, 1, count) for i, count in enumerate(tokens)]
    enough = sum(min(1.0, epochs * count / target) for count in tokens)
    if abs(enough - 1) < 1e-6:
        return
    if enough > 1:
        constraints = Constraints.with_epoch_caps(domains, {}, target_tokens=target, max_epochs=epochs)
        used = constraints.interior_point() * target
        assert np.all(used <= epochs * np.array(tokens) * (1 + 1e-6))
    else:
        with pytest.raises(ConfigError, match="epoch caps included"):
            Constraints.with_epoch_caps(domains, {}, target_tokens=target, max_epochs=epochs)
