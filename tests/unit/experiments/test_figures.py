import re
import xml.etree.ElementTree as ElementTree

import pytest

from mixopt.experiments import figures
from mixopt.observation import Role, Trial
from mixopt.study import Study
from tests.unit.experiments.finished_study import HEADER, expert, finished_study, run, started_study

MAKERS = [
    figures.mixture_bars,
    figures.predicted_and_measured,
    figures.convergence,
    figures.expert_losses,
    figures.compute,
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return finished_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def drawn(study):
    return {maker.__name__: maker(study) for maker in MAKERS}


@pytest.mark.parametrize("name", [maker.__name__ for maker in MAKERS])
def test_figure_is_inline_svg_with_text_in_the_color_of_the_page(drawn, name):
    svg = drawn[name].svg
    ElementTree.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
    assert svg.startswith("<svg")
    assert "<text" in svg
    assert "currentColor" in svg
    assert not re.search(r"http|DejaVu|<metadata|fill: #000000|#010203", svg)
    assert "fill: #ffffff; stroke" not in svg


@pytest.mark.parametrize("name", [maker.__name__ for maker in MAKERS])
def test_figure_has_title_sentence_and_description(drawn, name):
    figure = drawn[name]
    assert figure.title
    assert figure.sentence.endswith(".")
    assert len(figure.alt) > 20


def test_equal_studies_give_equal_drawings(study, drawn):
    assert figures.convergence(Study(study.files.path)) == drawn["convergence"]


def test_mixture_sentence_names_the_largest_moves(drawn):
    assert (
        "moves 41 % of the tokens: most to python (+25 points), most from web (-35 points)"
        in drawn["mixture_bars"].sentence
    )


def test_validation_sentence_says_what_the_evidence_weighs(drawn):
    sentence = drawn["predicted_and_measured"].sentence
    assert "degrees of freedom" in sentence
    assert "9 of 9 measured means" in sentence


def test_search_sentence_gives_the_best_measured_objective(study, drawn):
    assert f"{study.best()[1]:.4f} bits per byte" in drawn["convergence"].sentence
    assert "6 further runs" in drawn["convergence"].sentence


def test_expert_sentence_names_the_best_expert(drawn):
    assert "python is best" in drawn["expert_losses"].sentence


def test_compute_sentence_adds_up_the_charges(study, drawn):
    total = sum(trial.price(HEADER.ladder) for trial in study.trials)
    assert f"In all {total:.2f} top-rung runs" in drawn["compute"].sentence


def test_unfinished_study_gets_the_figures_it_has_data_for(tmp_path):
    titles = [figure.title for figure in figures.all_figures(started_study(tmp_path))]
    assert titles == ["The search", "Data experts", "Where the compute went"]


def test_study_without_trials_gets_no_figure(tmp_path):
    study = Study(tmp_path)
    study.begin(HEADER)
    assert figures.all_figures(study) == []


def test_search_without_a_result_says_so(tmp_path):
    study = Study(tmp_path)
    study.begin(HEADER)
    study.propose([Trial("search-000", Role.SEARCH, expert("web").mixture, "low", 1, "mfbo")])
    assert "None of 1 search runs" in figures.convergence(study).sentence


def test_experts_are_drawn_when_one_is_still_missing(tmp_path):
    study = Study(tmp_path)
    study.begin(HEADER)
    run(study, [expert("web"), expert("math")])
    assert figures.expert_losses(study) is not None
    assert "python" not in figures.expert_losses(study).svg
