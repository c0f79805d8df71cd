"""The verb `export-model`: a finished trial's averaged weights for Hugging Face `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixopt.errors import ConfigError, StudyError

from .cli_options import DirectoryOption, JsonOption, StudyArgument, emit_json

if TYPE_CHECKING:
    from mixopt.observation import Trial
    from mixopt.proxies.export_hf import DroppedBias
    from mixopt.proxies.model import ProxyStack
    from mixopt.proxies.scoring import ScoringRows
    from mixopt.study import Study

    from .build import Location


def export_model(
    study: StudyArgument,
    trial: Annotated[str, typer.Option("--trial", help="Id of a trial that is done.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder to write: new or empty.", show_default=False)],
    form: Annotated[str, typer.Option("--format", help="hf: a folder that transformers loads.")] = "hf",
    architecture: Annotated[
        str,
        typer.Option(
            "--architecture",
            help="auto: the one with equal logits; mixtral: drop the balancing bias and say what changes.",
        ),
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in the folder.")] = False,
    directory: DirectoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a trained proxy as a folder that transformers loads, with equal logits."""
    from mixopt.proxies.export_folder import check_folder, write_folder
    from mixopt.proxies.export_hf import choose_architecture, drop_bias
    from mixopt.proxies.tokenizer import TextTokenizer
    from mixopt.study import Study

    from . import build

    if form != "hf":
        raise ConfigError(f"--format: expected hf, got {form!r}")
    check_folder(out, overwrite=force)
    location = build.locate(study, directory)
    ledger = Study(location.directory)
    wanted = _finished(ledger, trial)
    tokenizer = TextTokenizer(ledger.files.tokens / "tokenizer.json")
    model = _load(location, ledger, wanted, tokenizer.vocab_size)
    chosen = choose_architecture(model, architecture)
    dropped = drop_bias(model, _rows(ledger, model)) if architecture == "mixtral" else None
    facts = _facts(ledger, wanted, model) | {"architecture": chosen}
    write_folder(
        model, out, architecture=chosen, tokenizer=tokenizer, card=_card(facts, dropped), overwrite=force
    )  # fmt: skip
    if as_json:
        emit_json({"folder": str(out.resolve()), **facts, "dropped_bias": dropped and vars(dropped)})
        return
    typer.echo(f"{out}: {trial} at rung {wanted.fidelity} as {chosen}")
    if dropped:
        typer.echo(_what_changed(dropped))


def _finished(study: Study, trial_id: str) -> Trial:
    """Return a trial that has weights.

    Raises:
        StudyError: If it is unknown, not done, or was trained under another study file.
    """
    from mixopt.observation import Status

    status = study.trial(trial_id).status
    if status is not Status.DONE:
        raise StudyError(f"--trial: {trial_id} is {status}; only a trial that is done has weights, see mixopt status")
    current = [trial for trial in study.history().trials if trial.id == trial_id]
    if not current:
        raise StudyError(
            f"--trial: {trial_id} was trained on text or a proxy that the study no longer has; choose another"
        )
    return current[0]


def _load(location: Location, study: Study, trial: Trial, vocab_size: int) -> ProxyStack:
    """Return the averaged weights of a finished trial as a stack of one.

    Raises:
        ConfigError: If the study file describes another proxy than the trial's.
        StudyError: If the weights are gone or of another shape.
    """
    from mixopt.proxies.checkpoint import load_states
    from mixopt.proxies.evaluators import resolve_device
    from mixopt.proxies.train import restore_average

    from . import build

    config = build.proxy_models(location.config, vocab_size).get(study.header.ladder[trial.fidelity].model)
    if config is None:
        raise ConfigError(
            f"proxy: the study file describes another proxy than the one {trial.id} was trained as; "
            f"name the run directory instead: mixopt export-model {study.files.path} --trial {trial.id}"
        )
    path = _weights(study, trial)
    saved = load_states(path, config)
    if saved is None:
        raise StudyError(f"the weights of {trial.id} are gone from {path}; export another trial")
    return restore_average(config, saved[0][0], resolve_device("cpu"))


def _weights(study: Study, trial: Trial) -> Path:
    return study.files.trial(trial.id) / "state.safetensors"


def _rows(study: Study, model: ProxyStack) -> list[ScoringRows]:
    """Cut the evaluation text of the run directory for a model."""
    from mixopt.proxies.scoring import ScoringRows
    from mixopt.proxies.tokens import TokenShard

    shards = [TokenShard(path) for path in sorted(study.files.tokens.glob("eval-*"))]
    return [ScoringRows.cut(shard, model.config.sequence_length) for shard in shards]


def _facts(study: Study, trial: Trial, model: ProxyStack) -> dict[str, Any]:
    """Return where a model comes from as plain data."""
    from mixopt.identity import file_fingerprint

    rung = study.header.ladder[trial.fidelity]
    measured = [o for o in study.history().observations if o.key == (trial.id, rung.name)]
    return {
        "study": study.header.name,
        "trial": trial.id,
        "rung": rung.name,
        "training_tokens": rung.num_tokens,
        "seed": trial.seed,
        "mixture": trial.mixture.as_dict(),
        "losses": {name: round(value, 5) for o in measured for name, value in o.losses.items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokenizer": study.header.tokenizer,
        "fingerprint": file_fingerprint(_weights(study, trial)),
    }


def _card(facts: dict[str, Any], dropped: DroppedBias | None) -> str:
    """Return the folder's README.md, with the header that model hubs read."""
    lines = [
        "---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [mixopt]", "---", "",
        f"# {facts['trial']} of {facts['study']}", "",
        "A small proxy that mixopt trained to learn about training data; it is no model to talk to.",
        "A text begins with the separator token, which the tokenizer adds.", "",
    ]  # fmt: skip
    lines += [_what_changed(dropped), ""] if dropped else []
    lines += ["| | |", "|---|---|"]
    for name, value in facts.items():
        shown = ", ".join(f"{k} {v:.4g}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"| {name.replace('_', ' ')} | {shown} |")
    return "\n".join([*lines, "", "Losses are nats per token; the fingerprint is that of the trial's saved state.", ""])


def _what_changed(dropped: DroppedBias) -> str:
    return (
        f"Without the balancing bias {dropped.rerouted:.1%} of the (token, layer) pairs go to other experts; "
        f"the mean loss on the evaluation text is {dropped.loss_without:.4f} instead of {dropped.loss:.4f} nats per token."
    )
