"""What a study shows, in sentences and rows: gains, next steps, what is missing. Free of any drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mixopt.mixture import Mixture
from mixopt.service import RECOMMENDED
from mixopt.study import Study

from .comparison import Comparison, contenders, costs, direction, measured, student_95, unit_label
from .drawing import listed, percent, several

# Up to about 4 passes repeated text is worth nearly as much as new text (Muennighoff et al., arXiv:2305.16264, Section 6).
_WORTHWHILE_EPOCHS = 4
_MOST_SEEDS = 30
_MOST_TYPED = 12  # weights in a command that a person still reads


def natural_of(study: Study) -> Mixture | None:
    """Return the natural mixture, or None where the sizes of the domains are not known."""
    domains = study.header.domains
    return Mixture.natural(domains) if all(domain.num_tokens for domain in domains) else None


def target_tokens_of(study: Study) -> int | None:
    """Return the length of the training that the mixture is for, if the study says it."""
    found = study.header.settings.get("constraints", {}).get("target_tokens")
    return int(found) if found else None


def mixture_rows(study: Study, target_tokens: int | None = None) -> list[dict[str, Any]]:
    """Return one row per domain: weights of recommended, natural and uniform, and passes over its text."""
    header, advice, natural = study.header, study.recommendation, natural_of(study)
    weights = advice.mixture.as_dict() if advice else {}
    top = header.ladder.target.num_tokens
    rows = []
    for domain in header.domains:
        weight = weights.get(domain.name, 0.0) if advice else None
        passes = None if weight is None or not domain.num_tokens else weight / domain.num_tokens
        rows.append(
            {
                "domain": domain.name,
                "recommended": weight,
                "natural": natural and natural.as_dict()[domain.name],
                "uniform": 1 / len(header.domains),
                "tokens": domain.num_tokens or None,
                "epochs_proxy": None if passes is None or not top else passes * top,
                "epochs_target": None if passes is None or not target_tokens else passes * target_tokens,
            }
        )
    return rows


def gain_sentences(study: Study, comparisons: Sequence[Comparison]) -> list[str]:
    """Say plainly what the validation runs show about each baseline, also when it is nothing."""
    unit, sentences = unit_label(study), []
    gains = gains_of(comparisons)
    for c in gains:
        if c.difference is None:
            sentences.append(f"The recommended mixture was not measured against {c.label}.")
            continue
        amount = f"{abs(c.difference):.4f} {unit}"
        word = "lower" if c.difference > 0 else "higher"
        error = "" if c.standard_error is None else f" (standard error {c.standard_error:.4f})"
        outcome = {"better": "it wins", "worse": "it loses", "equal": "it ties"}[direction(c.difference)]
        end = f"{outcome} beyond noise" if c.is_clear else "that is within noise: no difference is shown"
        if c.standard_error is None:
            end = "one seed gives no standard error, so this shows no more than a direction"
        sentences.append(f"Against {c.label}, the recommended mixture is {amount} {word}{error}; {end}.")
    freedom = max((c.freedom for c in gains), default=0)
    if freedom:
        sentences.append(
            f"Standard errors are pooled over the contenders and rest on {freedom} degree{'s' if freedom > 1 else ''} of freedom; "
            f"beyond noise means {student_95(freedom):.1f} standard errors, the 95% level of Student's t."
        )
    return sentences


def gains_of(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the objectives of those the recommended mixture is compared with."""
    return [c for c in comparisons if c.column == "objective" and c.label != RECOMMENDED]


def next_steps(study: Study, comparisons: Sequence[Comparison], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return at most two sentences on what would help most."""
    if missing(study):
        return [_resume(study)]
    steps = [
        f"Against {c.label} the difference is within noise; validating with {_seeds_needed(c)} seeds would settle one of this size."
        for c in gains_of(comparisons)
        if c.standard_error and c.difference and not c.is_clear and _seeds_needed(c) <= _MOST_SEEDS
    ][:1]
    steps += [
        f"{row['domain']} would be read {row['epochs_target']:.1f} times; beyond about {_WORTHWHILE_EPOCHS} passes "
        "repeated text teaches less: add text, or cap it with constraints.max_epochs."
        for row in sorted(rows, key=lambda row: -(row["epochs_target"] or 0))
        if (row["epochs_target"] or 0) > _WORTHWHILE_EPOCHS
    ][:1]
    advice = study.recommendation
    std = advice.std.get("objective") if advice else None
    if advice and advice.regret_bound is not None and std is not None and advice.regret_bound > 2 * std:
        steps.append(
            f"The regret bound ({advice.regret_bound:.4f}) is more than twice the predicted standard deviation "
            f"({std:.4f}): a larger search.budget may still find a better mixture."
        )
    return steps[:2] or [_test_it(study)]


def commands(study: Study) -> list[tuple[str, str]]:
    """Return (what for, command) of what is typed next."""
    from .outputs import round_weights  # which writes the report

    name = shown_directory(study)
    external, advice = study.header.external, study.recommendation
    go_on = f"mixopt suggest {name} -n 4 --out next.csv" if external else f"mixopt run {name}"
    shown = [] if external and advice and not missing(study) else [("go on with the study", go_on)]
    if advice is None:
        return shown
    mixture = ",".join(f"{k}={w:g}" for k, w in round_weights(advice.mixture, 3).items() if w)
    taken = [("take the mixture into your trainer", f"mixopt export {name} --format megatron")]
    if len(study.header.domains) <= _MOST_TYPED:
        taken.append(("ask about this or another mixture", f"mixopt predict {name} --mixture {mixture}"))
    return [*shown, *taken] if missing(study) else [*taken, ("go on after a change of the study file", go_on)]


def shown_directory(study: Study) -> str:
    """Return the run directory as it is typed: `runs/NAME` where it is the default one."""
    path = study.files.path
    return f"runs/{path.name}" if path.parent.name == "runs" else str(path)


def missing(study: Study) -> list[str]:
    """Say what a finished study has and this one has not."""
    found, history = [], study.history()
    if history.pending:
        found.append(f"{len(history.pending)} of {len(history.trials)} trials are not finished")
    if not study.stopped and not study.header.external:  # the user ends an external search
        found.append("the search has not ended")
    if study.recommendation is None:
        found.append("no mixture is recommended yet")
    elif any(not measured(study, contender) for contender in contenders(study)):
        found.append("some contenders have no validation run yet")
    return found


def in_short(study: Study, comparisons: Sequence[Comparison], steps: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return (section, question, answer) of the five questions, a sentence each."""
    return [
        ("mixture", "What mixture?", _what_mixture(study)),
        ("gain", "What gain?", _what_gain(study, comparisons)),
        ("certainty", "How sure?", _how_sure(study)),
        ("cost", "At what cost?", _what_cost(study)),
        ("next", "What next?", steps[0]),
    ]


def _what_mixture(study: Study) -> str:
    if study.recommendation is None:
        return "None is recommended yet."
    weights = sorted(study.recommendation.mixture.as_dict().items(), key=lambda item: -item[1])
    return listed([f"{percent(w)} {name}" for name, w in weights if w > 0.0005], 6) + "."


def _what_gain(study: Study, comparisons: Sequence[Comparison]) -> str:
    gains = [c for c in gains_of(comparisons) if c.difference is not None]
    if not gains:
        return "Not measured yet." if not study.header.external else "Not measured: validation is up to your trainer."
    parts = []
    for c in gains:
        assert c.difference is not None
        clear = "beyond noise" if c.is_clear else "one seed" if c.standard_error is None else "within noise"
        parts.append(f"{abs(c.difference):.3f} {direction(c.difference)} than {c.label} ({clear})")
    return f"{listed(parts)}, in {unit_label(study)}."


def _how_sure(study: Study) -> str:
    advice, unit = study.recommendation, unit_label(study)
    if advice is None:
        return "Nothing is known before there is a recommendation."
    if "objective" not in advice.mean:
        return "Nothing was predicted: no run was measured at the target rung."
    said = f"Predicted {advice.mean['objective']:.4f} ± {advice.std.get('objective', math.nan):.4f} {unit}"
    if advice.regret_bound is None:
        return f"{said}; {advice.recommended_by} does not say how much better another mixture may be."
    said += f"; with probability 0.95 no mixture is better by more than {advice.regret_bound:.4f}"
    if advice.best_probability is not None:
        said += f", with probability {advice.best_probability:.2f} none by more than the noise of one run"
    return f"{said}, if the surrogate is right."


def _what_cost(study: Study) -> str:
    phases = costs(study)
    if not phases:
        return "Nothing has been run yet."
    seconds = sum(p.process_seconds for p in phases)
    time = f", {in_time(seconds)} of CPU time" if seconds else ""
    return f"{several(sum(p.num_trials for p in phases), 'run')} worth {sum(p.cost for p in phases):.1f} of the top rung{time}."


def in_time(seconds: float) -> str:
    """Return a duration in a unit that fits."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _resume(study: Study) -> str:
    if study.header.external:
        return "Train what is suggested and tell the results: mixopt tell recommends the mixture after every batch."
    return "Continue the study with the command that started it: mixopt run resumes where it stopped."


def _test_it(study: Study) -> str:
    if study.header.external:
        return "Train the target model on this mixture, beside a run on the mixture you would have used without it."
    return "Train the target model on this mixture, or test it first on a larger proxy: add a rung to the ladder and run again."


def _seeds_needed(comparison: Comparison) -> int:
    """Return the seeds at which a difference of this size would be two standard errors, about the 95% level."""
    spread = (comparison.standard_error or 0.0) * math.sqrt(comparison.num_pairs)
    return math.ceil((2 * spread / abs(comparison.difference or math.inf)) ** 2)
