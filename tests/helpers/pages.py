"""Runs that a page can be made of, and a reader of that page."""

import json
from html.parser import HTMLParser

import numpy as np

from vicreg_jax import report

VOID = {"meta", "img", "br", "link", "input", "hr"}
TERMS = dict(invariance=0.05, variance=0.4, covariance=2.5)


class Page(HTMLParser):
    """Collects text and attributes; fails where tags are not balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.tags, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def line(step, **changes):
    return (
        dict(step=step, epoch=step / 10, loss=14.5, grad_norm=2.0, learning_rate=0.1)
        | TERMS
        | dict(embedding_std=0.61, embedding_rank=40.0, embedding_correlation=0.12)
        | dict(representation_std=0.3, representation_rank=55.0)
        | dict(covariance_over_noise=0.2, images_per_second=512.0, data_wait=0.02)
        | changes
    )


def make_run(folder, *, lines=None, config=None):
    folder.mkdir(exist_ok=True)
    values = {"epochs": 100, "data": {"batch_size": 64, "image_size": 32}}
    (folder / "config.json").write_text(json.dumps(config or values))
    lines = [line(1, embedding_std=0.34), line(500)] if lines is None else lines
    text = "".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def make_gallery(n=30, *, labels=True, classes=("cat", "dog", "owl"), channels=3):
    rng = np.random.default_rng(0)
    return report.Gallery(
        features=rng.normal(size=(n, 8)).astype(np.float32),
        thumbnails=rng.integers(0, 256, (n, 12, 12, channels), np.uint8),
        labels=np.arange(n) % 3 if labels else None,
        classes=classes,
        views=rng.integers(0, 256, (3, 2, 40, 40, channels), np.uint8),
    )


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def result(**changes):
    """The content of a result.json."""
    found = dict(task="knn", name="knn", checkpoint="runs/x", data="imagenet2012")
    found |= dict(step=500, tested=50_000, notes=["votes weighted"])
    found |= dict(results={"20-NN top-1": 61.25}, published={"20-NN top-1": 64.5})
    return found | changes


def fill(folder):
    write_json(folder / "eval/knn/result.json", result())
    facts = {"lidar": 13.5, "healthy": True, "reason": "spread out"}
    for kind, rank in (("representation", 21.5), ("embedding", 17.5)):
        falling = (np.arange(1, 33) ** -0.7).tolist()
        own = dict(rank=rank, alpha=1.25, singular_values=falling, stds=falling)
        facts |= {f"{kind}_{name}": value for name, value in own.items()}
    write_json(folder / "eval/features/diagnostics.json", facts)
    few = [
        dict(features=name, probe="1-NN", labels=n, draws=draws)
        for name, draws in (("raw pixels", [50.0, 54.0]), ("VICReg", [80.0, 90.0]))
        for n in (1, 0)
    ]
    write_json(folder / "few_labels.json", few)
    facts = dict(commit="abc1234", devices=["TPU v5e"] * 8, jax="0.10.2")
    write_json(folder / "environment.json", facts)
