"""A study that really trains: three domains of the built-in text, two rungs, jobs of a few seconds."""

from tests.e2e.studies import small_study

LADDER = [{"name": "low", "tokens": 4_000}, {"name": "top", "tokens": 48_000}]
FIELDS = {"ladder": LADDER, "search": {"batch_size": 2, "budget": 2}, "validation": {"seeds": 1}}


def write_study(root, name="study.yaml", **run):
    """Write text (once) and a study file; `run` are settings that change no number."""
    settings = {"executor": "serial", "tracking_uri": "none", "checkpoint_seconds": 0.2, "workers": 2, "stack": 2}
    path = small_study(root, **FIELDS, run={**settings, **run})
    return path.rename(root / name)


def checkpoints(directory):
    """Return the checkpoints of a run directory."""
    return sorted(directory.glob("jobs/*/checkpoint.safetensors"))
