"""The page of several runs, and figures in a notebook."""

import base64
import io
import re

import numpy as np
import pytest
from helpers.pages import Page, fill, line, make_gallery, make_run
from PIL import Image

from vicreg_jax import report
from vicreg_jax.command import tasks
from vicreg_jax.config import Evaluation
from vicreg_jax.refusals import NotFound, Refusal

pytest.importorskip("matplotlib", reason="the extra report")
pytest.importorskip("jinja2", reason="the extra report")

from vicreg_jax.report import charts, comparison  # noqa: E402
from vicreg_jax.report import map as maps  # noqa: E402


@pytest.fixture
def runs(tmp_path):
    """Two runs that differ in a weight and a rate, one of them evaluated."""
    a = make_run(tmp_path / "a")
    fill(a)
    config = {"epochs": 100, "data": {"batch_size": 64, "image_size": 32}}
    config |= {"loss": {"variance": 0.0}, "optimizer": {"base_lr": 0.5}}
    lines = [line(1, embedding_std=0.34), line(500, embedding_std=0.001)]
    return a, make_run(tmp_path / "b", config=config, lines=lines)


def test_the_page_has_what_the_runs_are_and_differ_in(runs, tmp_path):
    page = Page(report.compare(runs, tmp_path / "page.html").read_text())
    assert "reached Step 500 of 1,000, not finished" in page.words
    assert "health healthy not healthy" in page.words
    assert "embedding std 0.610 0.0010" in page.words
    assert "knn on imagenet2012: 20-NN top-1 61.2" in page.words
    assert "1-NN, 1 labels per class, per cent 85.0" in page.words
    own = page.words.partition("What they differ in")[2]
    assert "optimizer.base_lr 0.2 0.5" in own and "loss.variance 25 0" in own
    assert "epochs" not in own and "http" not in page.words
    assert len(page.ids) == len(set(page.ids))


def test_the_task_writes_it_into_a_new_folder(runs, tmp_path):
    config = Evaluation.parse({"task": "compare", "runs": [str(x) for x in runs]})
    tasks.run(config, str(tmp_path / "of/both"), name="compare")
    assert "optimizer.base_lr" in (tmp_path / "of/both/comparison.html").read_text()


def test_each_curve_has_the_values_and_the_colour_of_its_run(runs, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        charts, "finish", lambda axes, title: shown.update({title: axes})
    )
    comparison.panels(comparison.read(runs))
    lines = shown["Std of embeddings"].lines
    assert [x.get_color() for x in lines] == charts.LABELS[:2]
    found = [x.get_xydata().tolist() for x in lines]
    assert found == [[[1, 0.34], [500, 0.61]], [[1, 0.34], [500, 0.001]]]


def test_runs_of_one_name_go_by_their_paths(runs, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    make_run(other / "a")
    names = list(comparison.read([*runs, other / "a"]))
    assert names == [str(runs[0]), "b", str(other / "a")]


def test_a_name_is_no_markup(tmp_path):
    evil = [make_run(tmp_path / name) for name in ("<b>a", "<script>")]
    text = report.compare(evil, tmp_path / "page.html").read_text()
    assert not {"script", "b"} & {tag for tag, _ in Page(text).tags}
    assert "<b>" not in report.show(*evil)._repr_html_()


def test_one_run_or_none_is_not_compared(runs, tmp_path):
    for given in ((), runs[:1], (runs[0], runs[0])):
        with pytest.raises(Refusal, match=f"2 to 10 .* got {len(set(given))}"):
            report.compare(given, tmp_path / "page.html")
    with pytest.raises(NotFound, match="is no run: there is no config.json"):
        report.compare([runs[0], tmp_path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(Refusal, match="2 to 10 .* got 0"):
        tasks.compare(Evaluation(task="compare"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_notebook_shows_pictures_of_one_run_or_several(runs, monkeypatch):
    monkeypatch.setattr(maps, "project", lambda x: ("t-SNE", x[:, :2].astype(float)))
    one = report.show(runs[0])
    assert one.heading.startswith(
        "a: Step 500 of 1,000, not finished, healthy: mean emb"
    )
    assert {"loss", "variance", "embedding_std", "embedding_rank"} <= one.panels.keys()
    both = report.show(*runs)
    assert both.colours == dict(zip("ab", charts.LABELS[:2], strict=True))
    assert {"loss", "embedding_std"} <= both.panels.keys()
    seen = report.show(runs[0], gallery=make_gallery())
    assert list(seen.panels) == ["map", "neighbours"]
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', both._repr_html_())
    sizes = [Image.open(io.BytesIO(base64.b64decode(x))).size for x in pictures]
    assert len(sizes) == len(both.panels) and np.min(sizes) > 100


def test_a_gallery_is_that_of_one_run(runs):
    for given in ((), runs):
        with pytest.raises(Refusal, match=f"one run and its gallery; got {len(given)}"):
            report.show(*given, gallery=make_gallery())
