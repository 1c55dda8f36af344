"""A class folder that vanishes while a run reads it."""

import json
import shutil

import numpy as np
import pytest
from helpers.runs import SMALL
from PIL import Image

from vicreg_jax import train
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.weights import loading

CLASSES, EACH = 4, 24
pytestmark = pytest.mark.slow


@pytest.fixture
def images(tmp_path):
    """A source whose class "c2" is gone after 150 reads, in the second epoch."""
    rng = np.random.default_rng(0)
    for c in range(CLASSES):
        (tmp_path / "images" / f"c{c}").mkdir(parents=True)
        for i in range(EACH):
            x = rng.integers(0, 256, (8, 8)).astype(np.uint8)
            Image.fromarray(x).save(tmp_path / "images" / f"c{c}" / f"{i:02}.png")
    source = open_folder(tmp_path / "images", threads=1)
    read, asked = source.read, []

    def counted(index):
        asked.append(index)
        if len(asked) == 150:
            shutil.rmtree(tmp_path / "images" / "c2")
        return read(index)

    source.read = counted
    return source


def run(images, tmp_path, share):
    config = SMALL | dict(epochs=4, guard=dict(broken_images=share))
    config |= dict(data=SMALL["data"] | dict(batch_size=32), every=dict(log_steps=1))
    return train.run(config, tmp_path / "run", source=images)


def listed(tmp_path):
    text = (tmp_path / "run" / "bad_examples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_it_ends_the_run_in_one_line_and_its_checkpoint_is_good(images, tmp_path):
    with pytest.raises(
        ValueError, match="images cannot be read, such as .*c2"
    ) as found:
        run(images, tmp_path, 0.01)
    assert "\n" not in str(found.value) and "mend or remove them" in str(found.value)
    assert loading.load(tmp_path / "run").step >= 3  # of the first epoch
    assert all("c2" in line["name"] for line in listed(tmp_path))


def test_within_the_share_that_is_allowed_the_others_stand_for_it(images, tmp_path):
    trained = run(images, tmp_path, 0.5)
    assert int(trained.state.step) == 12
    names = [line["name"] for line in listed(tmp_path)]
    assert len(set(names)) == len(names) == EACH
    assert all("c2" in name for name in names)
    assert "NotFound: there is no " in listed(tmp_path)[0]["reason"]
