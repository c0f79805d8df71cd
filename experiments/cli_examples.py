"""One or two examples per verb, shown at the end of its help; a test parses them all."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": ("mixopt init my-text", "mixopt init my-text --out study.yaml --name mine"),
    "check": ("mixopt check study.yaml", "mixopt check study.yaml --json"),
    "run": ("mixopt run study.yaml", "mixopt run study.yaml --workers 4 --tracking-uri none"),
    "status": ("mixopt status study.yaml", "mixopt status runs/mine --json"),
    "predict": (
        "mixopt predict runs/mine --mixture web=0.6,code=0.4",
        "mixopt predict --runs runs.csv --mixtures candidates.csv --out predicted.csv",
    ),
    "suggest": ("mixopt suggest study.yaml -n 4 --out next.csv",),
    "tell": ("mixopt tell study.yaml --runs finished.csv",),
    "serve": ("mixopt serve study.yaml", "mixopt serve study.yaml --host 0.0.0.0 --token-file token.txt"),
    "report": ("mixopt report runs/mine",),
    "convert": ("mixopt convert RUNS --from regmix --out runs.csv",),
    "export": ("mixopt export runs/mine --format megatron", "mixopt export runs/mine --format hf --out mixture.py"),
    "export-model": ("mixopt export-model runs/mine --trial expert-web --out model",),
    "replay": ("mixopt replay runs.csv --target-fidelity top --objective 'mean(loss/*)' --optimizers mfbo,random",),
    "bench": ("mixopt bench sizes", "mixopt bench lr study.yaml --seeds 3"),
    "dashboard": ("mixopt dashboard runs/mine", "mixopt dashboard study.yaml --port 5001"),
    "sync": ("mixopt sync runs/mine", "mixopt sync runs/mine --tracking-uri http://localhost:5000"),
    "doctor": ("mixopt doctor", "mixopt doctor study.yaml"),
}


def epilog(verb: str) -> str:
    """Return the examples of a verb as typer shows them: a paragraph per line."""
    return "\n\n".join(["Examples:" if len(EXAMPLES[verb]) > 1 else "Example:", *EXAMPLES[verb]])
