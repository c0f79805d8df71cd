"""mixopt: decide how much of each kind of text to train a language model on."""

from .constraints import Constraints, Group
from .errors import ConfigError, MixoptError, MixtureError, ResourceError, StudyChangedError, StudyError, TrainingError
from .fidelity import Fidelity, Ladder
from .mixture import Domain, Mixture
from .objective import EvalSet, Objective
from .observation import History, Observation, Role, Status, Trial
from .proposal import Contender, Prediction, Proposal, Recommendation

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Constraints",
    "Contender",
    "Domain",
    "EvalSet",
    "Fidelity",
    "Group",
    "History",
    "Ladder",
    "MixoptError",
    "Mixture",
    "MixtureError",
    "Objective",
    "Observation",
    "Prediction",
    "Proposal",
    "Recommendation",
    "ResourceError",
    "Role",
    "Status",
    "StudyChangedError",
    "StudyError",
    "TrainingError",
    "Trial",
]
