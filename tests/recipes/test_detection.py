"""Configs for Detectron2: the numbers of the paper, the images of the encoder."""

import numpy as np
import pytest
import yaml
from helpers.paths import ROOT

from vicreg_jax import config

DETECTION = ROOT / "configs" / "detection"


def numbers(text):
    """Detectron2 evaluates strings such as "(18000, 22000)" as Python."""
    return tuple(int(x) for x in text.strip("()").split(",") if x)


@pytest.mark.parametrize("name", ["voc07_12_c4", "coco_fpn"])
def test_detection_configs_normalize_as_the_encoder_was_trained(name):
    found = yaml.safe_load((DETECTION / f"{name}.yaml").read_text())
    assert found["INPUT"]["FORMAT"] == "RGB"
    model = found["MODEL"]
    np.testing.assert_allclose(model["PIXEL_MEAN"], 255 * np.array(config.Data().mean))
    np.testing.assert_allclose(model["PIXEL_STD"], 255 * np.array(config.Data().std))
    assert model["RESNETS"]["STRIDE_IN_1X1"] is False
    assert model["BACKBONE"]["FREEZE_AT"] == 0


def test_detection_configs_have_the_papers_numbers():
    """arXiv:2105.04906, appendix: VOC07+12 with C4, COCO with FPN."""
    voc = yaml.safe_load((DETECTION / "voc07_12_c4.yaml").read_text())
    solver = voc["SOLVER"]
    assert (solver["BASE_LR"], solver["IMS_PER_BATCH"]) == (0.1, 16)
    assert (solver["MAX_ITER"], numbers(solver["STEPS"])) == (24000, (18000, 22000))
    assert (solver["WARMUP_ITERS"], solver["WARMUP_FACTOR"]) == (1000, 0.333)
    assert voc["MODEL"]["RPN"]["LOSS_WEIGHT"] == 0.2
    assert voc["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 20
    coco = yaml.safe_load((DETECTION / "coco_fpn.yaml").read_text())
    solver = coco["SOLVER"]
    assert (solver["BASE_LR"], solver["IMS_PER_BATCH"]) == (0.04, 16)
    assert (solver["MAX_ITER"], numbers(solver["STEPS"])) == (90000, (60000, 80000))
    assert solver["WARMUP_ITERS"] == 50
    assert coco["MODEL"]["MASK_ON"] is True
