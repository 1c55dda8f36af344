"""What reads and decodes image files faster: tf.data or threads of Python.

    python -m benchmarks.pipelines --data=FOLDER [--rounds=5] [--out=FILE.json]

FOLDER holds image files; of them are also made prepared images and TFRecords. All cores
work on batches of 256, two views of 224 pixels of each image; the two pipelines take
turns, and the one that is timed has made a batch before. Times are processor seconds,
which others on the machine lengthen little, and seconds of the clock, for which it must
do nothing else. The result has medians over the rounds:

    rates    of canvases (which an accelerator crops), crops and finished views
    stages   what only one thread of a process does at a time, in milliseconds an image:
             Python's lock, which "threads" holds for what images of 16 pixels cost it,
             and tf.data for planning steps and drawing parameters; and the copy of a
             canvas into its batch, of which tf.data does two at once
    model    images per second of one process on more cores, as far as these stages let
             it: a computation, no measurement
    records  of ArrayRecord read, and images decoded, by both and by grain, where that
             is installed
    start    seconds to the first batch at step 1,000,000 of ImageNet's 1,281,167 images
"""

import argparse
import importlib.util
import io
import json
import statistics
import struct
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import processor
from vicreg_jax import config as configs
from vicreg_jax.data import batches, crc32c, plan, preparing, tf_data
from vicreg_jax.data.augment import draw, on_host
from vicreg_jax.data.decoding import open_image
from vicreg_jax.data.image_files import ImageFiles, cores, covered
from vicreg_jax.data.source import How
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.data.sources.prepared import open_prepared
from vicreg_jax.data.sources.tfrecord import Names, open_tfrecords

BATCH, STEPS, SIZE, CANVAS = 256, 6, 224, 512
KINDS = {
    "canvases": How("whole", SIZE, canvas=CANVAS),
    "crops": How("crops", SIZE),
    "finished": How("finished", SIZE),
}
POLICIES = batches.policies(configs.Config())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="a folder of images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="writes the result as JSON")
    args = parser.parse_args()
    on_host.compile()
    folder = open_folder(args.data)
    with tempfile.TemporaryDirectory() as made:
        preparing.prepare(folder, f"{made}/prepared", shards=4)
        write_tfrecord(folder, f"{made}/images.tfrecord")
        sources = {
            "folder": folder,
            "prepared": open_prepared(f"{made}/prepared"),
            "tfrecord": open_tfrecords(f"{made}/images.tfrecord"),
        }
        rates = {
            name: {
                kind: turns(again(images), how, args.rounds)
                for kind, how in KINDS.items()
            }
            for name, images in sources.items()
        }
        found = stages(args.rounds)
        records = of_records(sources["prepared"], f"{made}/prepared", args.rounds)
    result = {
        "images": len(folder),
        "rates": rates,
        "stages, ms": found,
        "model, images/s": model(rates["folder"]["canvases"], found),
        "records": records,
        "start, s": start(folder),
        "machine": f"{processor()}, {cores()} core(s)",
        "versions": {
            name: version(name)
            for name in ("pillow", "jax", "numba", "tensorflow-cpu", "array_record")
        },
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


def again(images: ImageFiles, count: int = 1_281_167) -> ImageFiles:
    """Returns the images over and over, as a data set of this size."""
    n, names, paths = len(images), images.names, images.paths
    return ImageFiles(
        lambda i: images.read(i % n),
        Names(lambda i: names[i % n], count),
        paths=paths and Names(lambda i: paths[i % n], count),
    )


def planner(images: ImageFiles, batch: int = BATCH) -> plan.Planner:
    return plan.Planner(
        seed=0, examples=len(images), batch_size=batch, views=2, numbers=draw.NUMBERS
    )


def by_threads(images, how):
    plans = planner(images)
    return lambda step: images.views(*plans(step), POLICIES, how)


def by_tf_data(images, how):
    given = dict(rows=slice(0, BATCH), policies=POLICIES, how=how, stop=10**9)
    return tf_data.Stream(images, planner(images), **given).views


def turns(images: ImageFiles, how: How, rounds: int) -> dict:
    """Returns images per processor second and per second, and the ratios."""
    found = {"threads": [], "tf.data": []}
    for _ in range(rounds):
        for name, pipeline in (("threads", by_threads), ("tf.data", by_tf_data)):
            found[name].append(rate(pipeline(images, how)))
    slow, fast = (np.array(x) for x in found.values())
    ratio = np.median(fast / slow, axis=0).round(2).tolist()
    return {
        **{name: np.median(x, axis=0).round(1).tolist() for name, x in found.items()},
        "tf.data over threads": ratio,
    }


def rate(make) -> tuple[float, float]:
    """Returns images per processor second and per second."""
    make(0)
    begin = time.process_time(), time.perf_counter()
    for step in range(1, STEPS + 1):
        make(step)
    spent = time.process_time() - begin[0], time.perf_counter() - begin[1]
    return BATCH * STEPS / spent[0], BATCH * STEPS / spent[1]


def stages(rounds: int) -> dict:
    """Returns the milliseconds an image that one thread alone can do at a time."""
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "JPEG")
    small = content.getvalue()
    count = 4096
    images = ImageFiles(lambda i: small, Names(str, 4096), threads=1)
    plans, tiny = planner(images), How("whole", 8, canvas=16)
    canvas = np.zeros((64, CANVAS, CANVAS, 3), np.uint8)
    batch = np.zeros_like(canvas)

    def threads():
        images.views(*plans(0), POLICIES, tiny)

    def draws():
        indices, uniforms = plans(0)
        images.chosen(indices)
        sizes = np.array([open_image(small).size[::-1] for _ in indices])
        covered(draw.parameters(uniforms, sizes, POLICIES).box)

    works = {
        "threads: Python's lock": (threads, BATCH),
        "tf.data: Python's lock": (draws, BATCH),
        "tf.data: copy of a canvas": (lambda: np.copyto(batch, canvas), len(canvas)),
    }
    found = {}
    for name, (work, count) in works.items():
        times = []
        for turn in range(rounds + 1):
            begin = time.process_time()
            work()
            if turn:
                times.append(1e3 * (time.process_time() - begin) / count)
        found[name] = round(statistics.median(times), 4)
    return found


def model(rates: dict, found: dict) -> dict:
    """Returns images per second on more cores, were only these stages in the way."""
    lock, drawing, copy = found.values()
    most = {"threads": 1e3 / lock, "tf.data": 1e3 / max(drawing, copy / 2)}
    return {
        name: {n: round(min(n * rates[name][0], most[name])) for n in (16, 64, 128)}
        for name in most
    }


def of_records(images: ImageFiles, folder: str, rounds: int) -> dict:
    """Returns records and images per processor second and per second."""
    rng = np.random.default_rng(0)
    order = rng.integers(0, len(images), BATCH * STEPS)
    pool = ThreadPoolExecutor(cores())

    def whole(index):
        return Image.open(io.BytesIO(images.read(int(index)))).convert("RGB").tobytes()

    def threads(work):
        list(pool.map(work, order.tolist()))

    def tensorflow(decode):
        tf = tf_data._tensorflow()
        rows = tf.data.Dataset.from_tensor_slices(order)

        def read(index):
            content = tf.numpy_function(
                lambda i: images.read(int(i)), [index], "string"
            )
            if decode:
                content = tf.io.decode_jpeg(
                    content, channels=3, dct_method="INTEGER_ACCURATE"
                )
            return tf.size(content)

        for _ in rows.map(read, cores()).as_numpy_iterator():
            pass

    rivals = {
        "records, threads": lambda: threads(lambda i: images.read(i)),
        "records, tf.data": lambda: tensorflow(False),
        "images, threads": lambda: threads(whole),
        "images, tf.data": lambda: tensorflow(True),
    }
    if importlib.util.find_spec("grain"):
        import grain.python as grain

        paths = sorted(str(x) for x in Path(folder).glob("*.array_record"))
        records = grain.ArrayRecordDataSource(paths)

        def by_grain(function):
            data = grain.MapDataset.source(records)
            data = data.shuffle(seed=0).repeat().map(function)
            options = grain.ReadOptions(num_threads=cores(), prefetch_buffer_size=64)
            made = iter(data.to_iter_dataset(options))
            for _ in range(len(order)):
                next(made)

        def decoded(record):
            at = record.index(b"\xff\xd8\xff")
            return Image.open(io.BytesIO(record[at:])).convert("RGB").tobytes()

        rivals["records, grain"] = lambda: by_grain(len)
        rivals["images, grain"] = lambda: by_grain(decoded)
    found = {name: [] for name in rivals}
    for turn in range(rounds + 1):
        for name, work in rivals.items():
            begin = time.process_time(), time.perf_counter()
            work()
            spent = time.process_time() - begin[0], time.perf_counter() - begin[1]
            if turn:
                found[name].append([len(order) / x for x in spent])
    return {name: np.median(x, axis=0).round(1).tolist() for name, x in found.items()}


def start(images: ImageFiles) -> float:
    """Returns the seconds to the first batch of 64 at step 1,000,000."""
    many, how = again(images), KINDS["canvases"]
    given = dict(rows=slice(0, 64), policies=POLICIES, how=how, stop=10**9)
    made = tf_data.Stream(many, planner(many, 64), **given)
    begin = time.perf_counter()
    made.views(1_000_000)
    return round(time.perf_counter() - begin, 2)


def write_tfrecord(images: ImageFiles, path: str) -> None:
    import tensorflow as tf

    with open(path, "wb") as file:
        for i in range(len(images)):
            value = tf.train.BytesList(value=[images.read(i)])
            feature = {"image/encoded": tf.train.Feature(bytes_list=value)}
            features = tf.train.Features(feature=feature)
            data = tf.train.Example(features=features).SerializeToString()
            length = struct.pack("<Q", len(data))
            for part in (length, data):
                file.write(part + struct.pack("<I", crc32c.masked(part)))


if __name__ == "__main__":
    main()
