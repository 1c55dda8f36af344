"""Fake images; what they show is nothing."""

import numpy as np

__all__ = ["Noise"]


class Noise:
    """Random images for trying a configuration or measuring speed without data.

    As many as asked for, of a few that repeat.
    """

    DIFFERENT = 256

    def __init__(self, *, examples: int, image_size: int, channels: int, seed: int):
        fit = 2**28 // (image_size**2 * channels)  # 256 MB at most
        count = max(1, min(examples, self.DIFFERENT, fit))
        shape = (count, image_size, image_size, channels)
        self._images = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        self._examples = examples

    def __len__(self) -> int:
        return self._examples

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self._images[indices % len(self._images)]
