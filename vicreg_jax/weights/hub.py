"""An export to the Hugging Face Hub, with a model card; it exports nothing itself."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vicreg_jax import files
from vicreg_jax.refusals import NotFound, Unusable, one_line, require
from vicreg_jax.weights import contents

CARD = "README.md"
INSTALL = "vicreg_jax[hub]"
RESULT = {"task", "name", "checkpoint", "data", "tested", "results", "published"}
RECIPE = {"data", "epochs", "loss", "optimizer", "seed"}  # of a config in the card
LICENCE = "# license: choose one; the data's terms may bind the weights too"


def push(folder: str | os.PathLike, repo_id: str, *, private: bool = True) -> str:
    """Uploads what `export.write` wrote, with a model card; returns its address.

    A README.md that is in the folder already is uploaded as it is; otherwise `card`
    writes it. encoder.json goes along, with the paths in the config of the run.

    Args:
      repo_id: "user/name" on the Hub, created where needed.

    Raises:
      NotFound: the folder holds no export.
      NotInstalled: huggingface_hub is not installed.
      Unusable: the Hub refused or could not be reached.
    """
    folder = Path(folder).expanduser()
    about = contents.description(folder)
    if about is None:
        raise NotFound(f"{folder} holds no export: no {contents.DESCRIPTION}")
    library = require("huggingface_hub", "pushing", install=INSTALL)
    if not (folder / CARD).exists():
        text = card(about, results(folder, Path(about["source"])), repo_id=repo_id)
        files.write(folder / CARD, text)
    try:
        api = library.HfApi()
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[CARD, contents.DESCRIPTION, *about["files"]],
            commit_message=f"Encoder of vicreg_jax {about['version']}",
        )
    except Exception as error:  # of the Hub, the network, or a missing sign-in
        raise Unusable(
            f"{repo_id} was not uploaded: {one_line(error)}; is the name user/name"
            " right, and did you sign in (hf auth login)?"
        ) from error
    return str(url)


def results(folder: Path, source: Path) -> list[dict[str, Any]]:
    """Returns the evaluations of an export or of the run that it comes from.

    They are the files result.json in both folders, below, in their eval/*, and beside
    the run, that name one of the two as their checkpoint.
    """
    judged = [folder.absolute(), source.absolute()]
    paths = {
        path
        for root in (*judged, judged[1].parent)
        for pattern in ("result.json", "*/result.json", "eval/*/result.json")
        for path in root.glob(pattern)
    }
    found = [_result(path) for path in sorted(paths)]
    return [x for x in found if x and Path(x["checkpoint"]).absolute() in judged]


def card(
    about: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, repo_id: str
) -> str:
    """Returns the model card, in Markdown, of an encoder.

    Args:
      about: encoder.json of the export.
      results: contents of result.json of its evaluations.
      repo_id: where the encoder will be, for the lines that load it.

    Raises:
      NotInstalled: huggingface_hub is not installed.
    """
    library = require("huggingface_hub", "a model card", install=INSTALL)
    name = repo_id.rpartition("/")[2]
    evaluations = [
        library.EvalResult(
            task_type="image-classification",
            task_name=result["task"],
            dataset_type=result["data"],
            dataset_name=result["data"],
            metric_type="accuracy" if "top-" in metric else metric,
            metric_name=f"{result['name']}: {metric}",
            metric_value=value,
        )
        for result in results
        for metric, value in result["results"].items()
    ]
    data = library.ModelCardData(
        library_name="vicreg_jax",
        pipeline_tag="image-feature-extraction",
        tags=["self-supervised-learning", "vicreg", "jax", "flax"],
        model_name=name,
        eval_results=evaluations or None,
    )
    text = _text(about, results, repo_id=repo_id)
    return f"---\n{LICENCE}\n{data.to_yaml()}\n---\n# {name}\n\n{text}"


def _text(about, results, *, repo_id):
    """Returns the card below its title."""
    lines = [
        "An image encoder for use with [VICReg](https://arxiv.org/abs/2105.04906)'s"
        " kind of features: frozen, fine-tuned or as a backbone.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in _facts(about).items()),
        "",
        "## Results",
        "",
        *_results(results),
        "",
        "## Use",
        "",
        "```python",
        "from huggingface_hub import snapshot_download",
        "from vicreg_jax import loading",
        "",
        f'encoder = loading.load(snapshot_download("{repo_id}"))',
        "features = encoder(images)  # uint8 [n, h, w, c], or floats in [0, 1]",
        "```",
        "",
        f"The encoder normalizes the images. Files: {', '.join(about['files'])}.",
    ]
    return "\n".join(lines) + "\n"


def _facts(about):
    module, config = about["module"], about["config"]
    name = "an encoder of the user's own"
    if module:
        wide = f", {module['width']} times as wide" if module["width"] > 1 else ""
        stem = module.get("stem", "imagenet")
        name = f"{module['name']}{wide}{f', stem {stem}' if stem != 'imagenet' else ''}"
    facts = {
        "encoder": name,
        "images": f"{about['image_size']} x {about['image_size']}, in [0, 1], then"
        f" normalized by mean {_numbers(about['mean'])} and std"
        f" {_numbers(about['std'])}",
        "step": about["step"],
        "written by": f"vicreg_jax {about['version']}",
    }
    if config and config.keys() >= RECIPE:
        data = config["data"]
        facts |= {
            "data set": data["dataset"] or data["name"],
            "epochs": config["epochs"],
            "batch size": data["batch_size"],
            "loss weights": ", ".join(f"{k} {v:g}" for k, v in config["loss"].items()),
            "optimizer": f"{config['optimizer']['name']}, base learning rate"
            f" {config['optimizer']['base_lr']:g} for 256 images, weight decay"
            f" {config['optimizer']['weight_decay']:g}",
            "seed": config["seed"],
        }
    return {key: value for key, value in facts.items() if value is not None}


def _result(path):
    """Returns the result.json of an evaluation, or None for another's of that name."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.keys() >= RESULT else None


def _results(results):
    rows = [
        f"| {result['name']} | {result['data']}, {result['tested']} test images |"
        f" {metric} | {value:.1f} | {_published(result, metric)} |"
        for result in results
        for metric, value in result["results"].items()
    ]
    if not rows:
        return ["Not evaluated yet."]
    head = "| evaluation | data | | per cent | published by the paper |"
    return [head, "|---|---|---|--:|--:|", *rows]


def _published(result, metric):
    known = result["published"].get(metric)
    return "" if known is None else f"{known:.1f}"


def _numbers(values):
    return ", ".join(f"{value:g}" for value in values)
