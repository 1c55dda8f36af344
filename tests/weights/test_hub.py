"""The model card says what the files say; pushing, without a network."""

import json
import sys
import types
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from vicreg_jax import config
from vicreg_jax.refusals import Unusable
from vicreg_jax.weights import contents, hub

RUN = asdict(
    config.parse(
        {
            "epochs": 400,
            "seed": 3,
            "loss": {"invariance": 25.0, "variance": 25.0, "covariance": 1.0},
            "data": {"name": "tfds", "dataset": "imagenette", "batch_size": 256},
            "model": {"encoder": "resnet18"},
        }
    )
)
ABOUT = {
    "format": contents.FORMAT,
    "version": "0.1.0",
    "module": {"name": "resnet50", "width": 2, "stem": "cifar", "dtype": "float32"},
    "weights": "0",
    "image_size": 128,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.2],
    "source": "runs/mine",
    "step": 14800,
    "config": RUN,
    "files": {"encoder.safetensors": "0", "encoder.pth": "0"},
}
RESULT = {
    "task": "knn",
    "name": "knn",
    "data": "imagenette",
    "tested": 3925,
    "results": {"20-NN top-1": 84.512, "top-1": 80.0},
    "published": {"20-NN top-1": 64.5},
    "step": 12,
    "notes": [],
}


def exported(folder, **changes):
    folder.mkdir(parents=True)
    (folder / "encoder.json").write_text(json.dumps(ABOUT | changes))
    return folder


def judged(folder, checkpoint, name):
    folder.mkdir(parents=True, exist_ok=True)
    content = RESULT | {"checkpoint": str(checkpoint), "name": name}
    (folder / "result.json").write_text(json.dumps(content))


def test_the_card_tells_recipe_results_and_how_to_load(api):
    text = hub.card(ABOUT, [RESULT], repo_id="someone/encoder")
    for line in (
        "# encoder",
        "| encoder | resnet50, 2 times as wide, stem cifar |",
        "| images | 128 x 128, in [0, 1], then normalized by mean 0.5, 0.4, 0.3 and"
        " std 0.2, 0.2, 0.2 |",
        "| data set | imagenette |",
        "| epochs | 400 |",
        "| batch size | 256 |",
        "| loss weights | invariance 25, variance 25, covariance 1 |",
        "| seed | 3 |",
        "| step | 14800 |",
        "| knn | imagenette, 3925 test images | 20-NN top-1 | 84.5 | 64.5 |",
        "| knn | imagenette, 3925 test images | top-1 | 80.0 |  |",
        "from vicreg_jax import load",
        'encoder = load(snapshot_download("someone/encoder"))',
    ):
        assert line in text.splitlines()


def test_the_card_leaves_the_licence_to_the_user(api):
    head = hub.card(ABOUT, [], repo_id="a/b").split("---\n")[1]
    assert "# license: choose one" in head
    assert "license" not in yaml.safe_load(head)


def test_the_front_matter_is_what_the_hub_indexes():
    pytest.importorskip("huggingface_hub", reason="the extra hub is missing")
    head = hub.card(ABOUT, [RESULT], repo_id="someone/encoder").split("---\n")[1]
    found = yaml.safe_load(head)
    assert found["library_name"] == "vicreg_jax"
    assert found["pipeline_tag"] == "image-feature-extraction"
    assert found["tags"] == ["self-supervised-learning", "vicreg", "jax", "flax"]
    (model,) = found["model-index"]
    assert model["name"] == "encoder"
    (judged,) = model["results"]
    assert judged["task"] == {"type": "image-classification", "name": "knn"}
    assert judged["dataset"]["name"] == "imagenette"
    values = {x["name"]: (x["type"], x["value"]) for x in judged["metrics"]}
    assert values == {
        "knn: 20-NN top-1": ("accuracy", 84.512),
        "knn: top-1": ("accuracy", 80.0),
    }
    empty = hub.card(ABOUT, [], repo_id="a/b").split("---\n")[1]
    assert "model-index" not in yaml.safe_load(empty)


def test_the_card_of_weights_without_a_run_says_what_is_known(api):
    about = ABOUT | {"module": None, "config": None, "step": None}
    text = hub.card(about, [], repo_id="a/b")
    assert "| encoder | an encoder of the user's own |" in text
    assert "Not evaluated yet." in text
    assert "None" not in text and "epochs" not in text


def test_results_are_those_of_the_export_and_of_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, folder = Path("runs/mine"), Path("out")
    judged(run / "eval" / "linear", run.absolute(), "a")
    judged(tmp_path / "runs" / "mine_knn", run, "b")
    judged(folder, folder, "c")
    judged(tmp_path / "runs" / "other_knn", "runs/other", "not this one")
    (tmp_path / "runs" / "alien").mkdir()
    (tmp_path / "runs" / "alien" / "result.json").write_text("[]")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "result.json").write_text("{")
    found = hub.results(folder, run)
    assert sorted(result["name"] for result in found) == ["a", "b", "c"]


class Api:
    """Stands in for the Hub: remembers what it is asked."""

    asked = []

    def create_repo(self, repo_id, **options):
        self.asked.append(("create", repo_id, options))
        return f"https://hub/{repo_id}"

    def upload_folder(self, **options):
        self.asked.append(("upload", options))


class CardData(dict):
    """Stands in for ModelCardData; the real one has a test of its own."""

    def __init__(self, **facts):
        super().__init__(facts)

    def to_yaml(self):
        return json.dumps({k: v for k, v in self.items() if v is not None})


@pytest.fixture
def api(monkeypatch):
    module = types.ModuleType("huggingface_hub")
    module.HfApi = Api
    module.ModelCardData, module.EvalResult = CardData, dict
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setattr(Api, "asked", [])
    return Api


def test_an_export_is_pushed_privately_with_its_card(tmp_path, api):
    folder = exported(tmp_path / "out")
    assert hub.push(folder, "me/encoder") == "https://hub/me/encoder"
    (create, upload) = api.asked
    assert create == ("create", "me/encoder", {"private": True, "exist_ok": True})
    assert (upload[1]["repo_id"], upload[1]["folder_path"]) == ("me/encoder", folder)
    files = ["README.md", "encoder.json", "encoder.safetensors", "encoder.pth"]
    assert upload[1]["allow_patterns"] == files
    want = hub.card(ABOUT, [], repo_id="me/encoder")
    assert (folder / "README.md").read_text() == want


def test_a_card_that_is_there_is_kept(tmp_path, api):
    folder = exported(tmp_path / "out")
    (folder / "README.md").write_text("mine")
    hub.push(folder, "me/encoder", private=False)
    assert (folder / "README.md").read_text() == "mine"
    assert api.asked[0][2]["private"] is False


def test_what_the_real_hub_is_asked_it_knows():
    """The stand-in takes any options; the real one must have them."""
    real = pytest.importorskip("huggingface_hub", reason="the extra hub is missing")
    import inspect

    create = inspect.signature(real.HfApi.create_repo).parameters
    upload = inspect.signature(real.HfApi.upload_folder).parameters
    assert {"repo_id", "private", "exist_ok"} <= create.keys()
    wanted = {"repo_id", "folder_path", "allow_patterns", "commit_message"}
    assert wanted <= upload.keys()


def test_a_folder_without_an_export_is_refused(tmp_path, api):
    with pytest.raises(FileNotFoundError, match="holds no export: no encoder.json"):
        hub.push(tmp_path, "me/encoder")
    assert api.asked == []


def test_a_refusal_of_the_hub_is_one_line(tmp_path, api, monkeypatch):
    def refuse(self, repo_id, **options):
        raise RuntimeError("401 Client Error.\n\nInvalid credentials")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(Unusable, match="me/encoder was not uploaded: 401") as e:
        hub.push(exported(tmp_path / "out"), "me/encoder")
    assert "\n" not in str(e.value)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r'install "vicreg_jax\[hub\]"'):
        hub.push(exported(tmp_path / "out"), "me/encoder")
