"""The composition root: from a study file to a plan, an executor and a tracker.

The only place that knows all four folders. Heavy imports are inside the functions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixopt.config import (
    BUILTIN,
    DomainConfig,
    EvalSetConfig,
    ExternalConfig,
    RunConfig,
    SourceConfig,
    StudyConfig,
    dump_config,
    load_study,
)
from mixopt.constraints import Constraints, Group
from mixopt.errors import ConfigError, StudyError
from mixopt.fidelity import Ladder
from mixopt.identity import fingerprint
from mixopt.mixture import Mixture
from mixopt.objective import Objective
from mixopt.observation import Role, Status, Trial
from mixopt.protocols import Executor, Optimizer, Predictor, Tracker
from mixopt.service import RECOMMENDED, Plan
from mixopt.storage import RunDirectory, read_json, write_text
from mixopt.study import Header, Study
from mixopt.warm_start import WarmStart

if TYPE_CHECKING:
    from mixopt.blocks import Temper
    from mixopt.mde import MDE
    from mixopt.proxies.config import ProxyConfig
    from mixopt.proxies.evaluators import ProxyEvaluator
    from mixopt.proxies.prepare import PreparedText
    from mixopt.proxies.questions import TaskSource
    from mixopt.proxies.text import TextSource
    from mixopt.ray_executor import Resources
    from mixopt.search.pool import Pool

logger = logging.getLogger(__name__)

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Location:
    """A study as named on the command line.

    Attributes:
        study: The study file, validated, with absolute paths.
        directory: Its run directory.
    """

    study: StudyConfig | ExternalConfig
    directory: Path

    @property
    def config(self) -> StudyConfig:
        """The file of a study that mixopt trains itself.

        Raises:
            ConfigError: If the runs of this study are trained elsewhere.
        """
        if isinstance(self.study, ExternalConfig):
            raise ConfigError(
                f"study {self.study.name}: its runs are trained elsewhere (trainer: external); use mixopt suggest and "
                "mixopt tell, and status and predict to look at it"
            )
        return self.study

    @property
    def external(self) -> ExternalConfig:
        """The file of a study whose runs are trained elsewhere.

        Raises:
            ConfigError: If mixopt trains this study itself.
        """
        if isinstance(self.study, StudyConfig):
            raise ConfigError(
                f"study {self.study.name}: mixopt trains its runs itself; use mixopt run, or write a study file with "
                "`trainer: external` to train them elsewhere"
            )
        return self.study


def locate(study: Path, directory: Path | None = None) -> Location:
    """Find configuration and run directory from a study file or a run directory."""
    if study.is_dir():
        if directory is not None and directory.resolve() != study.resolve():
            raise ConfigError(f"{study} is a run directory already; drop --dir")
        if not (study / "study.yaml").exists():
            raise ConfigError(
                f"{study} is no run directory (no study.yaml inside); give a study file or a run directory"
            )
        return Location(load_study(study / "study.yaml"), study.resolve())
    config = load_study(study)
    return Location(config, (directory or Path("runs") / config.name).resolve())


def rung_models(config: StudyConfig, vocab_size: int) -> dict[str, tuple[str, ProxyConfig]]:
    """Return {rung: (model name, shape and recipe)}.

    Rungs of one depth share a recipe, so that a run may be continued to the next: where
    learning rate or batch size follow from a run's length, it is that of the longest.
    With decay a run is good for its own rung only, so every rung is a model of its own.
    """
    from mixopt.proxies.laws import recipe

    models = {}
    for rung in config.ladder:
        depth = rung.depth or config.proxy.depth
        alike = [r.tokens for r in config.ladder if (r.depth or config.proxy.depth) == depth]
        longest = rung.tokens if config.proxy.decay else max(alike)
        model = recipe(vocab_size, {**config.proxy.model_dump(), "depth": depth}, longest)
        models[rung.name] = _model_name(model, rung.tokens if model.decay else None), model
    return models


def proxy_models(config: StudyConfig, vocab_size: int) -> dict[str, ProxyConfig]:
    """Return {model name: shape and recipe} of all rungs."""
    return dict(rung_models(config, vocab_size).values())


def build_ladder(config: StudyConfig, vocab_size: int) -> Ladder:
    """Price the rungs of a study: by what the study file says they cost, else by their FLOPs."""
    from mixopt.proxies.cost import active_params, training_flops

    models = rung_models(config, vocab_size)
    rungs = []
    for rung in config.ladder:
        name, model = models[rung.name]
        rungs.append((rung.name, name, active_params(model), rung.tokens, training_flops(model, rung.tokens)))
    prices = [rung.cost for rung in config.ladder if rung.cost is not None]
    return Ladder.from_flops(rungs, config.search.fixed_cost, prices=prices or None)


def build_warm_start(config: StudyConfig, ladder: Ladder) -> WarmStart | None:
    """Return what seed models are trained on and to which rungs, or None where runs start from scratch."""
    if config.warm_start is None:
        return None
    rungs: dict[str, str] = {}
    for rung in ladder:
        if rung.model not in rungs or rung.name == config.warm_start.fidelity:
            rungs[rung.model] = rung.name
    return WarmStart(config.warm_start.mixture, rungs)


def build_constraints(config: StudyConfig | ExternalConfig, header: Header) -> Constraints:
    """Return the feasible set of a study; also checks the KL reference."""
    limits = config.constraints
    return Constraints.with_epoch_caps(
        header.domains,
        dict(limits.bounds),
        [Group(tuple(g.domains), g.min, g.max) for g in limits.groups],
        target_tokens=limits.target_tokens,
        max_epochs=limits.max_epochs,
    )


def build_baselines(config: StudyConfig, header: Header) -> dict[str, Mixture]:
    """Return the mixtures the recommendation is compared with."""
    known = {"natural": Mixture.natural(header.domains), "uniform": Mixture.uniform(header.domain_names)}
    baselines: dict[str, Mixture] = {name: known[name] for name in config.validation.baselines}
    for label, weights in config.validation.mixtures.items():
        if label in known or label == RECOMMENDED:
            raise ConfigError(f"validation.mixtures.{label}: this label is taken; choose another")
        try:
            baselines[label] = Mixture.from_mapping(header.domain_names, weights)
        except ValueError as error:
            raise ConfigError(f"validation.mixtures.{label}: {error}") from error
    return baselines


def build_optimizer(
    config: StudyConfig | ExternalConfig,
    study_objective: Objective,
    header: Header,
    predictor: Predictor | None,
    *,
    pool: Pool | None = None,
) -> Optimizer:
    """Return the optimizer that the study file names; with a pool it buys only the pool's runs."""
    from mixopt.search.baselines import ListedOptimizer
    from mixopt.search.bayes import MultiFidelityOptimizer
    from mixopt.search.catalog import Task, make

    constraints = build_constraints(config, header)
    if isinstance(config, StudyConfig) and config.search.mixtures is not None:
        pool = _listed(config.search.mixtures, header, constraints)
    if config.search.optimizer == "listed":
        return ListedOptimizer(constraints, header.ladder, study_objective, config.seed, pool)
    if config.search.optimizer != "mfbo":
        return make(config.search.optimizer, Task(constraints, header.ladder, study_objective, config.seed, pool=pool))
    return MultiFidelityOptimizer(
        constraints,
        header.ladder,
        study_objective,
        predictor,
        config.seed,
        # A batch of one's own size says nothing of how many runs a search without experts must start with.
        initial=None if isinstance(config, ExternalConfig) else config.search.batch_size,
        price=config.search.price,
        reference=_kl_reference(config, header),
        kl_weight=config.constraints.kl.weight,
        pool=pool,
    )


def _listed(path: str, header: Header, constraints: Constraints) -> Pool:
    """Return the runs of `search.mixtures`; without a column `fidelity` they are for the top rung."""
    from mixopt.runs import DEFAULT_FIDELITY, read_runs

    from .candidates import Candidates

    table = read_runs(path, measured=False)
    if set(table.fidelities) == {DEFAULT_FIDELITY}:
        table = replace(table, fidelities=(header.ladder.target.name,) * len(table))
    try:
        return Candidates.of(table, header.ladder, constraints).pool
    except ConfigError as error:
        raise ConfigError(f"search.mixtures: {path}: {error}") from error


def _kl_reference(config: StudyConfig | ExternalConfig, header: Header) -> Mixture | None:
    """Return the mixture that `constraints.kl` names; None if it is not known and nothing asks for it."""
    if config.constraints.kl.to == "uniform":
        return Mixture.uniform(header.domain_names)
    known = all(domain.num_tokens for domain in header.domains)
    return Mixture.natural(header.domains) if known else None


def load_predictor(study: Study, *, all_tasks: bool = False) -> MDE:
    """Open the MDE of a study's finished experts.

    Args:
        study: The study.
        all_tasks: Include tasks that are no part of the objective; they make a search several times slower.

    Raises:
        StudyError: If an expert or its scores are missing.
    """
    from mixopt.mde import MDE
    from mixopt.scores_folder import load_scores

    header, files = study.header, study.files
    experts = {t.label: t for t in study.history().trials if t.role is Role.EXPERT and t.status is Status.DONE}
    missing = [name for name in header.domain_names if name not in experts]
    if missing:
        raise StudyError(f"no finished expert for {', '.join(missing)}; run the study to train it")
    used = set(study.objective.columns)
    names = [s.name for s in header.eval_sets if all_tasks or s.kind == "text" or used.intersection(s.columns)]
    index = {name: (read_json(files.expert(name)) or {"scores": {}})["scores"] for name in header.domain_names}
    try:
        keys = [index[domain][name] for domain in header.domain_names for name in names]
    except KeyError as error:
        raise StudyError(f"experts have no scores on {error}; run the study to score them") from error
    scores = load_scores(files.scores, header.domain_names, eval_sets=names, keys=keys)
    return MDE(header.domain_names, scores, temper=_temper(header))


def _temper(header: Header) -> Temper:
    from mixopt.blocks import Temper

    settings = header.settings.get("experts", {})
    return Temper(settings.get("temper", 0.0), settings.get("cap") or math.inf)


def open_optimizer(location: Location, study: Study) -> Optimizer:
    """Return the optimizer of a study that has been started, for predictions."""
    if isinstance(location.study, ExternalConfig):
        return build_optimizer(location.study, study.objective, study.header, None)
    try:
        predictor: Predictor | None = load_predictor(study, all_tasks=True)
    except StudyError as error:
        logger.warning("mde unavailable reason=%s; predictions do without it", error)
        predictor = None
    return build_optimizer(location.config, study.objective, study.header, predictor)


def prepare(location: Location, progress: Callable[[str], None] = lambda _: None) -> tuple[Header, ProxyEvaluator]:
    """Tokenize the text and describe the study; trains nothing.

    Raises:
        ConfigError: If text, constraints, objective or baselines cannot be used.
    """
    from mixopt.proxies.evaluators import ProxyEvaluator
    from mixopt.proxies.train import emulates_bfloat16

    config = location.config
    text = _prepare_text(location, progress)
    ladder = build_ladder(config, text.vocab_size)
    header = Header(
        name=config.name,
        seed=config.seed,
        domains=text.domains,
        eval_sets=text.eval_sets,
        ladder=ladder,
        tokenizer=text.tokenizer,
        objective=config.objective.model_dump(),
        budget=config.search.budget,
        experts_fidelity=config.experts_fidelity,
        settings={
            "constraints": config.constraints.model_dump(mode="json"),
            "search": config.search.model_dump(mode="json"),
            "experts": config.experts.model_dump(mode="json"),
        },
        warm_start=build_warm_start(config, ladder),
    )
    check_used(config)
    parse_objective(header)
    build_constraints(config, header)
    build_baselines(config, header)
    evaluator = ProxyEvaluator(
        ladder=ladder,
        models=proxy_models(config, text.vocab_size),
        shards=text.shards,
        eval_shards=text.eval_shards,
        data={d.name: d.fingerprint for d in text.domains} | {f"eval/{s.name}": s.fingerprint for s in text.eval_sets},
        tokenizer=text.tokenizer,
        experts_fidelity=config.experts_fidelity,
        device=config.run.device,
        threads=config.run.threads,
        checkpoint_seconds=config.run.checkpoint_seconds,
    )
    # The nodes of a cluster may have what this machine has not.
    here = config.run.address is None
    if here and config.proxy.dtype == "bfloat16" and emulates_bfloat16(evaluator.resolved_device):
        logger.warning("bfloat16 slow device=cpu reason=no AVX-512; proxy.dtype: float32 is several times faster here")
    return header, evaluator


def parse_objective(header: Header) -> Objective:
    """Resolve a header's objective against its columns."""
    return Objective.parse(
        header.objective["expression"],
        [column for s in header.eval_sets for column in s.columns],
        unit=header.objective["unit"],
        eval_sets=header.eval_sets,
    )


def build_plan(location: Location, header: Header, evaluator: ProxyEvaluator) -> Plan:
    """Return what `run_study` needs."""
    config = location.config
    objective = parse_objective(header)

    def unscored(study: Study) -> Sequence[Trial]:
        done = [t for t in study.history().trials if t.role is Role.EXPERT and t.status is Status.DONE]
        return [t for t in done if evaluator.unscored(t, study.files)]

    num_jobs = math.ceil(config.search.batch_size / config.run.stack)
    if config.run.executor == "ray" and config.search.synchronous and num_jobs < config.run.workers:
        logger.warning(
            "workers idle jobs_per_batch=%d workers=%d; raise search.batch_size, lower run.stack, or set "
            "search.synchronous: false",
            num_jobs,
            config.run.workers,
        )
    return Plan(
        header=header,
        evaluator=evaluator,
        optimizer=lambda predictor: build_optimizer(config, objective, header, predictor),
        # The baselines learn nothing from experts; a list is often trained to judge them.
        predictor=load_predictor if config.search.optimizer in ("mfbo", "listed") else None,
        unscored=unscored,
        batch_size=config.search.batch_size,
        baselines=build_baselines(config, header),
        validation_seeds=config.validation.seeds,
        stack=config.run.stack,
        synchronous=config.search.synchronous,
        retries=config.run.retries,
    )


def build_executor(location: Location, evaluator: ProxyEvaluator) -> Executor:
    """Start the executor that the study file names."""
    from mixopt.execution import SerialExecutor
    from mixopt.ray_executor import RayExecutor

    run = location.config.run
    if run.executor == "serial":
        return SerialExecutor(evaluator, location.directory)
    files = RunDirectory(location.directory)
    return RayExecutor(
        replace(evaluator),  # a fresh one, so that each node resolves `device` for itself
        location.directory,
        workers=run.workers,
        resources=job_resources(run),
        inputs=lambda job: evaluator.inputs(job, files),
    )


def job_resources(run: RunConfig) -> Resources:
    """Return what a job asks Ray for, and where."""
    from mixopt.ray_executor import Resources

    return Resources(
        run.threads, _gpus_per_job(run), run.memory, run.address, run.storage, run.ship, run.autoscaling
    )  # fmt: skip


def _gpus_per_job(run: RunConfig) -> float | None:
    """Return GPUs per job; None leaves it to what a cluster has, as the driver may have none."""
    from mixopt.proxies.evaluators import resolve_device

    if run.gpus is not None:
        return run.gpus
    if run.device == "auto" and run.address:
        return None
    kind = run.device if run.address else resolve_device(run.device).type
    return 1.0 if kind.startswith("cuda") else 0.0


def build_tracker(location: Location) -> Tracker:
    """Open the tracking store that the study file names."""
    from mixopt.tracking import MlflowTracker, NullTracker, default_uri

    uri = location.config.run.tracking_uri
    if uri == "none":
        return NullTracker()
    if uri == "default":
        uri = default_uri(location.directory)
    return MlflowTracker(uri, experiment=location.config.name, artifact_root=location.directory.parent / "mlartifacts")


def save_config(location: Location) -> None:
    """Keep the resolved study file in the run directory, without the secrets of its tracking URI."""
    from mixopt.tracking import without_secrets

    study = location.study
    if isinstance(study, StudyConfig):
        uri = without_secrets(study.run.tracking_uri)
        if uri != study.run.tracking_uri:
            logger.warning(
                "password kept out of study.yaml uri=%s; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
                "or give --tracking-uri to later commands", uri,
            )  # fmt: skip
        study = study.model_copy(update={"run": study.run.model_copy(update={"tracking_uri": uri})})
    write_text(RunDirectory(location.directory).config, dump_config(study))


def _model_name(model: ProxyConfig, length: int | None) -> str:
    """Name a model shape; shape and recipe are part of it, so a changed one is another rung.

    `length` is that of the run, in tokens, where the recipe depends on where it ends.
    """
    return f"depth={model.depth}-{fingerprint([model.to_json(), length])[:6]}"


def check_used(config: StudyConfig | ExternalConfig) -> None:
    """Refuse settings that the chosen optimizer would ignore."""
    if config.search.optimizer == "mfbo":
        return
    ignored = {"search.price": config.search.price, "constraints.kl.weight": config.constraints.kl.weight}
    for name, value in ignored.items():
        if value:
            raise ConfigError(f"{name}: {config.search.optimizer} cannot use it; drop it or set search.optimizer: mfbo")


def _prepare_text(location: Location, progress: Callable[[str], None]) -> PreparedText:
    from mixopt.proxies.prepare import DomainText, prepare_text

    config = location.config
    domains = {
        name: DomainText(
            _source(f"domains.{name}", d),
            _source(f"domains.{name}.validation", d.validation) if d.validation else None,
            d.holdout,
        )
        for name, d in config.domains.items()
    }
    return prepare_text(
        domains,
        {name: _eval_source(f"eval_sets.{name}", s) for name, s in config.eval_sets.items()},
        RunDirectory(location.directory).tokens,
        vocab_size=config.tokenizer.vocab_size,
        tokenizer_path=Path(config.tokenizer.path) if config.tokenizer.path else None,
        eval_tokens=config.evaluation.tokens,
        domain_eval_tokens=config.evaluation.domain_tokens,
        eval_questions=config.evaluation.questions,
        sequence_length=config.proxy.sequence_length,
        progress=progress,
    )


def _source(field: str, config: SourceConfig | DomainConfig) -> TextSource:
    from mixopt.proxies.text import TextSource

    path = config.path
    if path is not None and path.startswith(BUILTIN):
        path = str(CORPUS / path.removeprefix(BUILTIN))
    return TextSource(field, path, config.hub, config.config, config.split, config.text)


def _eval_source(field: str, config: EvalSetConfig) -> TextSource | TaskSource:
    from mixopt.proxies.questions import TaskSource

    source = _source(field, config)
    return source if config.kind == "text" else TaskSource(source, config.options, config.answer, config.questions)


def with_run_options(location: Location, options: dict[str, Any]) -> Location:
    """Return the location with some `run` fields replaced by command-line flags."""
    run = location.config.run.model_copy(update=options)
    return Location(location.config.model_copy(update={"run": run}), location.directory)


# Tokens, scores and logs of a study of a few hundred MB of text; states are added below.
_SPARE_BYTES = 200_000_000


def check_space(location: Location) -> None:
    """Refuse to start where the disk cannot hold what the study will write.

    Raises:
        ResourceError: With the bytes needed and free.
    """
    from mixopt.errors import ResourceError
    from mixopt.proxies.cost import total_params
    from mixopt.storage import free_bytes

    config = location.config
    models = proxy_models(config, config.tokenizer.vocab_size)
    largest = max(total_params(model) for model in models.values())
    cheapest = min(rung.cost for rung in build_ladder(config, config.tokenizer.vocab_size))
    trials = len(config.domains) + config.search.budget / cheapest
    trials += len(models) if config.warm_start else 0
    trials += config.validation.seeds * (1 + len(config.validation.baselines) + len(config.validation.mixtures))
    # A state holds weights, averages and two moments in float32.
    needed = _SPARE_BYTES + int(trials * largest * 16)
    free = free_bytes(location.directory)
    if free < needed:
        raise ResourceError(
            f"no disk space: {location.directory} needs about {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; "
            "free some or choose another place with --dir"
        )
