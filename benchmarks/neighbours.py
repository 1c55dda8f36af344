"""Measures the search for nearest neighbours against scikit-learn's brute force.

    python -m benchmarks.neighbours [--quick]

Both find 200 neighbours of 2,000 random queries in a random bank of 50,000 x 2048,
float32, by cosine similarity, from NumPy to NumPy, on all cores of the processor; a
call includes normalizing the bank. The two take turns, so that a busy minute meets
both: times are medians over the rounds, the ratio is the median of the ratios of each
round. The peak memory is that of a process of its own, which holds the arrays (0.43
GB) and calls one of them once. The full run takes about a minute and 3 GB and
writes results/neighbours.json; --quick prints three rounds and writes nothing.
"""

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402
import sklearn  # noqa: E402
from sklearn.neighbors import NearestNeighbors  # noqa: E402

from benchmarks.machine import processor  # noqa: E402
from vicreg_jax.devices import sharding  # noqa: E402
from vicreg_jax.evaluate import neighbours  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "neighbours.json"
BANK, QUERIES, DIMENSIONS, K = 50_000, 2_000, 2048, 200


def ours(queries, bank):
    return neighbours.nearest(queries, bank, k=K, mesh=sharding.data_mesh())[1]


def brute_force(queries, bank):
    model = NearestNeighbors(metric="cosine", algorithm="brute", n_neighbors=K)
    return model.fit(bank).kneighbors(queries, return_distance=False)


RIVALS = {"vicreg_jax": ours, "scikit-learn": brute_force}


def features():
    rng = np.random.default_rng(0)
    shapes = (QUERIES, DIMENSIONS), (BANK, DIMENSIONS)
    return tuple(rng.standard_normal(shape, np.float32) for shape in shapes)


def peak_gigabytes(name):
    """Returns the peak of a process that calls one of the rivals."""
    command = [sys.executable, "-m", "benchmarks.neighbours", "--peak", name]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(run.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds, not 9")
    parser.add_argument("--peak", choices=RIVALS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    arrays = features()
    if options.peak:
        RIVALS[options.peak](*arrays)
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return print(json.dumps(kilobytes * 1024 / 1e9))

    peaks = {name: peak_gigabytes(name) for name in RIVALS}
    found = {name: rival(*arrays) for name, rival in RIVALS.items()}  # compiles
    same = np.mean(np.equal(*found.values()))
    times = {name: [] for name in RIVALS}
    for _ in range(3 if options.quick else 9):
        for name, rival in RIVALS.items():
            start = time.perf_counter()
            rival(*arrays)
            times[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    results = {
        "command": "python -m benchmarks.neighbours",
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "scikit-learn": sklearn.__version__,
        "processor": f"{os.cpu_count()} cores of {processor()}",
        "rounds": len(ratios),
        "bank": [BANK, DIMENSIONS],
        "queries": QUERIES,
        "k": K,
        "seconds": {name: statistics.median(t) for name, t in times.items()},
        "seconds_of_rounds": times,
        "ratio": statistics.median(ratios),
        "peak_GB": peaks,
        "equal_indices_per_cent": 100 * float(same),
    }
    print(json.dumps(results, indent=1))
    if not options.quick:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
