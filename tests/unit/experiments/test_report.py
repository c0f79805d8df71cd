import base64
import csv
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mixopt.experiments import comparison as comparison_module
from mixopt.experiments.comparison import compare, costs
from mixopt.experiments.report import gain_sentences, mixture_rows, write_report
from mixopt.mixture import Mixture
from mixopt.observation import Role, Trial
from mixopt.study import Study
from tests.unit.experiments.finished_study import (
    EVAL_SETS,
    HEADER,
    NAMES,
    finished_study,
    losses,
    run,
    started_study,
)

VOID = {"meta", "link", "br", "hr", "img", "input", "use"}


class Page(HTMLParser):
    """Collects attributes and text, and checks that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.attributes, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def values(self, *names):
        return [value for _, name, value in self.attributes if name in names]


def report(study, tmp_path, **options):
    return write_report(study, tmp_path / "report.html", **options).read_text(encoding="utf-8")


def objective_of(study, label):
    return next(c for c in compare(study) if (c.label, c.column) == (label, "objective"))


def factor():
    """What a loss shifted by one nat adds to the objective, a mean of two losses in bits per byte."""
    return (EVAL_SETS[0].bits_per_byte + EVAL_SETS[1].bits_per_byte) / 2


def gap():
    """Noise-free objective of uniform minus recommended."""
    study_losses = [losses(m.weights, "top") for m in (Mixture.uniform(NAMES), Mixture(NAMES, [0.25, 0.4, 0.25, 0.1]))]
    return sum((study_losses[0][s.name] - study_losses[1][s.name]) * s.bits_per_byte for s in EVAL_SETS[:2]) / 2


def test_difference_is_paired_by_seed_and_its_error_pooled(tmp_path):
    same = (0.10, -0.10, 0.30)
    noise = {"recommended": same, "natural": same, "uniform": (0.11, -0.06, 0.34)}
    comparison = objective_of(finished_study(tmp_path, seeds=(1, 2, 3), noise=noise), "uniform")
    # Paired: 0.01, 0.04, 0.04 beyond the gap, however noisy the seeds. Residual sum of squares of the
    # two-way layout: 2/3 of 0.0006, over (3 - 1)(3 - 1) degrees of freedom.
    assert comparison.difference == pytest.approx(gap() + 0.03 * factor())
    assert comparison.standard_error == pytest.approx((2 * 0.0001 / 3) ** 0.5 * factor())
    assert (comparison.num_pairs, comparison.freedom) == (3, 4)


def test_standard_error_is_that_of_least_squares(tmp_path):
    """A reference: fit contender and seed effects by least squares, look at the residual."""
    rng = np.random.default_rng(0)
    noise = {label: tuple(rng.normal(0, 0.1, 4)) for label in ("recommended", "natural", "uniform")}
    study = finished_study(tmp_path, seeds=(1, 2, 3, 4), noise=noise)
    design = np.array([[*np.eye(3)[c], *np.eye(4)[r]] for c in range(3) for r in range(4)])
    values = np.array([value for label in noise for value in noise[label]])
    residual = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    expected = (2 * (residual @ residual) / 6 / 4) ** 0.5 * factor()
    assert objective_of(study, "natural").standard_error == pytest.approx(expected)


def test_beyond_noise_is_a_five_percent_test(tmp_path):
    """Over 400 draws without any effect, the share called clear is 0.05 within four standard errors."""
    rng, clear, num = np.random.default_rng(1), 0, 400
    for _ in range(num):
        results = [{seed: rng.normal() for seed in (1, 2)} for _ in range(3)]
        variance, freedom = comparison_module._noise(results)
        difference = np.mean([results[1][s] - results[0][s] for s in (1, 2)])
        clear += abs(difference) >= comparison_module.student_95(freedom) * (2 * variance / 2) ** 0.5
    assert abs(clear / num - 0.05) < 4 * (0.05 * 0.95 / num) ** 0.5


def test_mean_and_spread_are_over_seeds(tmp_path):
    noise = {"recommended": (0.1, -0.1), "natural": (0, 0), "uniform": (0, 0)}
    comparison = objective_of(finished_study(tmp_path, noise=noise), "recommended")
    assert comparison.spread == pytest.approx(0.1 * 2**0.5 * factor())
    assert comparison.mean == pytest.approx(comparison.predicted_mean - 0.02 * factor())
    assert comparison.predicted_std == pytest.approx(0.03)


def test_columns_are_in_the_unit_of_the_objective(tmp_path):
    study = finished_study(tmp_path, noise=dict.fromkeys(("recommended", "natural", "uniform"), (0, 0)))
    comparison = next(c for c in compare(study) if (c.label, c.column) == ("uniform", "loss/code"))
    nats = losses(Mixture.uniform(NAMES).weights, "top")["code"]
    assert comparison.mean == pytest.approx(nats * EVAL_SETS[1].bits_per_byte)
    assert comparison.predicted_mean == pytest.approx((nats + 0.02) * EVAL_SETS[1].bits_per_byte)


def test_every_column_of_the_objective_is_compared_for_every_contender(tmp_path):
    keys = [(c.column, c.label) for c in compare(finished_study(tmp_path))]
    labels = ("recommended", "natural", "uniform")
    assert keys == [(c, label) for c in ("objective", "loss/jargon", "loss/code") for label in labels]


def test_validation_runs_of_an_older_recommendation_do_not_count(tmp_path):
    study = finished_study(tmp_path)
    before = objective_of(study, "recommended")
    old = Trial("old", Role.VALIDATION, Mixture.vertex(NAMES, "web"), "top", 101, "validation", label="recommended")
    run(study, [old])
    assert objective_of(study, "recommended") == before


@pytest.mark.parametrize(
    ("uniform_noise", "phrase"),
    [((0.0, 0.0), "it wins beyond noise"), ((-0.3, -0.3), "it loses beyond noise"), ((-0.3, 0.3), "within noise")],
)
def test_the_gain_is_said_plainly_also_when_there_is_none(tmp_path, uniform_noise, phrase):
    study = finished_study(tmp_path, noise={"recommended": (0, 0), "natural": (0, 0), "uniform": uniform_noise})
    sentence = next(s for s in gain_sentences(study, compare(study)) if s.startswith("Against uniform"))
    assert phrase in sentence


def test_one_seed_gives_no_standard_error(tmp_path):
    study = finished_study(tmp_path, seeds=(1,), noise={"recommended": (0,), "natural": (0,), "uniform": (0,)})
    comparison = objective_of(study, "uniform")
    assert (comparison.standard_error, comparison.spread, comparison.is_clear) == (None, None, False)
    assert "no standard error" in " ".join(gain_sentences(study, compare(study)))


def test_the_weight_of_the_evidence_is_said(tmp_path):
    study = finished_study(tmp_path)
    said = " ".join(gain_sentences(study, compare(study)))
    assert "2 degrees of freedom" in said
    assert "4.3 standard errors" in said


def test_compare_is_empty_before_a_recommendation(tmp_path):
    assert compare(started_study(tmp_path)) == []


def test_costs_add_up_to_the_charge_of_all_trials(tmp_path):
    study = finished_study(tmp_path)
    total = sum(trial.price(HEADER.ladder) for trial in study.trials)
    assert sum(phase.cost for phase in costs(study)) == pytest.approx(total)
    assert [phase.role for phase in costs(study)] == ["expert", "search", "validation"]


def test_epochs_are_weight_times_length_over_available_tokens(tmp_path):
    python = mixture_rows(finished_study(tmp_path), target_tokens=3_000_000)[1]
    assert python["epochs_target"] == pytest.approx(0.4 * 3_000_000 / 150_000)
    assert python["epochs_proxy"] == pytest.approx(0.4 * 512_000 / 150_000)


def test_report_is_one_file_without_outside_resources(tmp_path):
    text = report(finished_study(tmp_path), tmp_path, target_tokens=2_000_000)
    assert not re.search(r"https?://|//cdn|@import|<script|<link|<iframe", text)
    links = Page(text).values("href", "src", "xlink:href", "srcset", "action")
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)


def test_ids_are_unique_and_every_reference_resolves(tmp_path):
    text = report(finished_study(tmp_path), tmp_path)
    page = Page(text)
    ids = page.values("id")
    references = [link[1:] for link in page.values("href", "xlink:href") if link.startswith("#")]
    references += re.findall(r"url\(#([^)]+)\)", text)
    assert len(ids) == len(set(ids))
    assert references
    assert set(references) <= set(ids)


def test_user_text_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    text = report(finished_study(tmp_path, note=evil), tmp_path)
    assert evil not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;b&gt;mid&lt;/b&gt;" in text


def test_every_trial_is_in_the_table(tmp_path):
    study = finished_study(tmp_path)
    text = report(study, tmp_path)
    assert all(f'<th scope="row">{trial.id}</th>' in text for trial in study.trials)


def test_the_numbers_can_be_downloaded(tmp_path):
    study = finished_study(tmp_path)
    links = [link for link in Page(report(study, tmp_path)).values("href") if link.startswith("data:text/csv")]
    tables = [list(csv.DictReader(io.StringIO(base64.b64decode(link.partition(",")[2]).decode()))) for link in links]
    runs = tables[0]
    assert len(runs) == len(study.observations)
    assert float(runs[0]["weight/web"]) == 1.0
    assert {len(table) for table in tables[1:]} == {len(study.trials), 4, 9, 3}


def test_figures_are_described_and_tables_have_captions(tmp_path):
    text = report(finished_study(tmp_path), tmp_path)
    assert text.count('role="img" aria-label="') == text.count("<figure>") == 5
    assert text.count("<caption>") == text.count("<table>")
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_unfinished_study_gets_a_report_that_says_what_is_missing(tmp_path):
    text = report(started_study(tmp_path), tmp_path)
    assert "This study is not finished" in text
    assert "no mixture is recommended yet" in text
    assert "1 of 14 trials are not finished" in text


def test_study_without_any_trial_gets_a_report(tmp_path):
    study = Study(tmp_path)
    study.begin(HEADER)
    assert "No trial has been proposed yet" in report(study, tmp_path)


def test_equal_ledgers_give_equal_reports(tmp_path):
    finished_study(tmp_path / "a")
    assert report(Study(tmp_path / "a"), tmp_path) == report(Study(tmp_path / "a"), tmp_path)
