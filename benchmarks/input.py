"""How many images per second a CPU core prepares, stage by stage, from your own files.

    python -m benchmarks.input --data=FOLDER [--target=2500] [--out=FILE.json]
    python -m benchmarks.input --data=FILE.npz --size=32
    python -m benchmarks.input --data=FOLDER --loop [--out=FILE.json]

FOLDER holds image files, or is what configs/prepare.py makes of them. Every image makes
two views: of the official policy, or for arrays of solo-learn's for CIFAR, which does
not blur. The rivals take turns on one core, to which the script pins itself, and times
are processor seconds, which others on the core do not lengthen much; the table has
medians over the rounds. Rows for files:

    plain Pillow   the whole work per image as torchvision's transforms on Pillow do it
    read           files into memory (of which the system may have a copy)
    decode         alone
    host           decode, both crops, resizing: data.resize=host
    host, colours  and all the rest but normalization: augment.colour=host
    device         decode, copy to a canvas: data.resize=device

What is left to the accelerator is timed on the device jax finds, with its own rate. The
result says how many cores feed --target images per second. For arrays, "device" is all
of the work, on the device jax finds.

With --loop, all cores: `train.run` with colours on the host and an encoder that looks
at a few pixels, so that nothing but the input limits it, in turns with the same input
alone, read batch after batch. Rates are per second of the clock, for which the machine
must do nothing else, and per processor second, which others lengthen little.
"""

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

if (
    hasattr(os, "sched_setaffinity") and "--loop" not in sys.argv
):  # before JAX counts the cores for its threads
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image, ImageEnhance, ImageFilter, ImageOps  # noqa: E402

from vicreg_jax import config as configs  # noqa: E402
from vicreg_jax import train  # noqa: E402
from vicreg_jax.data import batches, plan  # noqa: E402
from vicreg_jax.data.augment import draw  # noqa: E402
from vicreg_jax.data.image_files import ImageFiles  # noqa: E402
from vicreg_jax.data.source import Arrays, How  # noqa: E402
from vicreg_jax.data.sources.arrays import open_arrays  # noqa: E402
from vicreg_jax.data.sources.folder import open_folder  # noqa: E402
from vicreg_jax.data.sources.prepared import INDEX, open_prepared  # noqa: E402
from vicreg_jax.data.sources.tfrecord import Names  # noqa: E402
from vicreg_jax.devices import sharding  # noqa: E402

IMAGES, BATCH, BATCH_OF_ARRAYS = 128, 64, 512
LOOP, WARM = 50, 10  # steps, and those of them that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="a folder, or an .npz file")
    parser.add_argument("--loop", action="store_true", help="the whole train loop")
    parser.add_argument("--size", type=int, default=224, help="of a view, in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--target", type=float, default=2500, help="images per second")
    parser.add_argument("--out", type=Path, help="writes the result as JSON")
    args = parser.parse_args()
    if args.loop:
        result = measure_loop(image_files(args.data, None), args.size, args.rounds)
    elif args.data.endswith(".npz"):
        images = open_arrays(args.data).train.array[:BATCH_OF_ARRAYS]
        result = measure_arrays(images, args.size, args.rounds)
    else:
        result = measure(image_files(args.data, 1), args.size, args.rounds)
    print(json.dumps(result, indent=2)) if args.loop else show(result, args.target)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


def image_files(path: str, threads: int | None) -> ImageFiles:
    """Returns the images of a folder, prepared or not."""
    source = open_prepared if (Path(path) / INDEX).exists() else open_folder
    return source(path, threads=threads)


def measure(files: ImageFiles, size: int, rounds: int) -> dict:
    """Returns all rates, in images per processor second, and the machine."""
    chosen = np.linspace(0, len(files) - 1, min(IMAGES, len(files))).astype(int)
    chosen = [int(i) for i in chosen]
    data = [files.read(i) for i in chosen]
    held = ImageFiles(data.__getitem__, [files.names[i] for i in chosen], threads=1)
    settings = dict(data=dict(batch_size=BATCH, image_size=size))
    config = configs.parse(settings)
    policies = batches.policies(config)
    ways = {
        "host": How("crops", size),
        "host, colours": How("finished", size),
        "device": held.how(config, accelerator=True),
    }
    uniforms = plan.uniforms(0, 0, (len(data), 2, draw.NUMBERS))
    sizes = np.array([held.whole(i).shape[:2] for i in range(len(data))])
    drawn = draw.parameters(uniforms, sizes, policies)
    everything = np.arange(len(data))

    def host(how):
        for start in range(0, len(data), BATCH):
            rows = slice(start, start + BATCH)
            drawn = everything[rows], uniforms[rows]
            held.views(*drawn, policies, how)

    rivals = {
        "plain Pillow": lambda: [plain(d, i, drawn, size) for i, d in enumerate(data)],
        "read": lambda: [files.read(i) for i in chosen],
        "decode": lambda: [held.whole(i) for i in everything],
        **{name: partial(host, how) for name, how in ways.items()},
    }
    return {
        "images": len(data),
        "mean height, width": sizes.mean(axis=0).round(1).tolist(),
        "mean kilobytes": round(sum(map(len, data)) / len(data) / 1e3, 1),
        "size": size,
        "canvas": ways["device"].canvas,
        **in_turns(rivals, len(data), rounds),
        "accelerator's part, images per second": {
            name: round(on_device(held, config, how, rounds), 1)
            for name, how in ways.items()
        },
        **here(),
    }


class Glance(nn.Module):
    """Looks at one pixel in 32 of each row and column."""

    @nn.compact
    def __call__(self, x, *, train):
        x = x[:, ::32, ::32]
        return nn.Dense(64)(x.reshape(len(x), -1))


def measure_loop(files: ImageFiles, size: int, rounds: int) -> dict:
    """Returns the rates of the train loop and of its input alone, and the machine."""
    count, names = BATCH * LOOP, files.names
    times = []  # of the clock and the processor, after each image read

    def read(index):
        times.append((time.perf_counter(), time.process_time()))
        return files.read(index % len(names))

    # The files again and again.
    images = ImageFiles(read, Names(lambda i: names[i % len(names)], count))
    settings = dict(
        data=dict(batch_size=BATCH, image_size=size),
        augment=dict(colour="host"),
        model=dict(expander=(16, 16)),
        optimizer=dict(warmup_epochs=0),
        epochs=1,
    )
    config = configs.parse(settings)
    made = batches.Batches(images, config, sharding.data_mesh())
    planner = plan.Planner(
        seed=0, examples=count, batch_size=BATCH, views=2, numbers=draw.NUMBERS
    )

    def alone():
        for step in range(LOOP):
            made.make(planner, step, slice(None))

    def loop():
        with tempfile.TemporaryDirectory() as workdir:
            train.run(config, workdir, encoder=Glance(), source=images)

    def rates(work):
        """Returns images per second of the clock and of processors."""
        times.clear()
        work()
        first, last = np.array(times)[[-BATCH * (LOOP - WARM), -BATCH]]
        return BATCH * (LOOP - WARM - 1) / (last - first)

    turns = np.array([(rates(alone), rates(loop)) for _ in range(rounds + 1)])
    turns = turns[1:]  # the first warms up
    (alones, loops), ratios = np.median(turns, axis=0), turns[:, 1] / turns[:, 0]
    result = {"images": len(names), "size": size, "steps": LOOP - WARM - 1}
    for i, unit in enumerate(("second", "CPU second")):
        result[f"images per {unit}"] = {
            "input alone": round(alones[i], 1),
            "train loop": round(loops[i], 1),
            "train loop over input alone": round(float(np.median(ratios[:, i])), 3),
            "in each round": ratios[:, i].round(3).tolist(),
        }
    return result | here(images.threads)


def measure_arrays(images: np.ndarray, size: int, rounds: int) -> dict:
    """Returns the rates for images that the device holds, and the machine."""
    augment = dict(crop_scale=(0.2, 1.0), blur=(0.0, 0.0), solarize=(0.1, 0.1))
    data = dict(batch_size=len(images), image_size=size)
    config = configs.parse(dict(data=data, augment=augment))
    numbers = dict(views=2, numbers=draw.NUMBERS)
    planner = plan.Planner(
        seed=0, examples=len(images), batch_size=len(images), **numbers
    )
    one = sharding.data_mesh(jax.devices()[:1])
    made = batches.Batches(Arrays(images), config, one)
    held, render = made.resident(), jax.jit(made.render)
    first = made.make(planner, 0, slice(None))
    drawn, pictures = (
        first.parameters,
        [Image.fromarray(images[i]) for i in first.images],
    )

    def device():  # with planning the step
        batch = made.make(planner, 0, slice(None))
        jax.block_until_ready(render(held, batch))

    rivals = {
        "plain Pillow": lambda: [
            augmented(x, i, drawn, size) for i, x in enumerate(pictures)
        ],
        "device": device,
    }
    return {
        "images": len(images),
        "mean height, width": list(images.shape[1:3]),
        "size": size,
        **in_turns(rivals, len(images), rounds),
        **here(),
    }


def in_turns(rivals, images, rounds):
    """Returns the rate of each, and how often it is that of plain Pillow: medians."""
    times = {name: [] for name in rivals}
    for turn in range(rounds + 1):  # the first warms up
        for name, work in rivals.items():
            begin = time.process_time()
            work()
            if turn:
                times[name].append(time.process_time() - begin)
    slow = times["plain Pillow"]
    against = {
        name: statistics.median(a / b for a, b in zip(slow, t, strict=True))
        for name, t in times.items()
    }
    rates = {name: images / statistics.median(t) for name, t in times.items()}
    return {
        "images per CPU second": {n: round(r, 1) for n, r in rates.items()},
        "times plain Pillow": {n: round(r, 2) for n, r in against.items()},
    }


def here(cores=1):
    return {
        "accelerator": str(jax.devices()[0].device_kind),
        "machine": f"{platform.machine()}, {platform.system()}, {cores} core(s)",
        "versions": {name: version(name) for name in ("pillow", "jax", "numba")},
        "date": time.strftime("%Y-%m-%d"),
    }


def on_device(held, config, how, rounds):
    """Returns images per second of what is left to the device, both views."""
    count = min(BATCH, len(held))
    uniforms = plan.uniforms(0, 0, (count, 2, draw.NUMBERS))
    drawn = np.arange(count), uniforms, batches.policies(config)
    batch = batches.Batch(*held.views(*drawn, how), how.kind)
    batch = jax.device_put(batch)
    on_cpu = jax.default_backend() == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    one = sharding.data_mesh(jax.devices()[:1])
    render = jax.jit(partial(batches.Batches(held, config, one).render, ()))
    times = []
    for turn in range(rounds + 1):
        begin = clock()
        jax.block_until_ready(render(batch))
        if turn:  # the first compiles
            times.append(clock() - begin)
    return count / statistics.median(times)


def plain(data, index, drawn, size):
    """One image, both views, as torchvision's transforms on Pillow do it."""
    return augmented(Image.open(io.BytesIO(data)).convert("RGB"), index, drawn, size)


def augmented(image, index, drawn, size):
    result = []
    for v in range(2):
        p = draw.Parameters(*(leaf[index, v] for leaf in drawn))
        top, left, height, width = p.box.astype(int).tolist()
        x = image.crop((left, top, left + width, top + height))
        x = x.resize((size, size), Image.Resampling.BICUBIC)
        if p.flip:
            x = x.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if p.brightness != 1:
            for kind in p.order:
                x = jitter(x, kind, p)
        if p.grey:
            x = x.convert("L").convert("RGB")
        if p.sigma:
            x = x.filter(ImageFilter.GaussianBlur(float(p.sigma)))
        if p.solarize:
            x = ImageOps.solarize(x, 128)
        x = np.asarray(x, np.float32).transpose(2, 0, 1) / 255
        result.append((x - np.float32(0.45)) / np.float32(0.225))
    return result


def jitter(image, kind, p):
    if kind == 3:
        hue, saturation, value = image.convert("HSV").split()
        turned = np.asarray(hue) + np.uint8(int(p.hue * 255) % 256)
        parts = (Image.fromarray(turned), saturation, value)
        return Image.merge("HSV", parts).convert("RGB")
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[kind]
    return enhance(image).enhance(float((p.brightness, p.contrast, p.saturation)[kind]))


def show(result: dict, target: float) -> None:
    height, width = result["mean height, width"]
    print(
        f"{result['images']} images, on average {height:.0f} x {width:.0f} pixels;"
        f" two views of {result['size']} pixels; canvas {result.get('canvas', 'none')}"
    )
    print(
        f"{'':14}{'images/s/core':>15}{'x Pillow':>10}{f'cores for {target:g}/s':>20}"
    )
    for name, rate in result["images per CPU second"].items():
        ratio = result["times plain Pillow"][name]
        print(f"{name:14}{rate:15.0f}{ratio:10.2f}{target / rate:20.1f}")
    device = result.get("accelerator's part, images per second")
    if device:
        left = ", ".join(f"{rate:.0f} after {name!r}" for name, rate in device.items())
        print(f"left to {result['accelerator']}, in images/s: {left}")


if __name__ == "__main__":
    main()
