"""Augmentation parameters against torchvision's rules and its measured quantiles."""

import json
import math

import numpy as np
import pytest
from helpers.paths import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from vicreg_jax.config import Config
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw

PUBLISHED = batches.policies(Config())[1]._replace(
    **dict(crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), blur=0.5, solarize=0.2)
)


def drawn(policy, *, batch=4000, seed=0, sizes=(32, 32)):
    u = plan.uniforms(seed, 0, (batch, 1, draw.NUMBERS))
    found = draw.parameters(u, np.asarray(sizes), [policy])
    return draw.Parameters(*(x[:, 0] for x in found))


def get_params(u, height, width, scale, ratio):
    """torchvision's RandomResizedCrop.get_params, its draws taken from u."""
    uniform = lambda name, low, high: low + (high - low) * float(u[name])  # noqa: E731
    randint = lambda name, room: math.floor(float(u[name]) * (room + 1))  # noqa: E731
    for i in range(10):
        area = uniform(f"area{i}", *scale) * (height * width)
        aspect = math.exp(uniform(f"ratio{i}", math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return randint("top", height - h), randint("left", width - w), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


sides = st.integers(1, 60) | st.integers(1, 3000)


@settings(deadline=None, max_examples=200)
@given(
    sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=8),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted),
    seed=st.integers(0, 10**6),
)
def test_crop_boxes_are_those_of_torchvision(sizes, scale, ratio, seed):
    numbers = plan.uniforms(seed, 0, (len(sizes), 1, draw.NUMBERS))
    policy = PUBLISHED._replace(crop_scale=tuple(scale), crop_ratio=tuple(ratio))
    got = draw.parameters(numbers, np.array(sizes), [policy]).box[:, 0]
    for i, (height, width) in enumerate(sizes):
        u = dict(zip(draw.SLOTS, numbers[i, 0], strict=True))
        want = get_params(u, height, width, scale, ratio)
        assert tuple(got[i].tolist()) == want
        top, left, h, w = want
        assert 0 <= top and 0 <= left and top + h <= height and left + w <= width


@pytest.mark.parametrize(
    "size, box", [((10, 1000), (0, 493, 10, 13)), ((1000, 9), (494, 0, 12, 9))]
)
def test_an_image_that_no_attempt_fits_gives_its_largest_centred_crop(size, box):
    # 8 % of 10 x 1000 in a ratio of 4 / 3 is 33 wide and 24 high: never fits.
    got = drawn(PUBLISHED, batch=100, sizes=size).box
    assert np.all(got == np.float32(box))


def test_crops_meet_the_quantiles_of_torchvision():
    golden = json.loads((GOLDEN / "crop_distribution.json").read_text())
    distances = []
    for name, want in golden["draws"].items():
        width, height = map(int, name.split("x"))
        box = drawn(PUBLISHED, batch=50_000, sizes=(height, width)).box
        top, left, h, w = box.astype(np.float64).T
        found = {
            "area": h * w / (height * width),
            "ratio": w / h,
            "top": top / height,
            "left": left / width,
        }
        for key, values in found.items():
            for p, value in zip(golden["quantiles"], want[key], strict=True):
                # Values are discrete: share p lies anywhere within the step at value.
                below, upto = (
                    np.mean(values < value - 1e-9),
                    np.mean(values < value + 1e-9),
                )
                distances.append(max(below - p, p - upto))
    # Shares of 20,000 and 50,000 draws differ by 0.004 at one sigma; 144 are compared.
    assert len(distances) == 144 and max(distances) < 0.02


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_each_operation_comes_as_often_as_configured(probability):
    n = 20_000
    names = ("flip", "jitter", "grey", "blur", "solarize")
    found = drawn(PUBLISHED._replace(**dict.fromkeys(names, probability)), batch=n)
    five_sigma = 5 * math.sqrt(probability * (1 - probability) / n)
    # A factor drawn is exactly 1 once in 2**24 times.
    jittered, blurred = found.brightness != 1, found.sigma > 0
    for came in (found.flip, jittered, found.grey, blurred, found.solarize):
        assert abs(came.mean() - probability) <= five_sigma
    for other in (found.contrast != 1, found.saturation != 1, found.hue != 0):
        np.testing.assert_array_equal(jittered, other)


def test_factors_and_angles_fill_their_ranges():
    policy = PUBLISHED._replace(
        jitter=1.0, brightness=0.4, contrast=0.2, saturation=0.3, hue=0.1, blur=1.0
    )._replace(rotation=15.0, shear=0.3)
    found = drawn(policy, batch=20_000)
    ranges = {
        "brightness": (0.6, 1.4),
        "contrast": (0.8, 1.2),
        "saturation": (0.7, 1.3),
        "hue": (-0.1, 0.1),
        "sigma": (0.1, 2.0),
        "rotation": (-math.radians(15), math.radians(15)),
        "shear": (-0.3, 0.3),
    }
    for name, (low, high) in ranges.items():
        values = getattr(found, name)
        assert values.dtype == np.float32
        # Float32 rounding at the ends; Kolmogorov-Smirnov as in test_plan.py.
        assert values.min() >= low - 1e-6 and values.max() <= high + 1e-6
        ordered = (np.sort(values) - low) / (high - low)
        distance = np.abs(ordered - np.arange(len(ordered)) / len(ordered)).max()
        assert distance < 1.95 / math.sqrt(len(ordered)) + 1e-4


def test_all_24_orders_come_equally_often():
    n = 24_000
    rows, counts = np.unique(
        drawn(PUBLISHED, batch=n).order, axis=0, return_counts=True
    )
    assert sorted(map(sorted, rows.tolist())) == [[0, 1, 2, 3]] * 24
    # Chi-squared of 23 degrees of freedom: mean 23, variance 46; five sigma.
    assert ((counts - n / 24) ** 2 / (n / 24)).sum() < 23 + 5 * math.sqrt(46)


def test_each_view_follows_its_own_policy():
    u = plan.uniforms(0, 0, (64, 2, draw.NUMBERS))
    policies = [PUBLISHED._replace(flip=1.0), PUBLISHED._replace(flip=0.0, jitter=0.0)]
    found = draw.parameters(u, np.array([32, 48]), policies)
    assert found.flip[:, 0].all() and not found.flip[:, 1].any()
    assert np.all(found.brightness[:, 1] == 1)
    assert found.box.shape == (64, 2, 4) and found.order.shape == (64, 2, 4)
    assert np.any(found.box[:, 0] != found.box[:, 1])


def test_an_example_gets_the_same_views_whichever_rows_a_host_holds():
    u = plan.uniforms(0, 0, (16, 2, draw.NUMBERS))
    sizes = np.random.default_rng(0).integers(20, 300, (16, 2))
    policies = [PUBLISHED, PUBLISHED._replace(rotation=10.0)]
    whole = draw.parameters(u, sizes, policies)
    part = draw.parameters(u[4:8], sizes[4:8], policies)
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[4:8], b)


def test_the_first_slots_never_move():
    attempts = [f"{name}{i}" for i in range(10) for name in ("area", "ratio")]
    rest = "top left flip jitter order brightness contrast saturation hue"
    rest += " grey blur sigma solarize rotation shear"
    assert list(draw.SLOTS[:35]) == attempts + rest.split()


def test_a_policy_too_few_is_refused():
    u = plan.uniforms(0, 0, (4, 2, draw.NUMBERS))
    with pytest.raises(ValueError, match="expected 2 policies, one per view; got 1"):
        draw.parameters(u, np.array([32, 32]), [PUBLISHED])
