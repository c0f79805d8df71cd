import numpy as np
import pytest

from mixopt import Constraints, Group, Mixture, MixtureError, Objective
from mixopt.mde import MDE, minimize
from mixopt.passages import Passages
from mixopt.scores import ExpertScores

NAMES = ("a", "b", "c", "d")
SETS = ("x", "y")
K = len(NAMES)


def logprobs(eval_set=0, num_tokens=500):
    """(K, T): every expert is good at its own quarter of the tokens, as on real text."""
    rng = np.random.default_rng(eval_set)
    quarter = rng.choice(K, num_tokens, p=[0.4, 0.3, 0.2, 0.1] if eval_set == 0 else [0.1, 0.1, 0.4, 0.4])
    skill = np.where(quarter == np.arange(K)[:, None], -0.8, -4.0)
    return (skill - rng.exponential(1.0, (K, num_tokens))).astype(np.float32)


def experts(num_tokens=500):
    return [logprobs(j, num_tokens) for j in range(len(SETS))]


def scored(name, arrays, names=NAMES):
    return ExpertScores(Passages.of_text(name, len(arrays[0])), tuple(names), tuple(arrays))


def ensemble(scores=None, names=NAMES):
    arrays = scores or experts()
    return MDE(names, [scored(name, array, names) for name, array in zip(SETS, arrays, strict=True)])


def mixtures(num=20, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(K), num)


def objective(expression="mean(loss/*)"):
    return Objective.parse(expression, [f"loss/{name}" for name in SETS])


def bounded():
    return Constraints(NAMES, np.array([0.1, 0, 0, 0]), np.array([0.5, 0.2, 1, 1]), (Group(("a", "d"), 0.2, 0.6),))


def inside(constraints, num=300):
    return constraints.pull_inside(mixtures(num, seed=9))


# --- the prediction -----------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 500, 20_000])
def test_at_a_vertex_the_prediction_is_that_experts_own_loss(num_tokens):
    scores = experts(num_tokens)
    own = np.array([-array.mean(axis=1, dtype=np.float64) for array in scores]).T
    assert ensemble(scores).predict(np.eye(K)) == pytest.approx(own, abs=1e-6)


def test_probabilities_are_averaged_not_log_probabilities():
    # Two experts, each sure of one of two tokens: halves give log 2 + epsilon, not the mean of the losses.
    sure = np.log(np.array([[0.9, 0.1], [0.1, 0.9]], dtype=np.float32))
    mde = MDE(("a", "b"), [scored("x", sure, ("a", "b"))])
    assert mde.predict(np.array([[0.5, 0.5]]))[0, 0] == pytest.approx(-np.log(0.5), abs=1e-6)


def test_the_prediction_agrees_with_the_formula_in_double_precision():
    weights = mixtures()
    exact = np.stack([-np.log(weights @ np.exp(a.astype(np.float64))).mean(axis=1) for a in experts()], axis=1)
    assert ensemble().predict(weights) == pytest.approx(exact, abs=1e-6)


def test_log_probabilities_far_below_the_smallest_float_are_no_problem():
    low = np.array([[-1000.0, -1010.0], [-1010.0, -1000.0]], dtype=np.float32)
    mde = MDE(("a", "b"), [scored("x", low, ("a", "b"))])
    assert mde.predict(np.array([[0.5, 0.5]]))[0, 0] == pytest.approx(1000 - np.log(0.5 * (1 + np.exp(-10))), rel=1e-6)


def test_a_mixture_is_never_worse_than_the_weighted_mean_of_its_experts():
    weights, mde = mixtures(), ensemble()
    assert np.all(mde.predict(weights) <= weights @ mde.predict(np.eye(K)) + 1e-6)


def test_the_prediction_is_convex_in_the_weights():
    mde, first, second = ensemble(), mixtures(seed=1), mixtures(seed=2)
    middle = mde.predict((first + second) / 2)
    assert np.all(middle <= (mde.predict(first) + mde.predict(second)) / 2 + 1e-6)


def test_gradient_agrees_with_finite_differences():
    # Off the simplex the formula goes on; single precision limits the step to 1e-2 and the error to 1e-4.
    mde, weights, step = ensemble(), np.array([[0.4, 0.3, 0.2, 0.1]]), 1e-2
    slopes = [(mde.predict(weights + step * e) - mde.predict(weights - step * e))[0] / (2 * step) for e in np.eye(K)]
    assert mde.gradient(weights)[0] == pytest.approx(np.array(slopes).T, rel=5e-3, abs=1e-3)


def test_weights_times_gradient_is_minus_one():
    # The prediction is -mean log of a linear form, so w . dL/dw = -1 everywhere (Euler).
    weights = mixtures()
    assert np.einsum("mk,mjk->mj", weights, ensemble().gradient(weights)) == pytest.approx(-1, abs=1e-5)


def test_permuting_the_domains_permutes_everything():
    order = np.array([2, 0, 3, 1])
    swapped = ensemble([array[order] for array in experts()], [NAMES[i] for i in order])
    weights = mixtures()
    assert swapped.predict(weights[:, order]) == pytest.approx(ensemble().predict(weights), abs=1e-6)
    assert swapped.gradient(weights[:, order]) == pytest.approx(ensemble().gradient(weights)[..., order], rel=1e-4)


def test_the_length_of_a_set_is_averaged_over_not_summed():
    twice = [np.concatenate([array, array], axis=1) for array in experts()]
    assert ensemble(twice).predict(mixtures()) == pytest.approx(ensemble().predict(mixtures()), abs=1e-6)


def test_an_unknown_column_is_refused():
    with pytest.raises(MixtureError, match="unknown column 'loss/z'; the ensemble predicts loss/x, loss/y"):
        ensemble().predict(mixtures(), ["loss/z"])


def test_chosen_sets_are_columns_in_the_asked_order():
    both, weights = ensemble().predict(mixtures()), mixtures()
    assert ensemble().predict(weights, ["loss/y", "loss/x"]).tolist() == both[:, ::-1].tolist()
    assert ensemble().gradient(weights, ["loss/y"]).shape == (20, 1, K)


def test_a_wrong_number_of_weights_or_experts_is_refused():
    with pytest.raises(MixtureError, match="expected 4 weights per mixture, for a, b, c, d, got 3"):
        ensemble().predict(np.ones((1, 3)) / 3)
    with pytest.raises(MixtureError, match="x: expected scores of experts of a, b, c, e, got a, b, c, d"):
        MDE(("a", "b", "c", "e"), [scored("x", logprobs())])


# --- the optimum --------------------------------------------------------------


def test_the_unconstrained_optimum_is_a_fixed_point_of_the_em_step():
    # METHODS 1.2: lambda_i <- lambda_i * sum_j omega_j g_ji stays where it is.
    best = minimize(ensemble(), objective(), Constraints.simplex(NAMES)).mixture.weights
    g = -ensemble().gradient(best[None])[0].mean(axis=0)
    assert best * g == pytest.approx(best, abs=1e-4)
    assert g.max() <= 1 + 1e-6


def test_the_optimum_is_where_the_em_iteration_ends():
    weights = np.full(K, 1 / K)
    for _ in range(500):
        weights = weights * -ensemble().gradient(weights[None])[0].mean(axis=0)
    best = minimize(ensemble(), objective(), Constraints.simplex(NAMES))
    assert best.value == pytest.approx(float(ensemble().predict(weights[None]).mean()), abs=1e-5)
    assert best.mixture.weights == pytest.approx(weights, abs=5e-3)


@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize("constraints", [Constraints.simplex(NAMES), bounded()], ids=["simplex", "bounded"])
def test_no_feasible_mixture_is_better_by_more_than_the_certified_gap(constraints, kl):
    best = minimize(ensemble(), objective(), constraints, reference=Mixture.uniform(NAMES), kl=kl)
    others = inside(constraints, 2000)
    values = ensemble().predict(others).mean(axis=1) + kl * (others * np.log(others * K)).sum(axis=1)
    assert constraints.allows(best.mixture)
    assert values.min() >= best.value - best.gap - 1e-7
    assert best.gap < 1e-6


def many_experts(num, seed):
    """An ensemble of `num` experts that differ a little, on one set."""
    rng = np.random.default_rng(seed)
    best = rng.choice(num, 2000, p=rng.dirichlet(np.full(num, 0.5)))
    skill = rng.normal(-0.5, 0.7, (num, 2000)) + 0.8 * (best == np.arange(num)[:, None])
    array = np.minimum(skill - rng.exponential(2.0, 2000), -1e-4).astype(np.float32)
    names = tuple(f"d{i}" for i in range(num))
    return MDE(names, [scored("x", array, names)])


@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("num", [1, 2, 8, 17, 64])
def test_the_gap_closes_with_any_number_of_domains(num, limited, kl):
    mde = many_experts(num, seed=num)
    constraints = Constraints.simplex(mde.domains)
    if limited and num > 2:
        group = Group(mde.domains[: num // 2], 0.3, 0.6)
        constraints = Constraints(mde.domains, np.full(num, 0.1 / num), np.full(num, 2.5 / num), (group,))
    best = minimize(mde, Objective.parse("loss/x", mde.columns), constraints, kl=kl)
    assert constraints.allows(best.mixture)
    assert best.gap < 1e-6


def test_experts_that_are_copies_of_each_other_are_no_problem():
    twins = [np.concatenate([array, array]) for array in experts()]
    names = tuple("abcdefgh")
    best = minimize(ensemble(twins, names), objective(), Constraints.simplex(names))
    single = minimize(ensemble(), objective(), Constraints.simplex(NAMES))
    assert best.gap < 1e-6
    assert best.value == pytest.approx(single.value, abs=1e-6)


def test_permuting_the_domains_permutes_the_optimum():
    order, reference = np.array([2, 0, 3, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    names = [NAMES[i] for i in order]
    swapped = ensemble([array[order] for array in experts()], names)
    one = minimize(ensemble(), objective(), bounded(), reference=Mixture(NAMES, reference), kl=0.05)
    limits = bounded()
    same = Constraints(tuple(names), limits.lower[order], limits.upper[order], limits.groups)
    two = minimize(swapped, objective(), same, reference=Mixture(tuple(names), reference[order]), kl=0.05)
    assert two.mixture.weights == pytest.approx(one.mixture.weights[order], abs=1e-3)
    assert two.value == pytest.approx(one.value, abs=1e-6)


def test_two_experts_of_one_token_each_share_by_how_often_it_comes():
    # The loss is -mean log w of the expert that knows the token: the known optimum is the share of its tokens.
    knows = np.arange(1000) % 10 < 3
    array = np.where([knows, ~knows], 0.0, -100.0).astype(np.float32)
    mde = MDE(("a", "b"), [scored("x", array, ("a", "b"))])
    best = minimize(mde, Objective.parse("loss/x", mde.columns), Constraints.simplex(mde.domains))
    assert best.mixture.weights == pytest.approx([0.3, 0.7], abs=1e-4)
    assert best.value == pytest.approx(-0.3 * np.log(0.3) - 0.7 * np.log(0.7), abs=1e-6)


def test_a_negative_weight_on_a_loss_is_not_certified():
    mixed = Objective.parse({"loss/x": 1.0, "loss/y": -0.5}, [f"loss/{name}" for name in SETS])
    assert minimize(ensemble(), mixed, Constraints.simplex(NAMES)).gap == np.inf


def test_a_maximum_is_minimized_too_but_without_a_certificate():
    best = minimize(ensemble(), objective("max(loss/*)"), bounded())
    values = ensemble().predict(inside(bounded())).max(axis=1)
    assert best.value == pytest.approx(float(ensemble().predict(best.mixture.weights[None]).max()), abs=1e-6)
    assert values.min() >= best.value - 1e-4
    assert best.gap == np.inf


@pytest.mark.parametrize(
    "constraints",
    [
        Constraints(NAMES, np.array([0.3, 0, 0, 0]), np.array([0.3, 1, 1, 1])),
        Constraints(NAMES, np.zeros(K), np.ones(K), (Group(("a", "b"), 0.35, 0.35),)),
    ],
    ids=["fixed weight", "fixed sum"],
)
def test_equality_constraints_do_not_spoil_the_optimum(constraints):
    best = minimize(ensemble(), objective(), constraints)
    assert constraints.allows(best.mixture)
    assert best.gap < 1e-6


def test_a_single_column_is_minimized_at_its_own_optimum():
    value = minimize(ensemble(), objective("loss/y"), Constraints.simplex(NAMES)).value
    assert value <= ensemble().predict(inside(Constraints.simplex(NAMES)))[:, 1].min() + 1e-6


def test_the_kl_term_pulls_towards_its_reference():
    reference = Mixture(NAMES, [0.05, 0.05, 0.1, 0.8])
    distances = [
        minimize(ensemble(), objective(), Constraints.simplex(NAMES), reference=reference, kl=kl).mixture.distance(
            reference
        )
        for kl in (0.0, 0.1, 1.0, 100.0)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.1
    assert distances[-1] < 0.01


def test_the_value_with_a_kl_term_contains_it():
    reference = Mixture.uniform(NAMES)
    best = minimize(ensemble(), objective(), Constraints.simplex(NAMES), reference=reference, kl=0.2)
    w = best.mixture.weights
    divergence = float(w @ np.log(w * K))
    assert best.value == pytest.approx(float(ensemble().predict(w[None]).mean()) + 0.2 * divergence, abs=1e-6)
    assert best.gap < 1e-3
