"""A finished synthetic study: a ledger like a real one, without any training."""

import json
from pathlib import Path

import numpy as np

from mixopt.config import validate
from mixopt.experiments.build import Location, save_config
from mixopt.fidelity import Ladder
from mixopt.mixture import Domain, Mixture
from mixopt.objective import EvalSet
from mixopt.observation import Observation, Role, Status, Trial
from mixopt.proposal import Contender, Recommendation
from mixopt.protocols import TrialResult
from mixopt.study import Header, Study

DOMAINS = (
    Domain("web", 600_000, 900, 2_000_000),
    Domain("python", 150_000, 200, 450_000),
    Domain("math", 90_000, 150, 300_000),
    Domain("spanish", 160_000, 250, 500_000),
)
NAMES = tuple(domain.name for domain in DOMAINS)
EVAL_SETS = (EvalSet("jargon", 1000, 2500), EvalSet("code", 1000, 2000), EvalSet("quiz", 1000, 4000))
LADDER = Ladder.from_flops(
    [
        ("low", "d1", 100_000, 128_000, 1e9),
        ("mid", "d1", 100_000, 256_000, 2e9),
        ("top", "d1", 100_000, 512_000, 4e9),
    ],
    fixed_cost=0.05,
)
HEADER = Header(
    name="three-sets",
    seed=0,
    domains=DOMAINS,
    eval_sets=EVAL_SETS,
    ladder=LADDER,
    tokenizer="t0",
    objective={"expression": "mean(loss/jargon, loss/code)", "unit": "bits_per_byte"},
    budget=6.0,
    experts_fidelity="top",
)
BEST = np.array([0.25, 0.40, 0.25, 0.10])


def losses(weights, fidelity, *, noise=0.0):
    """Nats per token: lowest near `BEST`, higher at lower rungs."""
    offset = {"low": 0.8, "mid": 0.35, "top": 0.0}[fidelity]
    distance = float(np.square(np.asarray(weights) - BEST).sum())
    pull = {"jargon": 1.0 - 0.5 * weights[0], "code": 1.4 - 0.9 * weights[1], "quiz": 1.0 + 0.2 * weights[3]}
    return {name: 2.0 + offset + 0.4 * pull[name] + distance + noise for name in pull}


def observe(trial, *, noise=0.0):
    """One observation per rung the trial passes."""
    observations = []
    for rung in LADDER.nested(trial.fidelity, above=trial.parent_fidelity):
        loads = [[0.3, 0.3, 0.2, 0.2], [0.1, 0.2, 0.3, 0.4]]
        epochs = {
            d.name: float(w) * rung.num_tokens / d.num_tokens
            for d, w in zip(DOMAINS, trial.mixture.weights, strict=True)
        }
        observations.append(
            Observation(
                trial.id, rung.name, losses(trial.mixture.weights, rung.name, noise=noise), scores={"facts": 0.5},
                cost=0.3, flops=rung.flops, process_seconds=12.0, wall_seconds=20.0, router_loads=loads, epochs=epochs,
            )
        )  # fmt: skip
    return tuple(observations)


def run(study, trials, *, noise=0.0):
    """Propose, start and finish trials."""
    study.propose(trials)
    study.set_status([trial.id for trial in trials], Status.RUNNING)
    for trial in trials:
        study.finish(TrialResult(trial.id, Status.DONE, observe(trial, noise=noise)))


def started_study(directory: Path, *, note: str = "loss is not finite") -> Study:
    """Experts and search are done, one trial still runs; nothing is recommended."""
    study = Study(directory)
    study.begin(HEADER)
    run(study, [expert(name) for name in NAMES])
    rng = np.random.default_rng(0)
    mixtures = [Mixture.normalized(NAMES, rng.dirichlet(2 * np.ones(4))) for _ in range(8)]
    mixtures.append(Mixture.normalized(NAMES, BEST + 0.02))
    rungs = ["low", "low", "top", "mid", "top", "low", "mid", "top", "top"]
    batch = [search(i, mixture, rung) for i, (mixture, rung) in enumerate(zip(mixtures, rungs, strict=True))]
    run(study, batch[:6])
    study.propose(batch[6:])
    study.set_status([batch[6].id], Status.FAILED, "worker lost")
    study.finish(TrialResult(batch[7].id, Status.ABANDONED, (), note))
    study.finish(TrialResult(batch[8].id, Status.DONE, observe(batch[8])))
    further = Trial(
        "search-009", Role.SEARCH, batch[3].mixture, "top", 11, "mfbo", "goes on from search-003 & <b>mid</b>", 0.01,
        parent="search-003", parent_kind="continued", parent_fidelity="mid",
    )  # fmt: skip
    study.propose([further])
    study.set_status([further.id], Status.RUNNING)
    return study


def finished_study(directory: Path, *, note: str = "loss is not finite", seeds=(101, 102), noise=None) -> Study:
    """All phases are done; `noise` is {label: one number per validation seed}, nats per token."""
    study = started_study(directory, note=note)
    study.finish(TrialResult("search-009", Status.DONE, observe(study.trial("search-009"))))
    study.stop("the budget is spent")
    mixtures = {
        "recommended": Mixture.normalized(NAMES, BEST),
        "natural": Mixture.natural(DOMAINS),
        "uniform": Mixture.uniform(NAMES),
    }
    contenders = [Contender(label, mixture, *prediction(mixture)) for label, mixture in mixtures.items()]
    mean, std = prediction(mixtures["recommended"])
    study.recommend(
        Recommendation(mixtures["recommended"], "top", mean, std, 0.012, ("search-004", "search-008"), "mfbo", "lowest posterior mean"),
        contenders,
    )  # fmt: skip
    noise = noise or {"recommended": (0.01, -0.01), "natural": (0.02, -0.005), "uniform": (0.015, -0.01)}
    for label, mixture in mixtures.items():
        for number, seed in enumerate(seeds):
            trial = Trial(
                f"validation-{label}-{number}", Role.VALIDATION, mixture, "top", seed, "validation", label=label
            )
            run(study, [trial], noise=noise[label][number])
    for trial in study.trials:
        write_curve(study, trial.id)
    return study


def with_config(study: Study) -> Study:
    """The same study with the study file beside it that its optimizer is made from."""
    fields = {
        "name": HEADER.name, "domains": {name: {"path": f"{name}.txt"} for name in NAMES}, "objective": HEADER.objective,
    }  # fmt: skip
    save_config(Location(validate(fields, "study.yaml"), study.files.path))
    return study


def expert(name: str) -> Trial:
    """The data expert of one domain."""
    return Trial(f"expert-{name}", Role.EXPERT, Mixture.vertex(NAMES, name), "top", 7, "experts", label=name)


def search(number: int, mixture: Mixture, rung: str) -> Trial:
    """One search trial."""
    return Trial(f"search-{number:03d}", Role.SEARCH, mixture, rung, 11, "mfbo", "highest expected gain per cost", 0.02)


def prediction(mixture: Mixture):
    """Mean and std as a surrogate would give: a little off."""
    columns = {f"loss/{name}": value + 0.02 for name, value in losses(mixture.weights, "top").items()}
    factors = {s.name: s.bits_per_byte for s in EVAL_SETS}
    columns["objective"] = sum(columns[f"loss/{name}"] * factors[name] / 2 for name in ("jargon", "code"))
    return columns, dict.fromkeys(columns, 0.03)


def write_curve(study: Study, trial_id: str, *, num_steps: int = 20) -> None:
    """A training curve whose last line was torn by a crash."""
    path = study.files.trial(trial_id) / "curve.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": s, "tokens": 1000 * s, "loss": 6.0 - 0.1 * s}) for s in range(num_steps)]
    path.write_text("\n".join([*lines, '{"step": 99, "lo']), encoding="utf-8")
