"""Mixtures: round trips, and the order of domains means nothing but order."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt import Mixture, MixtureError, Role, Trial
from mixopt.experiments.outputs import round_weights

LAW = settings(max_examples=60, deadline=None)


@st.composite
def mixtures(draw, min_size=1):
    k = draw(st.integers(min_size, 8))
    parts = draw(st.lists(st.floats(0, 1e6), min_size=k, max_size=k).filter(lambda x: sum(x) > 1e-3))
    names = draw(st.permutations([f"d{i}" for i in range(k)]))
    return Mixture.normalized(names, parts)


@LAW
@given(mixtures())
def test_a_mapping_and_back_is_the_same_mixture(mixture):
    assert Mixture.from_mapping(mixture.domains, mixture.as_dict()) == mixture


@LAW
@given(mixtures())
def test_json_and_back_is_the_same_mixture(mixture):
    trial = Trial("t", Role.SEARCH, mixture, "top", 0, "test")
    assert Trial.from_json(json.loads(json.dumps(trial.to_json()))).mixture == mixture


@LAW
@given(mixtures())
def test_what_is_printed_can_be_typed_again(mixture):
    text = ",".join(f"{name}={weight!r}" for name, weight in mixture.as_dict().items())
    assert Mixture.parse(text, mixture.domains) == mixture


@LAW
@given(mixtures())
def test_normalizing_a_mixture_changes_nothing_but_rounding(mixture):
    again = Mixture.normalized(mixture.domains, 7 * mixture.weights)
    assert again.weights == pytest.approx(mixture.weights, abs=1e-12)


@LAW
@given(mixtures(), st.randoms(use_true_random=False))
def test_permuting_the_domains_keeps_every_weight_with_its_name(mixture, random):
    names = random.sample(mixture.domains, len(mixture.domains))
    moved = mixture.over(names)
    assert moved.as_dict() == {name: mixture.as_dict()[name] for name in names}
    assert moved.over(mixture.domains) == mixture


@LAW
@given(mixtures(), st.integers(0, 9))
def test_a_new_domain_anywhere_is_undone_by_leaving_it_out(mixture, at):
    names = list(mixture.domains)
    names.insert(at, "new")
    assert mixture.over(names).as_dict()["new"] == 0
    assert mixture.over(names).over(mixture.domains) == mixture


@LAW
@given(mixtures(min_size=3), st.data())
def test_distance_is_a_metric_between_zero_and_one(mixture, data):
    k = len(mixture.domains)
    others = data.draw(st.lists(st.lists(st.floats(0.01, 1), min_size=k, max_size=k), min_size=2, max_size=2))
    second, third = (Mixture.normalized(mixture.domains, parts) for parts in others)
    assert 0 <= mixture.distance(second) <= 1 + 1e-12
    assert mixture.distance(second) == second.distance(mixture)
    assert mixture.distance(third) <= mixture.distance(second) + second.distance(third) + 1e-12


@LAW
@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_numbers_off_the_simplex_are_refused_and_the_message_tells_their_sum(parts):
    names = [f"d{i}" for i in range(len(parts))]
    if abs(np.array(parts).sum() - 1) > 1e-9:
        with pytest.raises(MixtureError, match="sum to 1"):
            Mixture(tuple(names), parts)
    else:
        assert Mixture(tuple(names), parts).domains == tuple(names)


@LAW
@given(mixtures(), st.integers(2, 6))
def test_rounded_weights_are_a_mixture_and_near(mixture, digits):
    rounded = round_weights(mixture, digits)
    again = Mixture.from_mapping(mixture.domains, rounded)
    assert np.abs(again.weights - mixture.weights).max() <= 1.0000001 * 10**-digits
    assert all(round(weight, digits) == weight for weight in rounded.values())
