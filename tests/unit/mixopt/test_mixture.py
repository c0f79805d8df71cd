import numpy as np
import pytest

from mixopt import Domain, Mixture, MixtureError

NAMES = ("web", "code", "books")


def test_weights_may_miss_a_sum_of_one_by_rounding_only():
    assert Mixture(("a", "b"), [0.5, 0.5 + 9e-10]).weights.sum() == pytest.approx(1)
    with pytest.raises(MixtureError, match=r"sum to 1.*got 1\.00000001; correct them, or use Mixture\.normalized"):
        Mixture(("a", "b"), [0.5, 0.5 + 1e-8])


@pytest.mark.parametrize("weights", [[1.5, -0.5], [np.nan, 1.0], [np.inf, 0.0]])
def test_weights_are_finite_and_not_negative(weights):
    with pytest.raises(MixtureError, match="finite and non-negative"):
        Mixture(("a", "b"), weights)


def test_every_domain_has_one_weight_and_one_name():
    with pytest.raises(MixtureError, match="expected 2 weights"):
        Mixture(("a", "b"), [1.0])
    with pytest.raises(MixtureError, match="unique"):
        Mixture(("a", "a"), [0.5, 0.5])


def test_weights_are_a_read_only_copy():
    given = np.array([0.25, 0.75])
    mixture = Mixture(("a", "b"), given)
    given[0] = 9
    assert mixture.weights[0] == 0.25
    with pytest.raises(ValueError, match="read-only"):
        mixture.weights[0] = 1


def test_normalized_keeps_ratios():
    assert Mixture.normalized(NAMES, [2, 1, 1]).as_dict() == {"web": 0.5, "code": 0.25, "books": 0.25}


@pytest.mark.parametrize("weights", [[0, 0, 0], [1, -1, 0], [np.nan, 1, 1], [np.inf, 1, 1]])
def test_numbers_without_a_positive_sum_cannot_be_normalized(weights):
    with pytest.raises(MixtureError, match="positive sum"):
        Mixture.normalized(NAMES, weights)


def test_a_vertex_puts_all_weight_on_one_domain():
    assert Mixture.vertex(NAMES, "code").weights.tolist() == [0, 1, 0]
    with pytest.raises(MixtureError, match=r"unknown domain 'cod' .*; the study's domains are web, code, books"):
        Mixture.vertex(NAMES, "cod")


def test_the_natural_mixture_follows_the_tokens():
    domains = [Domain("a", 300, 1, 9), Domain("b", 100, 9, 1)]
    assert Mixture.natural(domains).weights.tolist() == [0.75, 0.25]


def test_uniform_is_the_center():
    assert Mixture.uniform(NAMES).weights == pytest.approx([1 / 3] * 3)


def test_parse_reads_what_is_typed_in_any_order_and_spacing():
    mixture = Mixture.parse(" code = 0.4 , web=.6,", NAMES)
    assert mixture.as_dict() == {"web": 0.6, "code": 0.4, "books": 0.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("web 0.6,code=0.4", "expected DOMAIN=WEIGHT with a number, got 'web 0.6'"),
        ("web=lots,code=0.4", "expected DOMAIN=WEIGHT with a number, got 'web=lots'"),
        ("web=nan,code=1", "expected DOMAIN=WEIGHT with a number, got 'web=nan'"),
        ("web=inf", "expected DOMAIN=WEIGHT with a number, got 'web=inf'"),
        ("web=0.6,cod=0.4", "unknown domain 'cod' .*; the study's domains are web, code, books"),
        ("web=0.5,web=0.5", "domain 'web' is given twice"),
        ("web=0.5,code=0.4", "sum to 1"),
        ("web=1.5,code=-0.5", "non-negative"),
        ("", "sum to 1"),
    ],
)
def test_a_mistyped_mixture_is_named(text, message):
    with pytest.raises(MixtureError, match=message.replace("(", r"\(")):
        Mixture.parse(text, NAMES)


def test_over_gives_new_domains_weight_zero_and_follows_the_new_order():
    mixture = Mixture(("a", "b"), [0.25, 0.75]).over(("c", "b", "a"))
    assert mixture.as_dict() == {"c": 0.0, "b": 0.75, "a": 0.25}


def test_over_drops_only_domains_without_weight():
    mixture = Mixture(("a", "b", "c"), [0.0, 0.5, 0.5])
    assert mixture.over(("b", "c")).weights.tolist() == [0.5, 0.5]
    with pytest.raises(MixtureError, match="unknown domain 'b'"):
        mixture.over(("a", "c"))


def test_distance_between_vertices_is_one_and_to_itself_zero():
    first, second = Mixture.vertex(NAMES, "web"), Mixture.vertex(NAMES, "books")
    assert first.distance(second) == 1
    assert first.distance(first) == 0
    assert Mixture(NAMES, [0.5, 0.25, 0.25]).distance(Mixture(NAMES, [0.25, 0.5, 0.25])) == 0.25


def test_distance_needs_the_same_domains_in_the_same_order():
    with pytest.raises(MixtureError, match="over"):
        Mixture(("a", "b"), [0.5, 0.5]).distance(Mixture(("b", "a"), [0.5, 0.5]))


def test_equal_mixtures_are_one_dictionary_key():
    first, second = Mixture(NAMES, [0.2, 0.3, 0.5]), Mixture(NAMES, [0.2, 0.3, 0.5])
    assert {first: 1}[second] == 1
    assert first != Mixture(("x", "y", "z"), [0.2, 0.3, 0.5])


@pytest.mark.parametrize("name", ["", "a b", "-a", ".hidden", "a/b", "naïve", "a=b", "a,b"])
def test_a_domain_name_can_be_a_file_and_a_column(name):
    with pytest.raises(MixtureError, match=r"domain name .*; rename it"):
        Domain(name, 1, 1, 1)
