"""The error family: one class per kind of mistake, all of them `MixoptError`.

A message says what was expected, what came and what to do about it. The CLI turns
`ConfigError` and `MixtureError` into exit code 2 (wrong use or input) and every
other `MixoptError` into exit code 1 (the environment, or the work, failed).
"""

from __future__ import annotations

from collections.abc import Iterable


class MixoptError(Exception):
    """Base of every error that mixopt raises on purpose.

    Attributes:
        field: Place in a client's request that is at fault, as `runs.3`; None where it is not known.
    """

    field: str | None = None


class MixtureError(MixoptError, ValueError):
    """Mixture weights that are no point of the simplex, or name unknown domains."""


class ConfigError(MixoptError, ValueError):
    """A study file, a data file or an argument that cannot be used as given."""


class ConflictError(ConfigError):
    """Input that contradicts what the ledger holds already."""


class StudyChangedError(ConfigError):
    """The data behind a run directory differ from what its ledger was made with."""


class StudyError(MixoptError, RuntimeError):
    """A ledger or run directory that cannot be read, written or continued."""


class StudyBusyError(StudyError):
    """A run directory that another process holds at this moment."""


class TrainingError(MixoptError, RuntimeError):
    """A proxy that could not be trained or scored."""


class ResourceError(MixoptError, RuntimeError):
    """The environment is at fault: no disk space, a cluster or server that is down."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant, or None where none is close."""
    import difflib  # read only once something went wrong

    # Losses are not offered for scores, and what they share before the slash makes no two of them alike.
    kind, slash, wanted = name.lower().rpartition("/")
    names = {
        other.lower().rpartition("/")[2]: other for other in known if not slash or other.lower().startswith(f"{kind}/")
    }
    close = difflib.get_close_matches(wanted.replace("_", "-"), [*names], n=1)
    close = close or difflib.get_close_matches(wanted, [*names], n=1)
    return names[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'web'?)` to stand behind an unknown name; nothing where no known name is close."""
    close = closest(name, known)
    return f" (did you mean {close!r}?)" if close else ""
