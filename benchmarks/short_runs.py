"""Short pretraining runs on real images, judged by k-NN: does it learn at all?

python -m benchmarks.short_runs --out=DIR --cifar10=FILE.npz
python -m benchmarks.short_runs --out=DIR --imagenette=FOLDER

FILE.npz is what configs/cifar10.py describes, FOLDER holds train/ and val/. Each starts
`python -m vicreg_jax.main` for some hundred steps, which is next to nothing against the
recipe, and compares raw pixels, the untrained and the trained encoder by the plain vote
of the nearest training images (cosine). Metrics and accuracies go to DIR.
"""

import argparse
import json
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np

from vicreg_jax import config, evaluate, train
from vicreg_jax.data.source import Arrays
from vicreg_jax.data.sources.arrays import open_arrays
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.weights import loading

NEIGHBOURS = (1, 20)
COMMON = (
    *("--config.model.dtype=float32", "--config.every.log_steps=10"),
    "--config.evaluate.draws=0",
)
CIFAR10 = (
    *("--config.data.name=arrays", "--config.epochs=1", "--config.data.batch_size=128"),
    "--config.optimizer.warmup_epochs=0.1",
)  # 390 steps
IMAGENETTE = (
    *("--config.data.name=folder", "--config.epochs=6", "--config.data.batch_size=64"),
    *("--config.optimizer.warmup_epochs=1", "--config.data.image_size=96"),
    # As for CIFAR-10: with the usual 0.001 the weights hardly move in so few steps.
    *("--config.optimizer.trust_coefficient=0.02", "--config.optimizer.clip=True"),
)  # 420 steps of the 4,500 images that tests use


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cifar10", help="an .npz file")
    parser.add_argument("--imagenette", type=Path, help="a folder of train/ and val/")
    args = parser.parse_args()
    if args.cifar10:
        splits = open_arrays(args.cifar10)
        run("cifar10", args.cifar10, splits, CIFAR10, args.out)
    if args.imagenette:
        splits = [_in_memory(args.imagenette / part) for part in ("train", "val")]
        path = str(args.imagenette / "train")
        run("imagenette", path, splits, IMAGENETTE, args.out)


def run(name, path, splits, overrides, out):
    """Pretrains, evaluates, writes DIR/NAME.json and DIR/NAME.jsonl."""
    workdir = out / f"{name}_workdir"
    flags = [*COMMON, *overrides]
    command = [sys.executable, "-m", "vicreg_jax.main", f"--config=configs/{name}.py"]
    command += [*flags, f"--workdir={workdir}", f"--config.data.path={path}"]
    subprocess.run(command, check=True)
    parsed = config.parse(json.loads((workdir / "config.json").read_text()))
    (bank, labels), (asked, answers) = ((x.array, x.labels) for x in splits)
    features = {"raw pixels": lambda images: images.reshape(len(images), -1) / 255.0}
    for row, encoder in (
        ("untrained encoder", train.untrained(parsed)),
        ("VICReg", loading.load(workdir)),
    ):
        features[row] = partial(evaluate.encode, encoder)
    accuracies = {
        row: knn(make(bank), labels, make(asked), answers)
        for row, make in features.items()
    }
    result = {
        "config": f"configs/{name}.py",
        "flags": flags,
        "machine": f"{platform.processor() or platform.machine()}, {jax.devices()[0]}",
        "jax": jax.__version__,
        "bank": len(bank),
        "test": len(asked),
        "k-NN per cent, by k": accuracies,
    }
    print(json.dumps(result, indent=2))
    (out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (out / f"{name}.jsonl").write_text((workdir / "metrics.jsonl").read_text())


def knn(bank, labels, asked, answers):
    """Returns {k: accuracy in per cent} of the vote; among equals the nearest wins."""
    mean = bank.mean(axis=0)
    bank, asked = (_unit(x - mean) for x in (bank, asked))
    right = dict.fromkeys(NEIGHBOURS, 0)
    for start in range(0, len(asked), 500):
        similar = asked[start : start + 500] @ bank.T
        nearest = np.argsort(-similar, axis=1)[:, : max(NEIGHBOURS)]
        for k in NEIGHBOURS:
            votes = labels[nearest[:, :k]]
            counts = np.sum(votes[:, :, None] == votes[:, None, :], axis=2)
            chosen = np.take_along_axis(votes, counts.argmax(axis=1)[:, None], axis=1)
            right[k] += int(np.sum(chosen[:, 0] == answers[start : start + 500]))
    return {k: round(100 * n / len(asked), 2) for k, n in right.items()}


def _unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _in_memory(root):
    files = open_folder(root)
    return Arrays(files.stack(), files.labels)


if __name__ == "__main__":
    main()
