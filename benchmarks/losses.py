"""The loss of every step of a recipe: how far is it from ever tripping guard.spike?

python -m benchmarks.losses --config=digits [--config.FIELD=VALUE ...]

Trains as `python -m vicreg_jax.main` would, into a folder that is deleted, and writes
results/losses/NAME.json. The largest distance that it prints is that of a loss from the
running mean, in running mean deviations.
"""

import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from benchmarks.machine import processor
from vicreg_jax.run.spikes import KNOWN, spread_of

OUT = Path(__file__).parent / "results" / "losses"


def main() -> None:
    flags = sys.argv[1:]
    if not flags or not flags[0].startswith("--config="):
        sys.exit(__doc__)
    name = Path(flags[0].partition("=")[2]).stem
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vicreg_jax.main", *flags]
        command += ["--config.every.log_steps=1", f"--workdir={folder}/run"]
        subprocess.run(command, check=True)
        record = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in record]
    found = {
        "command": f"python -m benchmarks.losses {' '.join(flags)}",
        "date": f"{date.today():%Y-%m-%d}",
        "processor": processor(),
        "largest_distance": round(largest(losses), 2),
        "loss": [float(f"{x:.6g}") for x in losses],
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(found) + "\n")
    print(f"{name}: {len(losses)} steps, at most {found['largest_distance']} away")


def largest(losses: list[float]) -> float:
    """Returns the largest distance above the mean that a step had."""
    most = 0.0
    for step in range(KNOWN, len(losses)):
        mean, spread = spread_of(losses[step - KNOWN : step])
        most = max(most, (losses[step] - mean) / spread)
    return most


if __name__ == "__main__":
    main()
