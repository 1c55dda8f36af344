"""The page of a run: what it says, that it stands alone, and what it refuses."""

import copy
import dataclasses
import json
import re
import sys

import numpy as np
import pytest
from helpers.pages import (
    Page,
    fill,
    line,
    make_gallery,
    make_run,
    result,
    write_json,
)
from PIL import Image

from vicreg_jax import report
from vicreg_jax.config import Config
from vicreg_jax.refusals import Refusal, Unusable
from vicreg_jax.report.read import read_run

pytest.importorskip("matplotlib", reason="the extra report")
pytest.importorskip("jinja2", reason="the extra report")

from vicreg_jax.report import map as maps  # noqa: E402
from vicreg_jax.report import sections  # noqa: E402


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The folder and page of a run that has everything."""
    folder = make_run(tmp_path_factory.mktemp("full") / "run")
    fill(folder)
    return folder, report.write(folder, gallery=make_gallery()).read_text()


def test_page_stands_alone(full):
    _, text = full
    for tag, attributes in Page(text).tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            target = attributes.get(name) or "#"
            plain_link = tag == "a" and target.startswith("https://arxiv.org/")
            assert target.startswith(("#", "data:image/")) or plain_link, target
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_page_is_balanced_and_its_names_are_unique(full):
    page = Page(full[1])
    assert len(page.ids) == len(set(page.ids)) > 50
    used = re.findall(r'(?:url\(#|href="#)([^")]+)', full[1])
    assert set(used) <= set(page.ids)


def test_page_has_the_numbers_of_the_run(full):
    words = Page(full[1]).words
    wanted = (
        "Healthy",
        "Step 500 of 1,000, not finished",
        "14.5",
        "0.340 at the start",
    )
    wanted += (
        "512",
        "abc1234",
        "8 × TPU v5e",
        "61.2",
        "64.5",
        "−3.2",
        "votes weighted",
    )
    wanted += (
        "21.5",
        "17.5",
        "1.25",
        "13.5",
        "85.0 ±63.5",  # of two draws: 12.706 standard errors
        "+33.0",
        "Figure 7.",
        "Table 3.",
    )
    for text in wanted:
        assert text in words, text


def test_captions_hold_the_last_values_against_what_is_usual(full):
    words = Page(full[1]).words
    assert "ends at 13 to 15 (here 14.5)" in words
    assert "falls to 0.03 to 0.15 (here 0.0500)" in words
    assert "rises to about 0.6 (here 0.610)" in words


def test_a_top_5_that_says_nothing_is_left_out(tmp_path):
    folder = make_run(tmp_path / "run")
    found = {"1-NN top-1": 50.0, "1-NN top-5": 50.0, "20-NN top-5": 80.0}
    write_json(folder / "eval/a/result.json", result(results=found))
    few = {"20-NN top-1": 60.0, "20-NN top-5": 100.0}
    write_json(folder / "eval/b/result.json", result(results=few))
    rows = sections.evaluation(read_run(folder))["rows"]
    assert [x["metric"] for x in rows] == ["1-NN top-1", "20-NN top-5", "20-NN top-1"]


def test_the_page_says_how_many_images_and_how_long(tmp_path):
    folder = make_run(tmp_path / "run")
    write_json(folder / "environment.json", {"examples": 1437})
    parts = ("starting", "compiling", "waiting for data", "saving", "judging")
    seconds = {"steps": 3600.0, **dict.fromkeys(parts, 0.0), "compiling": 60.0}
    start = {"began": "", "first": 0, "last": 9, "seconds": seconds}
    write_json(folder / "starts.jsonl", start)
    words = Page(report.write(folder).read_text()).words
    assert "data 1,437 images, " in words
    assert "time 1:01:00: 98% steps, 2% compiling (1 start)" in words


def test_every_figure_of_the_page_is_a_png_too(full):
    folder, text = full
    files = sorted((folder / "report").iterdir())
    assert len(files) == text.count("<svg") == 20
    for file in files:
        with Image.open(file) as image:
            assert min(image.size) > 100
    assert not list(folder.glob("*.tmp"))


def test_changed_settings_are_marked(full):
    marked = re.findall(r'<tr class="changed"><th scope=row>(\w+)', full[1])
    assert sorted(marked) == ["batch_size", "image_size"]


def test_same_run_gives_the_same_page(full):
    folder, text = full
    assert report.write(folder, gallery=make_gallery()).read_text() == text


def test_missing_pieces_leave_no_trace(tmp_path):
    folder = make_run(tmp_path / "run", lines=[])
    page = Page(report.write(folder).read_text())
    headings = [tag for tag, _ in page.tags if tag in ("h2", "figure", "script")]
    assert headings == ["h2"]  # the settings
    assert "Nothing has been logged yet" in page.words
    (folder / "metrics.jsonl").unlink()
    assert report.write(folder).exists()


def test_log_with_one_line_and_few_values_is_shown(tmp_path):
    folder = make_run(tmp_path / "run", lines=[dict(step=1, loss=22.5)])
    words = Page(report.write(folder).read_text()).words
    assert "22.5" in words and "Step 1." in words and "Schedule" not in words


def test_figures_of_an_earlier_page_go(tmp_path):
    folder = make_run(tmp_path / "run")
    report.write(folder, gallery=make_gallery())
    report.write(folder)
    names = {file.stem for file in (folder / "report").iterdir()}
    assert "loss" in names and not names & {"map", "neighbours", "views"}


def test_collapse_is_the_headline(tmp_path):
    lines = [line(1, embedding_std=0.34), line(500, embedding_std=0.01)]
    words = Page(
        report.write(make_run(tmp_path / "run", lines=lines)).read_text()
    ).words
    assert "Not healthy" in words and "collapse" in words


def test_damaged_lines_are_skipped_and_counted(tmp_path):
    lines = [line(1), '{"step": 2, "lo\n', "[3]\n", '{"loss": 1}\n', line(500)]
    folder = make_run(tmp_path / "run", lines=[*lines, '{"step": 600, "loss": NaN}\n'])
    record = read_run(folder)
    assert record.damaged == 3
    assert [x["step"] for x in record.metrics] == [1, 500, 600]
    assert "loss" not in record.metrics[-1]
    words = Page(report.write(folder).read_text()).words
    assert "3 damaged lines of metrics.jsonl skipped" in words


def test_repeated_steps_count_once_and_in_order(tmp_path):
    lines = [line(1), line(20), line(10), line(20, loss=9.0)]
    record = read_run(make_run(tmp_path / "run", lines=lines))
    assert [x["step"] for x in record.metrics] == [1, 10, 20]
    assert record.metrics[-1]["loss"] == 9.0


FILES = (
    "metrics.jsonl",
    "eval/knn/result.json",
    "eval/features/diagnostics.json",
    "few_labels.json",
    "environment.json",
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(
            ("eval/knn/result.json", json.dumps(result(**changes)))
            for changes in (
                {"results": {"top-1": "high"}},
                {"results": {"top-1": float("inf")}},
                {"results": {"top-1": 10**400}},
                {"results": {"top-1": -1.0}},
                {"tested": True},
                {"tested": 0},
                {"notes": [3]},
                {"checksum": 3},
            )
        ),
        ("eval/features/diagnostics.json", "[]"),
        ("few_labels.json", '[{"features": "VICReg"}]'),
        (
            "few_labels.json",
            '[{"features": "x", "probe": "y", "labels": [1], "draws": [2]}]',
        ),
        ("environment.json", "3"),
        *((name, content) for name in FILES[1:] for content in ("", "{", "[" * 10**5)),
        *((name, b"\xff\x00{}") for name in FILES[1:]),
    ],
)
def test_files_that_are_no_such_thing_are_named(tmp_path, name, content):
    content = content if isinstance(content, bytes) else content.encode()
    folder = make_run(tmp_path / "run")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    assert read_run(folder).unreadable == [name]


def test_the_page_names_what_cannot_be_read(tmp_path):
    folder = make_run(tmp_path / "run")
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir(parents=True)
    words = Page(report.write(folder).read_text()).words
    _, _, listed = words.partition("Could not be read: ")
    assert sorted(listed.partition(". Figures")[0].split(", ")) == sorted(FILES)


def foreign(rng, value):
    """Returns a JSON value with one of its parts replaced, emptied or left out."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        value, key = copy.copy(value), keys[rng.integers(len(keys))]
        if rng.random() < 0.1:
            del value[key]
        else:
            value[key] = foreign(rng, value[key])
        return value
    others = [None, True, "", "\ud800", [], {}, [[]], [1, "x"], {"a": {}}, -1, 0, 2.5]
    others += [10**400, 1e300, -1e30, 1e-300, float("nan"), float("inf")]
    return others[rng.integers(len(others))]


@pytest.mark.slow
def test_no_content_of_the_files_is_a_traceback(tmp_path, full):
    folder = make_run(tmp_path / "run")
    rng = np.random.default_rng(0)
    for i in range(20):  # some hundred have been tried
        for name in FILES:
            content = (full[0] / name).read_bytes()
            lines = content.splitlines() if name == "metrics.jsonl" else [content]
            lines = [json.dumps(foreign(rng, json.loads(x))).encode() for x in lines]
            content = b"\n".join(lines)
            if i % 4 == 1:
                content = content[: rng.integers(len(content))]
            if i % 4 == 3:
                noise = rng.integers(0, 256, len(content), np.uint8)
                at = rng.random(len(content)) < rng.choice([0.001, 0.1, 1])
                raw = np.frombuffer(content, np.uint8)
                content = np.where(at, noise, raw).tobytes()
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        Page(report.write(folder).read_text())


EVIL = (
    '</script><script>alert("1")</script><img src=x onerror=alert(1)>&"\' $x_1$ #d9dee3'
)


def test_no_text_of_the_run_becomes_markup(tmp_path):
    folder = make_run(
        tmp_path / "<b>run",
        config={"data": {"name": "folder", "path": EVIL}, "wandb": EVIL},
    )
    texts = dict.fromkeys(("task", "name", "data"), EVIL)
    found = result(**texts, results={EVIL: 50.0}, notes=[EVIL])
    write_json(folder / "eval/x/result.json", found)
    write_json(
        folder / f"eval/{EVIL[1:8]}/diagnostics.json", dict(representation_rank=3.0)
    )
    rows = [dict(features=EVIL, probe=EVIL, labels=1, draws=[1.0])]
    write_json(folder / "few_labels.json", rows)
    write_json(folder / "environment.json", dict(commit=EVIL, devices=[EVIL]))
    gallery = make_gallery(classes=(EVIL, "犬", "owl"))
    text = report.write(folder, gallery=gallery).read_text()
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2 and tags.count("img") == 1 and "b" in tags
    assert "alert" not in " ".join(re.findall("<[^>]*>", text))
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert page.words.count(" ".join(EVIL.split())) >= 8
    data = re.search(r'id="points">(.*?)</script>', text, re.DOTALL)[1]
    assert EVIL in json.loads(data)["names"]


def test_only_our_script_may_run(full):
    import base64
    import hashlib

    script = re.findall(r"<script>(.*?)</script>", full[1], re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in full[1]


def test_pointer_finds_thumbnails_where_the_map_has_them(full):
    data = re.search(r'id="points">(.*?)</script>', full[1], re.DOTALL)[1]
    data = json.loads(data)
    assert len(data["x"]) == len(data["y"]) == len(data["names"]) == 30
    assert data["size"] * data["columns"] == 6 * 12
    assert data["names"][:4] == ["cat", "dog", "owl", "cat"]
    drawn = re.findall(r'<use xlink:href="#C0_[^>]* x="([\d.]+)" y="([\d.]+)"', full[1])
    np.testing.assert_allclose(
        np.array(drawn, float), np.stack([data["x"], data["y"]], axis=1), atol=0.06
    )  # the data are rounded to 0.1, the drawing to 0.001


def test_grey_images_without_labels_will_do(tmp_path):
    gallery = make_gallery(12, labels=False, channels=1)
    text = report.write(make_run(tmp_path / "run"), gallery=gallery).read_text()
    words = Page(text).words
    assert "Nearest neighbours" in words and "chance would give" not in words
    text = report.write(
        tmp_path / "run", gallery=gallery._replace(views=gallery.views[:0])
    ).read_text()
    assert "Augmented views" not in Page(text).words


def test_long_log_and_large_gallery_stay_below_3_mb(tmp_path, monkeypatch):
    monkeypatch.setattr(maps, "project", lambda x: ("t-SNE", x[:, :2].astype(float)))
    rng = np.random.default_rng(0)
    noise = [{k: v * rng.uniform(0.5, 1) for k, v in line(1).items()} for _ in range(9)]
    lines = [noise[i % 9] | dict(step=i + 1, epoch=i / 10) for i in range(4000)]
    gallery = report.Gallery(
        features=rng.normal(size=(2000, 16)).astype(np.float32),
        thumbnails=rng.integers(0, 256, (2000, 64, 64, 3), np.uint8),
        labels=None,
        classes=(),
        views=rng.integers(0, 256, (20, 2, 96, 96, 3), np.uint8),
    )
    page = report.write(make_run(tmp_path / "run", lines=lines), gallery=gallery)
    assert page.stat().st_size < 3e6  # of noise, which nothing compresses


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run: there is no config.json"):
        report.write(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged: Expecting"):
        report.write(tmp_path)
    (tmp_path / "config.json").write_text('{"epoch": 3}')
    with pytest.raises(ValueError, match="config.epoch is not a field"):
        report.write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json"]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"[1]", b"null", b"[" * 10**5, b'{"data": 3}']
)
def test_a_damaged_config_is_one_refusal(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(Refusal, match="config.json(:| is damaged:) .") as found:
        report.write(tmp_path)
    assert "\n" not in str(found.value)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    folder = make_run(tmp_path / "run", lines=[])
    (folder / "report").write_text("")
    with pytest.raises(Unusable, match="report cannot be written: File exists"):
        report.write(folder)


def test_only_shares_of_images_have_intervals(tmp_path):
    folder = make_run(tmp_path / "run")
    found = result(results={"top-1": 50.0, "mAP": 50.0}, tested=10_000)
    write_json(folder / "eval/a/result.json", found)
    rows = sections.evaluation(read_run(folder))["rows"]
    assert [row["half"] for row in rows] == [pytest.approx(0.98, abs=0.001), None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(features=np.zeros((1, 4))), r"n from 2 to 5000; got \(1, 4\)"),
        (dict(features=np.full((30, 4), np.nan)), "must be finite"),
        (dict(thumbnails=np.zeros((30, 8, 8, 3))), "uint8 .* got float64"),
        (dict(thumbnails=np.zeros((29, 8, 8, 3), np.uint8)), "30 features need 30"),
        (dict(labels=np.zeros(3, int)), r"got 30 and \(3,\)"),
        (dict(views=np.zeros((4, 8, 8, 3), np.uint8)), r"views are uint8 pairs \[k, 2"),
        (dict(views=np.zeros((4, 3, 8, 8, 3), np.uint8)), "are uint8 pairs"),
    ],
)
def test_gallery_that_does_not_fit_is_refused(tmp_path, changes, message):
    gallery = make_gallery()._replace(**changes)
    with pytest.raises(ValueError, match=message):
        report.write(make_run(tmp_path / "run"), gallery=gallery)


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_without_its_packages_it_says_what_to_install(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ModuleNotFoundError,
        match=rf'needs {module}, .* pip install "vicreg_jax\[report\]"',
    ):
        report.write(make_run(tmp_path / "run"))


def test_defaults_leave_nothing_marked():
    def changed(config):
        groups = sections.settings(config)["groups"].values()
        return [row for rows in groups for row in rows if row[2] is not None]

    assert not changed(Config())
    config = dataclasses.replace(Config(), wandb="mine")
    assert changed(config) == [("wandb", "mine", "–")]


def test_the_page_of_other_terms_does_not_speak_of_vicreg(tmp_path, monkeypatch):
    lines = [
        {"step": step, "loss": 2.3, "on": 0.3, "off": 2.0, "representation_std": 0.3}
        for step in (1, 500)
    ]
    folder = make_run(tmp_path / "run", lines=lines)
    record = read_run(folder)._replace(weights={"on": 1.0, "off": 0.005})
    module = sys.modules["vicreg_jax.report.page"]
    monkeypatch.setattr(module, "read_run", lambda workdir: record)
    words, _, settings = Page(report.write(folder).read_text()).words.partition(
        "All settings Marked"
    )
    assert settings and "Share of each weighted term" in words
    assert "1 on + 0.005 off" in words and " On " in words and " Off " in words
    for word in ("VICReg", "nvariance", "ovariance", "25 and 1", "target 1"):
        assert word not in words


def test_the_page_of_vicreg_says_what_its_terms_are(full):
    words = Page(full[1]).words
    for word in ("With weights of 25, 25 and 1", "arXiv:2105.04906", "target 1"):
        assert word in words
    for term in ("Invariance", "Variance", "Covariance"):
        assert re.search(rf"{term}.{{0,60}}? (stays|, the mean)", words)
