"""Arrays of an .npz file as sources; it runs no code that such a file may hold."""

from vicreg_jax import files
from vicreg_jax.config import MOST_CHANNELS
from vicreg_jax.data.source import Arrays, Splits
from vicreg_jax.refusals import NotFound, Refusal

__all__ = ["open_arrays"]


def open_arrays(path: str) -> Splits:
    """Returns the arrays of an .npz file.

    The file holds `images`, uint8 or uint16 [n, h, w] or [n, h, w, c], optionally
    `labels`, int [n], and optionally `test_images` and `test_labels`.

    Raises:
      NotFound: there is no such file.
      Unusable: it is no .npz file.
      Refusal: it lacks `images`, or has other shapes or types.
    """
    path = files.expanded(path)
    try:
        held = files.read_npz(path)
    except NotFound as error:
        raise NotFound(f"data.path: there is no file {str(path)!r}") from error
    if "images" not in held:
        raise Refusal(
            f"{path} holds {', '.join(held) or 'nothing'}; expected an array 'images'"
        )
    train = _arrays(path, held["images"], held.get("labels"))
    if "test_images" not in held:
        return Splits(train, None)
    return Splits(train, _arrays(path, held["test_images"], held.get("test_labels")))


def _arrays(path, images, labels):
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or not 1 <= images.shape[-1] <= MOST_CHANNELS:
        raise Refusal(
            f"{path}: expected images of uint8 or uint16 [n, h, w] or [n, h, w, 1 to"
            f" {MOST_CHANNELS}]; got"
            f" {images.dtype} {images.shape}"
        )
    try:
        return Arrays(images, labels)
    except Refusal as error:
        raise Refusal(f"{path}: {error}") from error
