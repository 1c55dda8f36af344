"""An export to the Hugging Face Hub, with a model card; it exports nothing itself."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vicreg_jax import files
from vicreg_jax.refusals import Unusable, one_line, require
from vicreg_jax.run import result_file
from vicreg_jax.weights import contents

__all__ = ["card", "push", "results"]

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
INSTALL = "vicreg_jax[hub]"
RECIPE = {"data", "epochs", "loss", "optimizer", "seed"}  # of a config in the card


def push(folder: str | os.PathLike, repo_id: str, *, private: bool = True) -> str:
    """Uploads what `export.write` wrote, with a model card; returns its address.

    A README.md that is in the folder already is uploaded as it is; otherwise `card`
    writes it. encoder.json goes along, with the paths in the config of the run.

    Args:
      repo_id: "user/name" on the Hub, created where needed.

    Raises:
      NotFound: the folder holds no export.
      NotInstalled: the extra hub is not installed.
      Unusable: the Hub refused or could not be reached.
    """
    folder = files.expanded(folder)
    about = contents.described(folder)
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
        for folder in ("", "*/", "eval/*/")
        for path in root.glob(f"{folder}{result_file.FILE}")
    }
    found = [_result(path.parent) for path in sorted(paths)]
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
      NotInstalled: the extra hub is not installed.
    """
    library = require("huggingface_hub", "a model card", install=INSTALL)
    name = repo_id.rpartition("/")[2]
    measured = [
        (result, metric, value)
        for result in results
        for metric, value in result["results"].items()
    ]
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
        for result, metric, value in measured
    ]
    data = library.ModelCardData(
        library_name="vicreg_jax",
        pipeline_tag="image-feature-extraction",
        tags=["self-supervised-learning", "vicreg", "jax", "flax"],
        model_name=name,
        eval_results=evaluations or None,
    )
    jinja2 = require("jinja2", "a model card", install=INSTALL)
    pages = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    pages.filters["short"] = "{:g}".format
    config = about["config"] or {}
    return pages.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        about,
        name=name,
        data=data.to_yaml(),
        recipe=config if config.keys() >= RECIPE else None,
        measured=measured,
        repo_id=repo_id,
    )


def _result(folder):
    """Returns the result of an evaluation, or None for another's file of that name."""
    try:
        return result_file.read(folder)
    except Unusable:
        return None
