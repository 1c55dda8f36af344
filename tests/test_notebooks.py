"""The notebooks: made of their text, short, and run as they are, at a small size."""

import re

import numpy as np
import pytest
from helpers.exports import digits, written
from helpers.paths import ROOT
from helpers.processes import environment

nbformat = pytest.importorskip("nbformat", reason="the extra test")
nbclient = pytest.importorskip("nbclient", reason="the extra test")
jupytext = pytest.importorskip("jupytext", reason="the extra test")

NAMES = ("quickstart", "own_images", "cifar10", "losses")
SMALL = 'BATCH, ENCODER, EXPANDER = 40, "digits", "(16,16)"\nEPOCHS = 1\n'
CHANGES = {  # of the parameters
    "quickstart": "EPOCHS, DRAWS = 2, 2",
    "own_images": SMALL + 'EPOCHS, PIXELS, WEIGHTS = 3, 32, "public"',
    "cifar10": SMALL
    + 'DATA = "--config.data.name=arrays --config.data.path=images.npz"',
}
FOUND = {  # a file that each leaves behind
    "quickstart": "runs/collapsed/metrics.jsonl",
    "own_images": "export/encoder.json",
    "cifar10": "runs/cifar10/eval/knn/result.json",
}


def read(name):
    return nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_made_of_its_text_and_short(name):
    text = jupytext.read(ROOT / f"notebooks/{name}.py")
    cells = read(name).cells
    assert len(cells) <= 15 and not any(x.get("outputs") for x in cells)
    kinds = ("cell_type", "source", "metadata")
    wanted, found = ([[x[k] for k in kinds] for x in y] for y in (text.cells, cells))
    assert found == wanted, "make notebooks"
    first = "".join(x.source for x in cells[:3])
    assert "pip install" in first and "jax.devices()" in first


def test_there_is_no_other_notebook():
    assert {x.stem for x in (ROOT / "notebooks").iterdir()} == {*NAMES}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own
def test_a_notebook_runs_to_its_end(name, tmp_path):
    chance = np.random.default_rng(0)
    images = chance.integers(0, 256, (240, 32, 32, 3), np.uint8)
    labels = np.arange(240) % 4
    arrays = dict(images=images, labels=labels)
    arrays |= dict(test_images=255 - images[:40], test_labels=labels[:40])
    np.savez(tmp_path / "images.npz", **arrays)
    written(digits(), tmp_path / "public", "safetensors")
    book = read(name)
    for i, cell in enumerate(book.cells):
        if "parameters" in cell.metadata.get("tags", ()):
            book.cells.insert(i + 1, nbformat.v4.new_code_cell(CHANGES[name]))
            break
    client = nbclient.NotebookClient(
        book, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}
    )
    # What is compiled runs little.
    client.execute(env=environment(XLA_FLAGS="--xla_backend_optimization_level=0"))
    said = "".join(
        output.text
        for cell in book.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream"
    )
    assert "Traceback" not in said and "vicreg_jax: " not in said, said  # of commands
    # These come before jax has the device in the notebook's own process.
    assert "os.fork()" not in said, said
    assert not re.search(r"\x1b\[\d*[A-HJK]", said), said  # no movement but \r
    shown = [
        data["text/html"]
        for cell in book.cells
        for output in cell.get("outputs", ())
        if "text/html" in (data := output.get("data", {}))
    ]
    if name == "own_images":
        assert re.search(r"verdict on 40 images held out: .* before, .* after", said)
    if name in FOUND:
        assert (tmp_path / FOUND[name]).exists(), said
        assert "\rcompiling " in said and "compiling took" in said
        assert any(x.count("data:image/png") >= 2 for x in shown)
