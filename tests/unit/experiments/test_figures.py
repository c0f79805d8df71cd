"""Figures: drawings that stand in a page, sentences that follow from the data, numbers that are the study's."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mixopt.experiments import figures, held_out, whatif
from mixopt.experiments.drawing import Figure, Missing
from mixopt.experiments.figures_calibration import _coverage
from mixopt.experiments.figures_domains import load_distance
from mixopt.experiments.figures_model import _between
from mixopt.experiments.figures_tradeoffs import pareto
from mixopt.experiments.report import optimizer_of
from mixopt.experiments.whatif import STEP, WhatIf
from mixopt.mixture import Mixture
from mixopt.observation import Observation, Role, Status, Trial
from mixopt.proposal import Contender
from mixopt.protocols import TrialResult
from mixopt.study import Study
from tests.unit.experiments.finished_study import HEADER, NAMES, expert, finished_study, run, started_study, with_config

DRAWN = (
    "mixture", "validation", "responses", "around", "calibration", "effects", "compute", "search", "trials", "trade-offs",
    "experts",
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return with_config(finished_study(tmp_path_factory.mktemp("study") / "run"))


@pytest.fixture(scope="module")
def around(study):
    return WhatIf.of(study, optimizer_of(study))


@pytest.fixture(scope="module")
def made(study, around):
    return {figure.name: figure for figure in figures.all_figures(study, around.optimizer)}


def sentence_of(figure):
    return figure.reason if isinstance(figure, Missing) else figure.sentence


# --- drawings ----------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_inline_svg_that_says_what_it_is(made, name):
    figure = made[name]
    root = ElementTree.fromstring(figure.svg)
    ids = {element.get("id"): element for element in root.iter() if element.get("id")}
    title, description = (ids[i] for i in root.get("aria-labelledby").split())
    assert title.text == figure.title
    assert len(description.text) > 20
    assert root.get("role") == "img"
    assert "currentColor" in figure.svg
    assert not re.search(r"https?:|NaN|nan|\binf\b", figure.svg)


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_stays_inside_its_frame(made, name):
    root = ElementTree.fromstring(made[name].svg)
    width, height = (float(v) for v in root.get("viewBox").split()[2:])
    for element in root.iter():
        for key, most in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            assert -8 <= float(element.get(key, 0)) <= most + 1, ElementTree.tostring(element)


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_has_a_sentence_and_numbers(made, name):
    assert made[name].sentence.endswith(".")
    assert made[name].rows
    assert made[name].csv.count("\n") == len(made[name].rows) + 1


def test_names_are_unique_and_what_is_missing_has_a_reason(made):
    assert len(made) == 12
    assert isinstance(made["redundancy"], Missing)
    assert "held-out text" in made["redundancy"].reason


def test_equal_studies_give_equal_figures(study, made):
    again = {figure.name: figure for figure in figures.all_figures(Study(study.files.path), optimizer_of(study))}
    assert again == made


def test_user_text_is_escaped_inside_the_drawings(tmp_path):
    evil = "<script>alert('x')</script>"
    study = finished_study(tmp_path)
    study.recommend(study.recommendation, [*study.contenders, Contender(evil, Mixture.uniform(NAMES), *2 * ({},))])
    for figure in figures.all_figures(study):
        assert "<script" not in getattr(figure, "svg", "")
    assert any("&lt;script" in getattr(figure, "svg", "") for figure in figures.all_figures(study))


# --- sentences ---------------------------------------------------------------


def test_mixture_sentence_names_the_largest_moves(made):
    assert (
        "moves 41 % of the tokens: most to python (+25 points), most from web (-35 points)" in made["mixture"].sentence
    )


@pytest.mark.parametrize(
    ("uniform_noise", "phrase"),
    [((0.0, 0.0), "it wins beyond noise"), ((-0.3, 0.3), "that is within noise: no difference is shown")],
)
def test_validation_sentence_follows_the_data(tmp_path, uniform_noise, phrase):
    study = finished_study(tmp_path, noise={"recommended": (0, 0), "natural": (0, 0), "uniform": uniform_noise})
    assert phrase in figures.predicted_and_measured(study).sentence


def test_search_sentence_gives_the_best_measured_objective(study, made):
    best = study.best()
    assert f"{best[1]:.4f} bits per byte ({best[0].id})" in made["search"].sentence
    assert "6 further runs" in made["search"].sentence


def test_expert_sentence_names_the_best_expert(made):
    assert "python is best" in made["experts"].sentence


def test_compute_sentence_adds_up_the_charges(study, made):
    total = sum(trial.price(HEADER.ladder) for trial in study.trials)
    assert f"In all {total:.2f} top-rung runs" in made["compute"].sentence


def test_trade_offs_are_left_out_for_one_column_and_say_when_columns_agree(study, made, tmp_path):
    single = Study(tmp_path)
    single.begin(replace(HEADER, objective={"expression": "loss/jargon", "unit": "bits_per_byte"}))
    assert "one column only" in figures.trade_offs(single).reason
    assert "are not beaten on all 2 columns at once" in made["trade-offs"].sentence


@pytest.mark.parametrize(
    ("inside", "num", "words"),
    [(9, 10, "as right"), (3, 10, "too sure"), (60, 60, "too careful"), (54, 60, "as right")],
)
def test_coverage_is_judged_by_the_binomial(inside, num, words):
    assert words in _coverage(inside, num)


# --- numbers -----------------------------------------------------------------


def test_mixture_numbers_are_the_studys(study, made):
    assert {row["domain"]: row["recommended"] for row in made["mixture"].rows} == study.recommendation.mixture.as_dict()
    for row in made["mixture"].rows:
        assert row["low"] <= row["recommended"] <= row["high"]


def test_trials_and_search_have_a_row_per_search_trial(study, made):
    ids = [t.id for t in study.trials if t.role is Role.SEARCH]
    assert [row["trial"] for row in made["trials"].rows] == [row["trial"] for row in made["search"].rows] == ids
    spent = study.history().of(Role.SEARCH).spent(HEADER.ladder)
    assert made["search"].rows[-1]["cost_so_far"] == pytest.approx(spent)


def test_a_response_curve_is_what_the_optimizer_predicts(study, around):
    curve = next(c for c in around.curves if c.domain == "python")
    rest = {k: w for k, w in around.center.as_dict().items() if k != "python"}
    share = float(curve.shares[3])
    mixture = Mixture.from_mapping(NAMES, {"python": share, **{k: w * (1 - share) / 0.6 for k, w in rest.items()}})
    answer = around.optimizer.predict(study.history(), [mixture], fidelity="top")
    assert curve.mean[3] == pytest.approx(float(answer.mean["objective"][0]))
    assert curve.std[3] == pytest.approx(float(answer.std["objective"][0]))


def test_all_curves_pass_through_the_recommended_mixture(around):
    mean, std = around.believed
    for curve in around.curves:
        place = int(np.argmin(abs(curve.shares - curve.weight)))
        assert curve.shares[place] == pytest.approx(curve.weight)
        assert (curve.mean[place], curve.std[place]) == pytest.approx((mean[0], std[0]))
        assert curve.near[0] <= curve.weight <= curve.near[1]


def test_effects_are_differences_of_predictions_and_those_of_the_objective_add_up(study, around):
    names, columns, effects = around.effects
    moved = (1 - STEP) * around.center.weights + STEP * np.eye(4)[names.index("math")]
    answer = around.optimizer.predict(
        study.history(), [around.center, Mixture.normalized(NAMES, moved)], fidelity="top"
    )
    difference = float(np.diff(answer.mean["objective"])[0])
    assert effects[names.index("math"), columns.index("objective")] == pytest.approx(difference)
    own = [columns.index(c) for c in study.objective.columns]
    assert effects[:, own].mean(axis=1) == pytest.approx(effects[:, -1])


def test_left_out_runs_are_predicted_without_their_mixture(study, around):
    run = around.left_out[0]
    mixture = study.trial(run.trial).mixture
    rest = held_out.without(study.history(), {mixture}, study.objective.columns)
    assert mixture not in [t.mixture for t in rest.of(Role.SEARCH).trials]
    assert len(rest.of(Role.EXPERT).trials) == 4
    answer = around.optimizer.predict(rest, [mixture], fidelity="top")
    assert run.mean == pytest.approx(float(answer.mean["objective"][0]), abs=0.05)
    assert {o.trial for o in around.left_out} <= {t.id for t in study.trials if t.role is Role.SEARCH}


def test_the_triangle_holds_the_corners_and_the_center_is_on_it(around):
    plane = around.triangle
    assert np.allclose(plane.places.sum(axis=1), 1)
    assert len(plane.cells) == 20**2
    assert plane.corners == ("python", "web", "the others") or plane.corners == ("python", "math", "the others")
    assert plane.center.sum() == pytest.approx(1)


def test_bands_of_a_triangle_cover_it_once():
    cell = [(0.0, 0.0, 0.1), (1.0, 0.0, 0.9), (0.3, 1.0, 0.4)]
    edges = [-1.0, 0.2, 0.4, 0.55, 2.0]

    def size(points):
        xs, ys = np.array(points).T if len(points) else (np.zeros(1), np.zeros(1))
        return 0.5 * abs(xs @ np.roll(ys, 1) - ys @ np.roll(xs, 1))

    bands = [size(_between(cell, low, high)) for low, high in pairwise(edges)]
    assert sum(bands) == pytest.approx(0.5)


def test_the_front_is_what_a_search_over_all_pairs_finds():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, size=(60, 3)).astype(float)
    beaten = [any((b <= a).all() and (b < a).any() for b in values) for a in values]
    assert pareto(values).tolist() == [not b for b in beaten]
    order = rng.permutation(60)
    assert pareto(values[order]).tolist() == pareto(values)[order].tolist()
    assert pareto(np.exp(values)).tolist() == pareto(values).tolist()


def test_distance_of_router_loads_is_one_between_strangers_and_nought_to_itself():
    def observe(*layers):
        return Observation("t", "top", {}, router_loads=layers)

    one, other = observe([1.0, 0.0], [0.5, 0.5]), observe([0.0, 1.0], [0.5, 0.5])
    assert load_distance(one, one) == 0
    assert load_distance(one, other) == load_distance(other, one) == pytest.approx(0.5)
    assert load_distance(observe(), one) is None


# --- studies of all kinds ----------------------------------------------------


def test_an_unfinished_study_gets_the_figures_it_has_data_for(tmp_path):
    made = figures.all_figures(started_study(tmp_path))
    assert [f.name for f in made if isinstance(f, Figure)] == ["compute", "search", "trials", "trade-offs", "experts"]
    assert all(f.reason.startswith("Left out: ") and f.reason.endswith(".") for f in made if isinstance(f, Missing))


def test_a_study_without_trials_gets_reasons_only(tmp_path):
    study = Study(tmp_path)
    study.begin(HEADER)
    assert all(isinstance(figure, Missing) for figure in figures.all_figures(study))


def test_a_search_without_a_result_says_so(tmp_path):
    study = Study(tmp_path)
    study.begin(HEADER)
    study.propose([Trial("search-000", Role.SEARCH, expert("web").mixture, "low", 1, "mfbo")])
    assert "None of 1 search run has" in figures.convergence(study).sentence
    study.finish(TrialResult("search-000", Status.ABANDONED, (), "diverged"))
    assert all(figure.title for figure in figures.all_figures(study))


def test_experts_are_drawn_when_one_is_still_missing(tmp_path):
    study = Study(tmp_path)
    study.begin(HEADER)
    run(study, [expert("web"), expert("math")])
    assert figures.expert_losses(study).svg
    assert "python" not in figures.expert_losses(study).csv


def test_a_large_history_is_thinned_for_the_surrogate_and_says_so(study, monkeypatch):
    monkeypatch.setattr(whatif, "_MOST_VALUES", 20)
    monkeypatch.setattr(whatif, "_MOST_TRIALS", 6)
    known = WhatIf(study, optimizer_of(study), study.recommendation.mixture)
    assert 4 <= len(known.history.trials) < len(study.history().trials)
    assert len(known.history.of(Role.EXPERT).trials) == 4
    assert "search trials here" in known.thinned
    assert study.best()[0].id in [t.id for t in known.history.trials]
