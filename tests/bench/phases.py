"""Print where a run directory's wall time went: phases, and how long both workers trained.

    python tests/bench/phases.py runs/quickstart

Reads the ledger alone. A stack counts as training from its trials' `running` event to
their result; times of an interrupted study include the interruption.
"""

import json
import sys
from datetime import datetime
from pathlib import Path


def main(directory: str) -> None:
    events = [json.loads(line) for line in (Path(directory) / "study.jsonl").read_text().splitlines()]
    times = [datetime.fromisoformat(event["time"]).timestamp() for event in events]
    started: dict[str, float] = {}
    roles: dict[str, str] = {}
    spans: list[tuple[float, float, str]] = []
    for event, now in zip(events, times, strict=True):
        if event["type"] == "propose":
            roles |= {trial["id"]: trial["role"] for trial in event["trials"]}
        elif event["type"] == "status" and event["status"] == "running":
            started |= dict.fromkeys(event["trials"], now)
        elif event["type"] == "result":
            spans.append((started[event["trial"]], now, roles[event["trial"]]))
    stacks = sorted({(start, max(e for s, e, _ in spans if s == start), role) for start, _, role in spans})
    total = times[-1] - times[0]
    print(f"ledger from first to last event: {total:.1f} s")
    for role in dict.fromkeys(role for *_, role in stacks):
        mine = [(s, e) for s, e, r in stacks if r == role]
        wall = max(e for _, e in mine) - min(s for s, _ in mine)
        both, one = _overlap(mine)
        print(f"{role:<11} wall {wall:6.1f} s, two stacks training {both / wall:4.0%}, at least one {one / wall:4.0%}")
    both, one = _overlap([(s, e) for s, e, _ in stacks])
    print(f"{'all':<11} wall {total:6.1f} s, two stacks training {both / total:4.0%}, at least one {one / total:4.0%}")


def _overlap(spans: list[tuple[float, float]]) -> tuple[float, float]:
    """Return seconds in which at least two, and at least one, of the spans are open."""
    edges = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    both = one = 0.0
    depth, last = 0, edges[0][0]
    for now, change in edges:
        both += (now - last) * (depth >= 2)
        one += (now - last) * (depth >= 1)
        depth, last = depth + change, now
    return both, one


if __name__ == "__main__":
    main(sys.argv[1])
