"""What an optimizer answers: proposals, predictions and a recommendation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .display import html_table
from .mixture import Array, Mixture

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Proposal:
    """A (mixture, rung) to train next.

    Attributes:
        mixture: What to train on.
        fidelity: Name of the rung to train to.
        value: Acquisition value per cost (expected gain per top-rung run), or None.
        reason: Why, in words.
        parent: Id of a finished trial to continue (same mixture), or None.
        parent_fidelity: Rung the parent reached, or None.
        proposed_by: Name of the optimizer, or of what replaced it.
    """

    mixture: Mixture
    fidelity: str
    value: float | None
    reason: str
    parent: str | None = None
    parent_fidelity: str | None = None
    proposed_by: str = ""


@dataclass(frozen=True)
class Prediction:
    """Predicted columns of M mixtures at one rung, averaged over seeds.

    Attributes:
        fidelity: Name of the rung.
        mean: {column: (M,)}, columns `loss/<name>` in nats per token and `objective`.
        std: {column: (M,)} standard deviations of the same.
    """

    fidelity: str
    mean: Mapping[str, Array]
    std: Mapping[str, Array]


@dataclass(frozen=True)
class Recommendation:
    """The mixture to use, and how sure the search is.

    Attributes:
        mixture: The recommended weights.
        fidelity: The rung the prediction is about.
        mean: {column: predicted mean}, `objective` in the objective's unit.
        std: {column: standard deviation of the prediction}.
        regret_bound: Objective units; with probability 0.95 no feasible mixture is
            better by more, under the surrogate. None where the optimizer has none.
        support: Ids of the trials it rests on.
        recommended_by: Name of the optimizer.
        reason: How it was chosen, in words.
        best_probability: That no feasible mixture is better by more than the noise of one run at
            the target (a standard deviation between seeds), under the surrogate. None where the
            optimizer has none.
    """

    mixture: Mixture
    fidelity: str
    mean: Mapping[str, float]
    std: Mapping[str, float]
    regret_bound: float | None
    support: tuple[str, ...]
    recommended_by: str
    reason: str = ""
    best_probability: float | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return the weights, a row per domain: `domain`, `weight`."""
        import pandas as pd

        return pd.DataFrame({"domain": self.mixture.domains, "weight": self.mixture.weights})

    def _repr_html_(self) -> str:
        """Show the weights, largest first, and what is predicted."""
        rows = sorted(self.mixture.as_dict().items(), key=lambda item: -item[1])
        said = [f"{name} {mean:.4f} ± {self.std[name]:.4f}" for name, mean in self.mean.items() if name in self.std]
        bound = (
            ""
            if self.regret_bound is None
            else f"; with probability 0.95 none is better by more than {self.regret_bound:.4f}"
        )
        if self.best_probability is not None:
            bound += f"; with probability {self.best_probability:.2f} it is the best but for the noise of one run"
        note = f"Predicted at {self.fidelity}: {', '.join(said) or 'nothing'}{bound}. {self.reason}"
        shares = [(name, f"{weight:.4f}") for name, weight in rows]
        return html_table(f"Recommended by {self.recommended_by}", ("domain", "share of tokens"), shares, note=note)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        data = {key: value for key, value in vars(self).items() if key != "mixture"}
        return {**data, "support": list(self.support), "weights": self.mixture.as_dict()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recommendation:
        """Rebuild a recommendation from `to_json`."""
        fields = {key: value for key, value in data.items() if key != "weights"}
        weights = data["weights"]
        mixture = Mixture.from_mapping(list(weights), weights)
        return cls(**{**fields, "mixture": mixture, "support": tuple(data["support"])})


@dataclass(frozen=True)
class Contender:
    """A mixture that is compared in validation runs, with what was predicted for it.

    Attributes:
        label: `recommended`, `natural`, `uniform` or a user's name.
        mixture: Its weights.
        mean: {column: predicted mean at the target rung}.
        std: {column: standard deviation of the prediction}.
    """

    label: str
    mixture: Mixture
    mean: Mapping[str, float]
    std: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"label": self.label, "weights": self.mixture.as_dict(), "mean": dict(self.mean), "std": dict(self.std)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Contender:
        """Rebuild a contender from `to_json`."""
        weights = data["weights"]
        return cls(data["label"], Mixture.from_mapping(list(weights), weights), data["mean"], data["std"])
