"""The error family: one class per kind of mistake, all of them `MixoptError`.

A message says what was expected, what came and what to do about it. The CLI turns
`ConfigError` and `MixtureError` into exit code 2 (wrong use or input) and every
other `MixoptError` into exit code 1 (the environment, or the work, failed).
"""

from __future__ import annotations


class MixoptError(Exception):
    """Base of every error that mixopt raises on purpose."""


class MixtureError(MixoptError, ValueError):
    """Mixture weights that are no point of the simplex, or name unknown domains."""


class ConfigError(MixoptError, ValueError):
    """A study file, a data file or an argument that cannot be used as given."""


class StudyChangedError(ConfigError):
    """The data behind a run directory differ from what its ledger was made with."""


class StudyError(MixoptError, RuntimeError):
    """A ledger or run directory that cannot be read, written or continued."""


class TrainingError(MixoptError, RuntimeError):
    """A proxy that could not be trained or scored."""


class ResourceError(MixoptError, RuntimeError):
    """The environment is at fault: no disk space, a cluster or server that is down."""
