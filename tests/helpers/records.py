"""The record of a run, metrics.jsonl, as a list."""

import json
from pathlib import Path

TIMES = {"images_per_second", "data_wait"}


def lines(workdir):
    text = (Path(workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def without_times(records):
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records]
