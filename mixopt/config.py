"""The study file: YAML, validated before anything runs, every field described.

Two kinds: studies that mixopt trains itself (`StudyConfig`), and those with
`trainer: external` (`ExternalConfig`), whose runs are trained elsewhere. Every field has
a default but `name`, `domains` and `objective`; unknown fields are errors. Relative
paths start at the study file's folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import ConfigError, MixtureError, closest, did_you_mean
from .mixture import check_name

BUILTIN = "builtin:"

Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceConfig(_Section):
    """Where the text of a domain or evaluation set comes from: `path` or `hub`."""

    path: str | None = Field(
        None,
        description="file, folder or glob of txt, jsonl, json or parquet files; builtin:... for the corpus that comes with mixopt",
    )
    hub: str | None = Field(None, description="name of a hub dataset (needs a connection)")
    config: str | None = Field(None, description="configuration of the hub dataset")
    split: str = Field("train", description="split of the hub dataset")
    text: str = Field("text", description="column that holds the text")

    @model_validator(mode="after")
    def _one_place(self) -> SourceConfig:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path and hub")
        return self


class EvalSetConfig(SourceConfig):
    """Where a text or a multiple-choice task to measure on comes from."""

    kind: Literal["text", "multiple_choice"] = Field(
        "text",
        description="text, or multiple_choice: questions with a context (`text`, may be empty), options and answer",
    )
    options: str = Field("options", description="column of a multiple-choice task that holds the list of options")
    answer: str = Field("answer", description="column that holds the right option: its number from 0, or its text")
    questions: int | None = Field(None, ge=20, description="questions used; default evaluation.questions")


class DomainConfig(SourceConfig):
    """One domain: its training text, and its held-out text."""

    validation: SourceConfig | None = Field(
        None, description="held-out text; without it, `holdout` documents are set aside"
    )
    holdout: float = Field(
        0.05, gt=0, lt=0.5, description="share of documents set aside when there is no validation text"
    )


class ObjectiveConfig(_Section):
    """The number to minimize."""

    expression: str | dict[str, float] = Field(
        description="one column, mean(...) or max(...) of columns or patterns, or {column: weight}"
    )
    unit: Literal["nats_per_token", "bits_per_byte"] = Field("bits_per_byte", description="unit of the losses inside")
    allow_chance: bool = Field(
        False, description="search even if no data expert beats guessing at a task whose accuracy is minimized over"
    )


class GroupConfig(_Section):
    """Bounds on the summed weight of some domains."""

    domains: list[str] = Field(min_length=1, description="names of domains")
    min: Share = Field(0.0, description="smallest sum")
    max: Share = Field(1.0, description="largest sum")


class KlConfig(_Section):
    """A penalty on the distance to a reference mixture, added to the objective."""

    to: Literal["natural", "uniform"] = Field("natural", description="reference mixture")
    weight: float = Field(0.0, ge=0, description="objective units per nat of KL divergence")


class ConstraintsConfig(_Section):
    """What a mixture must satisfy."""

    bounds: dict[str, tuple[Share, Share]] = Field({}, description="{domain: [smallest, largest weight]}")
    groups: list[GroupConfig] = Field([], description="bounds on sums of weights")
    target_tokens: int | None = Field(
        None, gt=0, description="training tokens of the final model, for epoch caps and implied epochs"
    )
    max_epochs: float | None = Field(None, gt=0, description="largest number of passes over a domain at target_tokens")
    kl: KlConfig = Field(KlConfig(), description="penalty on the distance to a reference mixture")


class TokenizerConfig(_Section):
    """A byte-level BPE trained on equal slices of the domains, or a given file."""

    vocab_size: int = Field(1024, ge=257, description="tokens of the trained tokenizer")
    path: str | None = Field(None, description="tokenizer.json to use instead of training one")


class ModelConfig(_Section):
    """The proxy's shape and recipe; zeros are derived from depth."""

    depth: int = Field(1, ge=1, description="transformer blocks; sets every other size")
    router: Literal["topk", "relu", "dense"] = Field(
        "topk", description="topk (MoE), relu (ReMoE: MoE with ReLU gates) or dense (the control of equal active width)"
    )
    experts: int = Field(0, ge=0, description="routed feed-forward experts per block; 8, from depth 16 on 16")
    top_k: int = Field(2, ge=1, description="routed feed-forward experts per token")
    width: int = Field(0, ge=0, description="model width")
    head_dim: int = Field(32, gt=0, description="width of an attention head")
    kv_heads: int = Field(0, ge=0, description="key-value heads")
    expert_width: int = Field(0, ge=0, description="hidden width of a routed feed-forward expert")
    shared_width: int = Field(0, ge=0, description="hidden width of the shared feed-forward expert")
    sequence_length: int = Field(128, ge=8, description="tokens per sequence")
    batch_size: int = Field(0, ge=0, description="sequences per step; 4, above 1e14 training FLOPs by a published law")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="adamw, or muon for hidden matrices with adamw for the rest"
    )
    learning_rate: float = Field(
        0.0, ge=0, description="constant after warm-up; by depth, above 1e14 training FLOPs by a published law"
    )
    decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a run's last steps with linear decay to zero; then rungs do not nest",
    )
    warmup_steps: int = Field(20, ge=1, description="steps of linear warm-up")
    weight_decay: float = Field(0.1, ge=0, description="decay of matrices")
    clip: float = Field(1.0, gt=0, description="largest gradient norm per model")
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the averaged weights, per step")
    balance_step: float = Field(0.01, ge=0, description="step of the loss-free balancing bias")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the matrix products in training; weights and evaluation stay float32"
    )
    activation_checkpointing: bool = Field(
        False, description="keep only the input of each block and compute the rest twice"
    )
    accumulate: int = Field(1, ge=1, description="parts that a batch is computed in, one after the other")


class RungConfig(_Section):
    """One rung of the ladder: how long, and how deep."""

    name: str = Field(description="name of the rung")
    tokens: int = Field(gt=0, description="training tokens of a run at this rung")
    depth: int | None = Field(None, ge=1, description="depth of the proxy at this rung; default proxy.depth")
    cost: float | None = Field(
        None,
        gt=0,
        description="price of a run, in any unit, the same for all rungs (all of them or none); default its training FLOPs",
    )


class WarmStartConfig(_Section):
    """Fork experts and search runs from a seed model per model shape; validation runs start from scratch."""

    mixture: Literal["uniform", "natural"] = Field("uniform", description="what seed models are trained on")
    fidelity: str | None = Field(
        None, description="rung that the seed model of its shape is trained to; default the cheapest of each shape"
    )


class ExpertsConfig(_Section):
    """Data experts."""

    fidelity: str | None = Field(None, description="rung whose experts feed the MDE; default the top rung")
    temper: float = Field(
        0.0, ge=0, le=1, description="how strongly the MDE's weights follow the text read so far; 0: not at all"
    )
    cap: float | None = Field(None, gt=0, description="most nats of evidence that the weights follow; default no limit")


class EvaluationConfig(_Section):
    """How much text each loss is measured on."""

    tokens: int = Field(6144, ge=128, description="tokens per evaluation set")
    domain_tokens: int = Field(2048, ge=128, description="tokens per domain's held-out set")
    questions: int = Field(500, ge=20, description="questions per multiple-choice task")


class SearchConfig(_Section):
    """How mixtures are proposed."""

    optimizer: Literal["mfbo", "random", "sobol", "listed"] = Field(
        "mfbo",
        description="mfbo (multi-fidelity Bayesian), random, sobol, or listed: the runs of `mixtures` as they are",
    )
    mixtures: str | None = Field(
        None,
        description="table of runs, mixtures and rungs that listed trains in order, or that others choose from",
    )
    batch_size: int = Field(6, ge=1, description="trials proposed at a time")
    synchronous: bool = Field(
        True,
        description="propose when the whole batch has ended: the same ledger on any machine; false: before a worker idles",
    )
    budget: float = Field(
        12.0, ge=0, description="of the search, in runs at the top rung; experts and validation are extra"
    )
    price: float = Field(
        0.0, ge=0, description="stop when the expected gain per top-rung run (objective units) is below this"
    )
    fixed_cost: float = Field(
        0.05, ge=0, lt=1, description="part of every run's charge that does not depend on its length"
    )


class ValidationConfig(_Section):
    """Runs that compare the recommendation with baselines, on fresh seeds."""

    baselines: list[Literal["natural", "uniform"]] = Field(
        ["natural", "uniform"], description="mixtures to compare with"
    )
    mixtures: dict[str, dict[str, float]] = Field(
        {}, description="further mixtures to compare with, {label: {domain: weight}}"
    )
    seeds: int = Field(2, ge=0, description="runs per mixture")


class RunConfig(_Section):
    """Where and how wide; never changes a result, except `stack` in the last digits."""

    executor: Literal["ray", "serial"] = Field("ray", description="ray (local or a cluster) or serial (this process)")
    workers: int = Field(2, ge=1, description="jobs at the same time")
    address: str | None = Field(None, description="address of an existing Ray cluster; default a local one")
    device: str = Field("auto", description="auto, cpu or cuda")
    threads: int = Field(1, ge=1, description="torch threads per worker, and CPUs that a job asks Ray for")
    gpus: float | None = Field(
        None, ge=0, description="GPUs per job; a fraction shares one; default 1 where the device is a GPU"
    )
    memory: int = Field(0, ge=0, description="bytes of memory per job that Ray sets aside; 0 leaves it open")
    storage: str = Field(
        "auto",
        min_length=1,
        description="how files reach workers: shared (they see the run directory), ray (through Ray), a URL that driver "
        "and nodes reach, or auto (shared where all nodes see it, else ray)",
    )
    ship: bool = Field(True, description="send the code of mixopt to the nodes of a cluster")
    autoscaling: bool = Field(False, description="wait for nodes that a cluster starts on demand instead of refusing")
    stack: int = Field(4, ge=1, description="most trials trained together as one program")
    retries: int = Field(2, ge=0, description="further attempts after a lost worker or lack of memory")
    checkpoint_seconds: float = Field(20.0, ge=0, description="wall time between checkpoints of a running job")
    tracking_uri: str = Field(
        "default",
        description="MLflow tracking URI; default is SQLite beside the run directory, none turns tracking off",
    )


class StudyConfig(_Section):
    """A study: what is mixed, what is minimized, what is trained, where it runs."""

    name: str = Field(description="name of the study and of its run directory")
    seed: int = Field(0, ge=0, description="root of all randomness")
    domains: dict[str, DomainConfig] = Field(
        min_length=1, description="{name: text}; the order is the order of the weights"
    )
    eval_sets: dict[str, EvalSetConfig] = Field(
        {}, description="further evaluation sets and tasks besides each domain's held-out text"
    )
    objective: ObjectiveConfig
    constraints: ConstraintsConfig = ConstraintsConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    proxy: ModelConfig = ModelConfig()
    ladder: list[RungConfig] = Field(
        [
            RungConfig(name="low", tokens=128_000),
            RungConfig(name="mid", tokens=256_000),
            RungConfig(name="top", tokens=512_000),
        ],
        min_length=1,
        description="rungs, cheapest first",
    )
    warm_start: WarmStartConfig | None = Field(
        None, description="start experts and search runs from seed models; without it from scratch"
    )
    experts: ExpertsConfig = ExpertsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    search: SearchConfig = SearchConfig()
    validation: ValidationConfig = ValidationConfig()
    run: RunConfig = RunConfig()

    @field_validator("name")
    @classmethod
    def _named(cls, value: str) -> str:
        return check_name(value, "study")

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        for name in self.domains:
            check_name(name, "domain")
        for name in self.eval_sets:
            check_name(name, "evaluation set")
        for label in self.validation.mixtures:
            check_name(label, "validation mixture")
        both = [name for name in self.eval_sets if name in self.domains]
        if both:
            raise ValueError(f"eval_sets.{both[0]}: a domain has this name and its held-out set too; rename one")
        rungs = [rung.name for rung in self.ladder]
        for rung in self.ladder:
            check_name(rung.name, "rung")
            if rung.cost is None and any(other.cost is not None for other in self.ladder):
                raise ValueError(
                    f"ladder: rung {rung.name!r} has no cost, others have; give all rungs a cost in one unit, or none"
                )
        seeds = None if self.warm_start is None else self.warm_start.fidelity
        for field, rung_name in (("experts.fidelity", self.experts.fidelity), ("warm_start.fidelity", seeds)):
            if rung_name is not None and rung_name not in rungs:
                raise ValueError(
                    f"{field}: unknown rung {rung_name!r}{did_you_mean(rung_name, rungs)}; the ladder has {', '.join(rungs)}"
                )
        if self.search.optimizer == "listed" and self.search.mixtures is None:
            raise ValueError("search.mixtures: optimizer listed needs the table of runs to train; give its path")
        if self.warm_start is not None and self.proxy.decay:
            raise ValueError("warm_start: with proxy.decay no two rungs share a model to fork from; set decay to 0")
        return self

    @property
    def experts_fidelity(self) -> str:
        """Rung whose experts feed the MDE."""
        return self.experts.fidelity or self.ladder[-1].name


class ExternalDomainConfig(_Section):
    """A domain whose text only the user's own trainer sees."""

    tokens: int | None = Field(
        None, gt=0, description="unique training tokens there are, for the natural mixture and epoch caps"
    )


class ExternalRungConfig(_Section):
    """One rung of a ladder that is trained elsewhere."""

    name: str = Field(description="name of the rung")
    cost: float | None = Field(
        None, gt=0, description="price of a run, in any unit, the same for all rungs; default params x tokens"
    )
    params: int | None = Field(None, gt=0, description="active parameters; they serve the price only")
    tokens: int | None = Field(None, gt=0, description="training tokens of a run; they serve the price only")

    @property
    def price(self) -> float | None:
        """Price of a run in the user's unit, None where nothing says it."""
        if self.cost is None and self.params is not None and self.tokens is not None:
            return float(self.params) * self.tokens
        return self.cost


class ExternalSearchConfig(_Section):
    """How runs are suggested."""

    optimizer: str = Field("mfbo", description="mfbo (multi-fidelity Bayesian), random, sobol or another known one")
    batch_size: int = Field(4, ge=1, description="runs suggested at a time, where nothing else is asked for")
    budget: float | None = Field(
        None, ge=0, description="of all suggested runs, in runs of the last rung; none is unlimited"
    )
    price: float = Field(
        0.0, ge=0, description="suggest nothing when the expected gain per run of the last rung is below this"
    )


class ExternalConfig(_Section):
    """A study whose runs are trained elsewhere: `mixopt suggest` and `mixopt tell`."""

    name: str = Field(description="name of the study and of its run directory")
    trainer: Literal["external"] = Field(description="says that mixopt suggests runs and is told their results")
    seed: int = Field(0, ge=0, description="root of all randomness")
    domains: dict[str, ExternalDomainConfig] = Field(
        min_length=1, description="list of names, or {name: {tokens: N}}; the order is the order of the weights"
    )
    objective: str | dict[str, float] = Field(
        description="what is minimized, in the unit of its columns: one column, mean(...) or max(...), or {column: weight}"
    )
    columns: list[str] = Field(
        [], description="loss/... and score/... columns that runs report; default those of the first runs told"
    )
    constraints: ConstraintsConfig = ConstraintsConfig()
    ladder: list[ExternalRungConfig] = Field(
        [ExternalRungConfig(name="target", cost=1.0)],
        min_length=1,
        description="rungs, or {name: cost}; the last is the target",
    )
    search: ExternalSearchConfig = ExternalSearchConfig()

    @field_validator("name")
    @classmethod
    def _named(cls, value: str) -> str:
        return check_name(value, "study")

    @field_validator("domains", mode="before")
    @classmethod
    def _domains_from_list(cls, value: Any) -> Any:
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            double = next((name for name in value if value.count(name) > 1), None)
            if double is not None:
                raise ValueError(f"{double!r} is listed twice; names must be unique, rename one")
            return {name: {} for name in value}
        return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, dict) else value

    @field_validator("objective", mode="before")
    @classmethod
    def _objective_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and "expression" in value:
            raise ValueError("write the expression itself, such as objective: mean(loss/*); columns keep their unit")
        return value

    @field_validator("ladder", mode="before")
    @classmethod
    def _ladder_from_mapping(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return [{"name": str(name), "cost": cost} for name, cost in value.items()]
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ExternalConfig:
        for name in self.domains:
            check_name(name, "domain")
        for rung in self.ladder:
            check_name(rung.name, "rung")
            if rung.price is None:
                raise ValueError(f"ladder: rung {rung.name!r} has no cost; give cost, or params and tokens")
        names = [rung.name for rung in self.ladder]
        if len(set(names)) != len(names):
            raise ValueError(f"ladder: rung names must be unique, got {', '.join(names)}; rename one")
        for column in self.columns:
            if not column.startswith(("loss/", "score/")) or self.columns.count(column) > 1:
                raise ValueError(f"columns: expected loss/NAME or score/NAME, each once, got {column!r}; correct it")
        self._check_tokens()
        return self

    def _check_tokens(self) -> None:
        missing = [name for name, domain in self.domains.items() if domain.tokens is None]
        kl = self.constraints.kl
        for wanted, place in (
            (self.constraints.max_epochs is not None, "constraints.max_epochs"),
            (kl.weight > 0 and kl.to == "natural", "constraints.kl.to: natural"),
        ):
            if wanted and missing:
                raise ValueError(f"domains.{missing[0]}.tokens: {place} needs the tokens of every domain; add them")


Config = TypeVar("Config", StudyConfig, ExternalConfig)


def load_config(path: Path) -> StudyConfig:
    """Read and validate the file of a study that mixopt trains itself.

    Raises:
        ConfigError: One message that lists every problem with field and remedy.
    """
    config = load_study(path)
    if isinstance(config, ExternalConfig):
        raise ConfigError(
            f"{path}: the runs of this study are trained elsewhere (trainer: external); "
            "use mixopt suggest and mixopt tell, or drop `trainer` and name the text of each domain"
        )
    return config


def load_study(path: Path) -> StudyConfig | ExternalConfig:
    """Read and validate a study file of either kind; paths inside become absolute.

    A file with the field `trainer` is read as that of an external study.

    Raises:
        ConfigError: One message that lists every problem with field and remedy.
    """
    data = _read(path)
    if "trainer" in data:
        return validate_external(data, str(path))
    return _with_absolute_paths(validate(data, str(path)), path.parent.resolve())


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"no study file at {path}{_neighbor(path)}; write one with: mixopt init FOLDER") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the study file {path}: {error}") from error
    try:
        data = yaml.load(text, Loader=_UniqueKeyLoader)  # nosec B506: a SafeLoader that refuses double keys
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}, {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of fields such as name, domains and objective")
    return data


def _neighbor(path: Path) -> str:
    """Return which study file beside `path` was probably meant, as words."""
    files = [other for pattern in ("*.yaml", "*.yml") for other in path.parent.glob(pattern)]
    return did_you_mean(path.name, [other.name for other in files])


def validate(data: Mapping[str, Any], source: str) -> StudyConfig:
    """Build a configuration from plain data, with readable errors."""
    return _validated(StudyConfig, data, source)


def validate_external(data: Mapping[str, Any], source: str) -> ExternalConfig:
    """Build the configuration of an external study from plain data, with readable errors."""
    return _validated(ExternalConfig, data, source)


def _validated(model: type[Config], data: Mapping[str, Any], source: str) -> Config:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [describe(item, model) for item in error.errors()]
        raise ConfigError(f"{source}: " + ("\n  - " if len(lines) > 1 else "") + "\n  - ".join(lines)) from error
    except MixtureError as error:
        raise ConfigError(f"{source}: {error}") from error


def dump_config(config: StudyConfig | ExternalConfig) -> str:
    """Return the resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def describe(item: Any, model: type[BaseModel]) -> str:
    """Return one of pydantic's findings on a model as `field: what is wrong, got ...`."""
    place = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _fields_at(item["loc"][:-1], model)
        close = closest(str(item["loc"][-1]), known)
        hint = f"; did you mean {close!r}?" if close else f"; known fields are {', '.join(known)}" if known else ""
        return f"{place}: unknown field{hint}"
    if item["type"] == "missing":
        return f"{place}: this field is required; add it"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        message += did_you_mean(item["input"], re.findall(r"'([^']*)'", item["ctx"]["expected"]))
    got = "" if isinstance(item["input"], dict) else f", got {item['input']!r}"
    return f"{place}: {message}{got}" if place else message


def _fields_at(location: Iterable[Any], model: type[BaseModel]) -> list[str]:
    """Return the fields known at a place of the file; names that users choose are passed over."""
    here: Any = model
    for part in location:
        if not hasattr(here, "model_fields"):  # a mapping or list: `part` is a key of the user's
            sections = [kind for kind in getattr(here, "__args__", ()) if hasattr(kind, "model_fields")]
            here = sections[0] if sections else None
        else:
            annotation = here.model_fields[part].annotation if part in here.model_fields else None
            optional = [kind for kind in getattr(annotation, "__args__", ()) if kind is not type(None)]
            single = len(optional) == 1 and hasattr(optional[0], "model_fields") and not _is_container(annotation)
            here = optional[0] if single else annotation
    return list(getattr(here, "model_fields", {}))


def _is_container(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) in (dict, list, tuple)


def _with_absolute_paths(config: StudyConfig, folder: Path) -> StudyConfig:
    def fix(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: fix(v, k) for k, v in value.items()}
        if key == "path" and isinstance(value, str) and not value.startswith(BUILTIN):
            return str(folder / Path(value).expanduser())
        return value

    data = config.model_dump(mode="json")
    for name in ("domains", "eval_sets", "tokenizer"):
        data[name] = fix(data[name])
    if data["search"]["mixtures"] is not None:
        data["search"]["mixtures"] = fix(data["search"]["mixtures"], "path")
    return StudyConfig.model_validate(data)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML as usual, but a key given twice in one mapping is an error, not the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # no name; the loader's own error says so
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(
                    f"line {key_node.start_mark.line + 1}: {key!r} is given twice; names must be unique, rename one"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
