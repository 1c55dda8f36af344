"""Data sets of Hugging Face: the same images as from a folder of the same files."""

import io

import numpy as np
import pytest
from helpers.pictures import assert_same_views, picture
from helpers.runs import SMALL

from vicreg_jax import config as configs
from vicreg_jax import train
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.data.sources.huggingface import of_dataset, open_huggingface
from vicreg_jax.data.sources.load import load_splits
from vicreg_jax.refusals import NotFound, NotInstalled, Refusal, Unusable

datasets = pytest.importorskip("datasets")
COUNT = 12


def content(index):
    out = io.BytesIO()
    picture(index, 30 + index, 60 - index).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    for i in range(COUNT):
        (root / "ab"[i // 6]).mkdir(exist_ok=True)
        (root / "ab"[i // 6] / f"{i:02d}.png").write_bytes(content(i))
    return root


def rows(count=COUNT):
    return {
        "image": [{"bytes": content(i), "path": None} for i in range(count)],
        "label": [i // 6 for i in range(count)],
    }


def dataset(**more):
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    kinds |= {name: kind for name, (kind, _) in more.items()}
    values = rows() | {name: values for name, (_, values) in more.items()}
    return datasets.Dataset.from_dict(values, features=datasets.Features(kinds))


@pytest.mark.parametrize("form", ["loaded", "saved", "splits", "parquet", "shards"])
def test_whatever_the_form_the_images_are_those_of_the_folder(form, folder, tmp_path):
    data, where = dataset(), str(tmp_path / "data")
    if form == "loaded":
        found = of_dataset(data)
    elif form in ("saved", "splits"):
        saved = datasets.DatasetDict(train=data) if form == "splits" else data
        saved.save_to_disk(where)
        found = open_huggingface(where)
    else:
        parts = 3 if form == "shards" else 1
        (tmp_path / "data").mkdir()
        for i in range(parts):
            part = data.shard(parts, i, contiguous=True)
            part.to_parquet(f"{where}/train-{i}.parquet")
        found = open_huggingface(f"{where}/train-*.parquet")
    want = open_folder(folder)
    assert_same_views(found, want)
    assert len(found) == COUNT and tuple(found.classes) == tuple(want.classes)
    np.testing.assert_array_equal(found.labels, want.labels)


def test_a_selection_is_what_was_selected_and_another_data_set():
    data = dataset()
    some = of_dataset(data.select([5, 3, 8]))
    everything = of_dataset(data)
    np.testing.assert_array_equal(some.whole(1), everything.whole(3))
    assert some.labels.tolist() == [0, 0, 1]
    assert some.fingerprint() != everything.fingerprint()
    assert of_dataset(dataset()).fingerprint() == everything.fingerprint()


def test_one_column_of_images_and_labels_of_integers_need_no_name():
    data = datasets.Dataset.from_dict(
        {"picture": rows()["image"], "label": [3] * COUNT},
        features=datasets.Features(
            {"picture": datasets.Image(), "label": datasets.Value("int64")}
        ),
    )
    found = of_dataset(data)
    assert found.labels.tolist() == [3] * COUNT and not found.classes
    assert of_dataset(data.remove_columns("label")).labels is None


def test_two_splits_are_training_and_test_images(tmp_path):
    data = dataset()
    splits = dict(train=data, test=data.select([1, 7]))
    datasets.DatasetDict(**splits).save_to_disk(str(tmp_path / "data"))
    given = configs.parse(
        dict(data=dict(name="huggingface", path=str(tmp_path / "data")))
    )
    found = load_splits(given.data, seed=0, test_split="test")
    assert (len(found.train), len(found.test)) == (COUNT, 2)
    assert load_splits(given.data, seed=0).test is None
    with pytest.raises(Refusal, match="no split 'val', but train, test; give one"):
        load_splits(given.data, seed=0, test_split="val")


def test_a_run_takes_a_loaded_data_set_and_a_broken_row_is_replaced(tmp_path):
    values = rows()
    values["image"][4] = {"bytes": b"no image", "path": None}
    values["image"][5] = None
    kinds = {"image": datasets.Image(), "label": datasets.Value("int64")}
    data = datasets.Dataset.from_dict(values, features=datasets.Features(kinds))
    rgb = dict(mean=(0.5,) * 3, std=(0.5,) * 3, batch_size=8)
    given = SMALL | dict(data=SMALL["data"] | rgb, guard=dict(broken_images=0.5))
    done = train.run(given, tmp_path, source=data)
    assert int(done.state.step) == 2
    listed = (tmp_path / "bad_examples.jsonl").read_text()
    assert "row 4" in listed and "row 5" in listed and listed.count("\n") == 2


def test_what_is_no_data_set_of_images_is_one_line(tmp_path, monkeypatch):
    other = (datasets.Image(), rows()["image"])
    both = dataset(mask=other).rename_column("image", "picture")
    with pytest.raises(Refusal, match=r"one column of images, .* mask \(Image\)"):
        of_dataset(both)
    assert len(of_dataset(dataset(mask=other))) == COUNT  # "image" is meant
    with pytest.raises(Refusal, match=r"the data set has label \(ClassLabel\)"):
        of_dataset(dataset().remove_columns("image"))
    with pytest.raises(Refusal, match="has no row"):
        of_dataset(dataset().select([]))
    with pytest.raises(
        NotFound, match="no folder of save_to_disk, and no file matches"
    ):
        open_huggingface(tmp_path / "nothing")
    (tmp_path / "odd.parquet").write_bytes(b"no parquet")
    with pytest.raises(Unusable, match="odd.parquet cannot be read: "):
        open_huggingface(tmp_path / "odd.parquet")
    given = configs.parse(dict(data=dict(name="huggingface", path="gs://bucket/x")))
    with pytest.raises(Refusal, match="huggingface is not read from gs://, as"):
        load_splits(given.data, seed=0)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(NotInstalled, match=r"pip install \"vicreg_jax\[huggingface\]"):
        open_huggingface(tmp_path / "odd.parquet")
