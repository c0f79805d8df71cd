import math

import numpy as np
import pytest

from mixopt import ConfigError, EvalSet, MixtureError, Objective

COLUMNS = ("loss/a", "loss/b", "loss/other", "score/quiz")
VALUES = {"loss/a": 1.0, "loss/b": 3.0, "loss/other": 8.0, "score/quiz": 0.25}
SETS = (EvalSet("a", 100, 400), EvalSet("b", 100, 200), EvalSet("other", 100, 100))


def parse(expression, **options):
    return Objective.parse(expression, COLUMNS, **options)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("loss/a", 1.0),
        ("score/quiz", -0.25),
        ("mean(loss/*)", 4.0),
        ("mean(loss/a, loss/b)", 2.0),
        ("mean(loss/?)", 2.0),
        ("mean( loss/a,loss/* )", 4.0),
        ("max(loss/*)", 8.0),
        ("max(loss/a, score/quiz)", 1.0),
        ("mean(loss/b, score/quiz)", (3.0 - 0.25) / 2),
        ({"loss/a": 2.0, "loss/b": 0.5}, 3.5),
        ({"loss/a": 1.0, "score/quiz": 4.0}, 0.0),
    ],
)
def test_known_answers(expression, value):
    assert parse(expression).value(VALUES) == pytest.approx(value)


def test_values_are_computed_for_arrays_of_any_shape():
    columns = {name: np.full((2, 5), value) for name, value in VALUES.items()}
    assert parse("max(loss/a, loss/b)").value(columns).shape == (2, 5)


def test_bits_per_byte_is_tokens_over_bytes_over_log_two():
    objective = parse("loss/a", unit="bits_per_byte", eval_sets=SETS)
    assert objective.value(VALUES) == pytest.approx(1.0 * 100 / 400 / math.log(2))
    assert EvalSet("one-bit-bytes", 7, 7).bits_per_byte * math.log(2) == pytest.approx(1)


def test_bits_per_byte_rescales_each_set_by_its_own_bytes_before_the_maximum():
    objective = parse("max(loss/a, loss/b)", unit="bits_per_byte", eval_sets=SETS)
    even = {**VALUES, "loss/a": 2.2, "loss/b": 1.2}
    assert objective.value(even) == pytest.approx(1.2 * 100 / 200 / math.log(2))


def test_scores_have_no_bytes():
    objective = parse("mean(loss/a, score/quiz)", unit="bits_per_byte", eval_sets=SETS)
    assert objective.value(VALUES) == pytest.approx((100 / 400 / math.log(2) - 0.25) / 2)


@pytest.mark.parametrize(
    "expression", ["mean(loss/*)", "max(loss/*)", {"loss/a": 2.0, "score/quiz": 3.0}, "mean(loss/b, score/quiz)"]
)
def test_gradient_agrees_with_finite_differences(expression):
    objective, step = parse(expression, unit="bits_per_byte", eval_sets=SETS), 1e-6
    slopes = [
        (
            objective.value({**VALUES, name: VALUES[name] + step})
            - objective.value({**VALUES, name: VALUES[name] - step})
        )
        / (2 * step)
        for name in objective.columns
    ]
    assert objective.gradient(VALUES) == pytest.approx(np.array(slopes), abs=1e-8)


def test_the_gradient_of_a_maximum_belongs_to_one_column():
    tie = {"loss/a": np.array([2.0, 1.0]), "loss/b": np.array([2.0, 3.0])}
    assert parse("max(loss/a, loss/b)").gradient(tie).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("expression", ["loss/c", "mean(loss/c)", "mean(los/*)", "median(loss/a)", {"loss/c": 1.0}, ""])
def test_unknown_columns_name_what_is_available(expression):
    with pytest.raises(ConfigError, match=r"unknown column .*; available are loss/a, loss/b, loss/other, score/quiz"):
        parse(expression)


@pytest.mark.parametrize("expression", ["mean()", {}, {"loss/a": 0.0}, {"loss/a": float("nan")}])
def test_an_objective_needs_a_column_with_weight(expression):
    with pytest.raises(ConfigError, match=r"objective\.expression: .*name at least one"):
        parse(expression)


def test_an_unknown_unit_and_missing_bytes_are_named():
    with pytest.raises(ConfigError, match=r"objective\.unit: expected one of .*, got 'bits'"):
        parse("loss/a", unit="bits")
    with pytest.raises(ConfigError, match="needs the bytes of loss/a; use unit: nats_per_token"):
        parse("loss/a", unit="bits_per_byte")


def test_an_evaluation_set_name_can_be_a_file_and_a_column():
    with pytest.raises(MixtureError, match="evaluation set name 'a b'"):
        EvalSet("a b", 1, 1)
