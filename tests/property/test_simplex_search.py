"""Whatever the polytope, what the search draws or cleans lies in it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt import Constraints, Group
from mixopt.search import simplex


@st.composite
def polytopes(draw):
    k = draw(st.integers(1, 7))
    names = tuple(f"d{i}" for i in range(k))
    inside = np.random.default_rng(draw(st.integers(0, 10_000))).dirichlet(np.ones(k))
    room = np.array(draw(st.lists(st.floats(0.0, 0.5), min_size=k, max_size=k)))
    groups = []
    if k > 2 and draw(st.booleans()):
        total = float(inside[:2].sum())
        groups.append(
            Group(names[:2], max(0.0, total - draw(st.floats(0.0, 0.3))), min(1.0, total + draw(st.floats(0.0, 0.3))))
        )
    return Constraints(names, np.maximum(0, inside - room), np.minimum(1, inside + room), tuple(groups))


@settings(max_examples=40, deadline=None)
@given(polytopes(), st.integers(0, 2**31))
def test_every_sample_is_feasible(constraints, seed):
    rng = np.random.default_rng(seed)
    center = simplex.sample(constraints, 1, rng)[0]
    around = simplex.sample_around(center, 20.0, constraints=constraints, num=5, rng=rng)
    for points in (center[None], around, simplex.sobol(constraints, 5, seed)):
        assert constraints.violation(points) <= 1e-7


@settings(max_examples=40, deadline=None)
@given(polytopes(), st.integers(0, 2**31))
def test_cleaned_answers_are_feasible_mixtures(constraints, seed):
    rng = np.random.default_rng(seed)
    answer = simplex.sample(constraints, 1, rng)[0] + rng.uniform(-5e-5, 5e-5, len(constraints.domains))
    mixture = simplex.clean(answer, constraints)
    assert constraints.allows(mixture)
