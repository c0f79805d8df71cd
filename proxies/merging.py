"""Merged weights: a weight-space rival of the MDE, for experts that grew from one seed model.

A mixture's model is approximated by the weighted average of the data experts' weights,

    seed + sum_k w_k (theta_k - seed) = sum_k w_k theta_k,    sum_k w_k = 1,

which to first order is what training on the mixture gives as long as experts have not
drifted far from their seed. Averaged (EMA) weights are merged, and the routers' own
state likewise. One forward pass over all evaluation text per mixture, where the MDE
needs K products per token: far dearer, and nothing is cached. Merged models are scored
in stacks. Losses only, no accuracies. Never run on a GPU so far.

    K experts (= domains), S merged models in a stack, M mixtures, J evaluation sets,
    N scored tokens

Source: METHODS 8: DeMix, arXiv:2602.00747, and MergeMix, arXiv:2601.17858.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mixopt.errors import MixtureError, StudyError
from mixopt.mixture import Array
from mixopt.observation import Role, Status, Trial
from mixopt.study import Study

from .checkpoint import ModelState, load_states
from .config import ProxyConfig
from .evaluators import MeasuredSet, ProxyEvaluator
from .head import mean_head_loss
from .model import ProxyStack
from .scoring import ScoringRows, score

STACK = 8  # merged models at a time; more are hardly faster (docs/log.md)


@dataclass(frozen=True, eq=False)
class MergedWeights:
    """Predicts losses of mixtures by models merged from their data experts.

    Attributes:
        domains: K names, in the order of the weights.
        config: Shape of all experts.
        experts: K trained models, forked from one seed model.
        rows: {evaluation set: its rows}.
        device: Where merged models are scored.

    Raises:
        MixtureError: If there is not one expert per domain.
        StudyError: If an expert is of another shape.
    """

    domains: tuple[str, ...]
    config: ProxyConfig
    experts: Sequence[ModelState]
    rows: Mapping[str, ScoringRows]
    device: torch.device

    def __post_init__(self) -> None:
        if len(self.experts) != len(self.domains):
            raise MixtureError(
                f"expected an expert for each of {', '.join(self.domains)}, got {len(self.experts)}; train the missing ones"
            )
        for name, parameter in ProxyStack(self.config, 1).named_parameters():
            for domain, expert in zip(self.domains, self.experts, strict=True):
                found, expected = expert.tensors[f"ema/{name}"].shape, parameter.shape[1:]
                if found != expected:
                    raise StudyError(
                        f"the expert of {domain} cannot be merged: expected {name} of shape {tuple(expected)}, "
                        f"got {tuple(found)}; train all experts with one model shape"
                    )

    @property
    def columns(self) -> tuple[str, ...]:
        """J losses."""
        return tuple(f"loss/{name}" for name in self.rows)

    def predict(self, weights: Array) -> Array:
        """Return (M, J) losses of the merged models, nats per token; at a vertex that expert's own.

        Args:
            weights: (M, K) mixture weights, each row on the simplex.
        """
        parts = []
        for model in self._merged(weights):
            losses = [-score(model, rows).mean(axis=1, dtype=np.float64) for rows in self.rows.values()]
            parts.append(np.stack(losses, axis=1))
        return np.concatenate(parts)

    def gradient(self, weights: Array) -> Array:
        """Return (M, J, K) derivatives of the losses with respect to the weights.

        `dL/dw_k = <dL/dtheta, theta_k>`. Under top-k routing the loss jumps where a token
        changes its feed-forward experts; the derivative is that between the jumps.
        """
        parts = []
        for model in self._merged(weights):
            parts.append(np.stack([self._slopes(model, rows) for rows in self.rows.values()], axis=1))
        return np.concatenate(parts)

    def num_tokens(self, column: str) -> int:
        """Return the tokens that a loss is the mean over."""
        return int(self.rows[column.removeprefix("loss/")].mask.sum())

    def _merged(self, weights: Array) -> Iterator[ProxyStack]:
        """Yield the models of up to eight mixtures at a time."""
        rows = np.atleast_2d(np.asarray(weights, dtype=np.float64))
        if rows.shape[1] != len(self.domains):
            raise MixtureError(f"expected {len(self.domains)} weights per mixture, got {rows.shape[1]}")
        for start in range(0, len(rows), STACK):
            weights_SK = torch.tensor(rows[start : start + STACK], dtype=torch.float32, device=self.device)
            model = ProxyStack(self.config, len(weights_SK)).to(self.device)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(torch.tensordot(weights_SK, self._stacked[f"ema/{name}"], dims=1))
            buffers = {
                name: torch.tensordot(weights_SK, tensor, dims=1)
                for name, tensor in self._stacked.items()
                if name.startswith("buffers/")
            }
            for s in range(len(weights_SK)):
                model.load_routers(s, {name: tensor[s] for name, tensor in buffers.items()})
            yield model

    @cached_property
    def _stacked(self) -> dict[str, Tensor]:
        """{tensor: (K, ...) of all experts} of averaged weights and routers' own state."""
        names = [name for name in self.experts[0].tensors if name.startswith(("ema/", "buffers/"))]
        return {name: torch.stack([e.tensors[name] for e in self.experts]).to(self.device) for name in names}

    def _slopes(self, model: ProxyStack, rows: ScoringRows) -> Array:
        """Return (S, K) derivatives of the loss on one evaluation set."""
        model.zero_grad()
        for loss_S in self._shares(model, rows):
            loss_S.sum().backward()
        slopes_SK = torch.zeros(model.num_models, len(self.domains), dtype=torch.float64, device=self.device)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            slopes_SK += (parameter.grad.flatten(1) @ self._stacked[f"ema/{name}"].flatten(1).T).double()
        return slopes_SK.cpu().numpy()

    def _shares(self, model: ProxyStack, rows: ScoringRows) -> Iterator[Tensor]:
        """Yield (S,) losses of batches of rows, to be differentiated; their sum is the mean over all N tokens."""
        for here in rows.batches():
            mask_N = torch.from_numpy(rows.mask[here]).to(self.device).flatten()
            if not mask_N.any():
                continue
            inputs, targets = (
                torch.from_numpy(part[here]).to(self.device).expand(model.num_models, -1, -1)
                for part in (rows.inputs, rows.targets)
            )
            x_SND, targets_SN = model(inputs)[:, mask_N], targets.flatten(1)[:, mask_N]
            share = int(mask_N.sum()) / int(rows.mask.sum())
            yield share * mean_head_loss(x_SND, model.embedding, targets_SN)


def load_merged(study: Study, evaluator: ProxyEvaluator) -> MergedWeights:
    """Open the finished experts of a study with `warm_start` for merging.

    Args:
        study: The study.
        evaluator: Its shapes and evaluation sets.

    Raises:
        StudyError: If an expert is missing, or they do not share one seed model and length.
    """
    names, ladder = study.header.domain_names, study.header.ladder
    done = study.history().of(Role.EXPERT).trials
    experts = {trial.label: trial for trial in done if trial.status is Status.DONE}
    missing = [name for name in names if name not in experts]
    if missing:
        raise StudyError(f"no finished expert for {', '.join(missing)}; run the study to train it")
    _check_origin([experts[name] for name in names])
    config = evaluator.models[ladder[experts[names[0]].fidelity].model]
    states = [_state(study, experts[name], config) for name in names]
    rows = {name: _counted(found) for name, found in evaluator.measured(study.files, config).items()}
    return MergedWeights(names, config, states, rows, evaluator.resolved_device)


def _counted(found: MeasuredSet) -> ScoringRows:
    """Return the rows of an evaluation set with only those tokens to score that its loss is the mean over."""
    if found.passages.counted is None:
        return found.rows
    mask = found.rows.mask.copy()
    mask[found.rows.mask] = found.passages.counted
    return replace(found.rows, mask=mask)


def _check_origin(experts: Sequence[Trial]) -> None:
    """Refuse experts whose weights have nothing to do with each other."""
    origins = {t.label: t.parent if t.parent_kind == "forked" else None for t in experts}
    if None in origins.values() or len(set(origins.values())) > 1:
        found = ", ".join(f"{label} from {parent or 'scratch'}" for label, parent in origins.items())
        raise StudyError(
            f"experts cannot be merged: expected all of them forked from one seed model, got {found}; set warm_start"
        )
    rungs = {t.label: t.fidelity for t in experts}
    if len(set(rungs.values())) > 1:
        found = ", ".join(f"{label} at {rung}" for label, rung in rungs.items())
        raise StudyError(f"experts cannot be merged: expected all of them at one rung, got {found}; train them alike")


def _state(study: Study, trial: Trial, config: ProxyConfig) -> ModelState:
    path = study.files.trial(trial.id) / "state.safetensors"
    saved = load_states(path, config)
    if saved is None:
        raise StudyError(f"the weights of {trial.id} are gone from {path.parent}; remove its folder and run the study")
    return saved[0][0]
