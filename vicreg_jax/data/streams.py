"""Images that come one after the other, as a source: tf.data, DataLoaders, generators.

What is read has a position, and no name; to go on in the middle is to read again, and
throw away, all that came before, or to have kept the state of the iterator.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vicreg_jax import files
from vicreg_jax.config import Config
from vicreg_jax.data.augment import draw
from vicreg_jax.data.source import PIXELS, How
from vicreg_jax.refusals import NotFound, Refusal, Unusable, one_line

__all__ = ["Stream", "is_stream"]

EXPECTED = (
    "expected images [h, w, c] or [b, h, w, c] of uint8 or uint16, or ready views,"
    " [b, v, h, w, c] or a tuple of v images, of these or float32; perhaps with a label"
    " after them, or in a dict as 'image'"
)
AHEAD = 64  # batches at most that are made and not yet trained on
KEPT = 8  # states, of the last checkpoints


def is_stream(given: Any) -> bool:
    """Tells whether something gives images in its own order alone."""
    begins = hasattr(given, "__iter__") or callable(given)
    # IterableDataset of PyTorch has inherited a __getitem__, but no length.
    return begins and not (hasattr(given, "__getitem__") and hasattr(given, "__len__"))


class Stream:
    """What an iterable gives, as a `Source`: its rows are put together to batches.

    Of several processes each reads the rows of its own part of every batch.

    Args:
      given: an iterable of elements (`tf.data.Dataset`, a DataLoader of grain or
        PyTorch), a function that returns an iterator, or an iterator, which can be
        read once. An element is an image, uint8 or uint16 [h, w, c], a batch of them,
        [b, h, w, c], or views that are ready: [b, v, h, w, c], or a tuple of v images
        or batches. A label after it is left out; of a dict "image" is taken. Views of
        integers are normalized, those of floats are what the network sees.
      examples: images of an epoch, where `given` has no length.
      folder: where states are kept of iterators with `get_state` and `set_state`, such
        as grain's, so that to go on is not to read all again.

    Raises:
      Refusal: the first element is something else, or nothing tells how many there are.
    """

    names = read = array = labels = None
    classes: Sequence[str] = ()
    in_order = True

    def __init__(
        self, given: Any, *, examples: int = 0, folder: Path | files.Place | None = None
    ):
        self._given, self._position = given, 0
        self._once = hasattr(given, "__next__")
        self._file = folder and folder / f"stream_{jax.process_index()}.json"
        self._recent, self._known = {}, _states(self._file)  # by position
        self._rest, self._begun = self._begin(), 1
        self._before, self._read = _state(self._iterator), 0  # of and in the element
        try:
            first = next(self._rest)
        except StopIteration:
            raise Refusal(f"the {type(given).__name__} gives nothing") from None
        self._read = len(first)
        self._left = first  # rows that were read and are yet to be used
        self._row, self._dtype = first.shape[1:], first.dtype
        self.channels = self._row[-1]
        self._examples = examples or len(first) * _length(given)
        self.seconds, self.broken, self.skipped = {}, {}, {}

    def __len__(self) -> int:
        return self._examples

    def fingerprint(self) -> Mapping[str, str]:
        """Returns a digest of what a row is; which rows come is not known."""
        row = json.dumps([*self._row, str(self._dtype)]).encode()
        return {"kind of images": files.digest(row)}

    def check(self, config: Config) -> None:
        data, row = config.data, self._row
        if self.channels != len(data.mean):
            raise Refusal(
                f"the source gives images of shape {list(row)}; config.data.mean has"
                f" {len(data.mean)} channel(s); channels come last (of PyTorch:"
                " x.permute(0, 2, 3, 1))"
            )
        if len(row) == 4 and data.local_views:
            raise Refusal(
                "the source gives views that are ready, which are of one size; set"
                " config.data.local_views to 0, or give images"
            )
        wanted = (data.views, data.image_size, data.image_size)
        if len(row) == 4 and row[:3] != wanted:
            raise Refusal(
                f"the source gives {row[0]} views of {row[1]} x {row[2]} pixels;"
                f" config.data.views is {data.views}, image_size {data.image_size}"
            )

    def how(self, config: Config, *, accelerator: bool) -> How:
        del accelerator  # images are cropped by the device, views are ready
        kind = "whole"
        if len(self._row) == 4:
            kind = "finished" if self._dtype in PIXELS else "normalized"
        return How(kind, config.data.image_size, self.channels)

    def views(
        self,
        indices: np.ndarray,
        uniforms: np.ndarray,
        policies: Sequence[draw.Policy],
        how: How,
    ) -> tuple[np.ndarray, draw.Parameters]:
        """Returns the next rows, and what to do to them: see `Source`.

        Args:
          indices: positions, of all processes together.
        """
        count = len(indices)
        step = int(indices[0]) // (count * jax.process_count())
        if step * count != self._position:
            self._skip_to(step * count)
        rows = self._take(count)
        self._recent[self._position] = self._here()
        if len(self._recent) > AHEAD:
            del self._recent[min(self._recent)]
        size = self._row[-3:-1]
        return rows, draw.parameters(uniforms, np.array(size), policies)

    def chosen(self, indices: np.ndarray) -> np.ndarray:
        return indices

    def centres(self, indices, *, size, shorter, channels):
        raise Refusal(
            "images that come one after the other cannot be chosen from; give an"
            " evaluation config.data.name and config.data.path"
        )

    def keep(self, position: int) -> None:
        """Keeps the state of the iterator at a position, for a later start.

        Raises:
          Unusable, Unreachable: it cannot be written.
        """
        state = self._recent.get(position)
        if state is None or self._file is None:
            return
        self._known[position] = state
        for old in sorted(self._known)[:-KEPT]:
            del self._known[old]
        states = {str(x): state for x, state in self._known.items()}
        with files.writing(self._file):
            self._file.parent.mkdir(exist_ok=True)
        files.write_json(self._file, files.sealed({"states": states}))

    def _here(self):
        """Returns what the next row is reached by, or None where nothing tells."""
        left = 0 if self._left is None else len(self._left)
        state = self._before if left else _state(self._iterator)
        used = self._read - left if left else 0
        return state and {"begun": self._begun, "used": used, "state": state}

    def _jumped_to(self, position):
        """Tells whether the iterator could be set to what `_here` returned there."""
        known = self._known.get(position)
        if self._once or not known:
            return False
        try:
            for _ in range(known["begun"]):
                self._rest = self._begin()
            self._begun, self._left = known["begun"], None
            self._iterator.set_state(_given_back(known["state"]))
            if known["used"]:
                self._take(known["used"])
        except Exception:  # the iterator's own: what it gave is read again, then
            self._position = position + 1
            return False
        self._position = position
        return True

    def _skip_to(self, position):
        if self._jumped_to(position):
            return
        if position < self._position:
            if self._once:
                raise Refusal(
                    f"the source is at image {self._position} and cannot go back to"
                    f" {position}: give a function that returns an iterator, instead"
                    " of an iterator"
                )
            self._rest, self._left, self._position = self._begin(), None, 0
            self._begun = 1
        while self._position < position:
            self._take(min(position - self._position, 256))

    def _take(self, count):
        """Returns so many rows; from its beginning again where it ends."""
        parts, missing = [], count
        while missing:
            rows, self._left = self._left, None
            if rows is None:
                rows = self._next(self._position + count - missing)
            parts.append(rows[:missing])
            if len(rows) > missing:
                self._left = rows[missing:]
            missing -= len(parts[-1])
        self._position += count
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _next(self, read):
        """Returns the rows of the next element, after so many images."""
        self._before = _state(self._iterator)
        rows = next(self._rest, None)
        if rows is None and not self._once:
            self._rest, self._begun = self._begin(), self._begun + 1
            self._before = _state(self._iterator)
            rows = next(self._rest, None)
        if rows is None:
            raise Refusal(
                f"the source ended after {read} images and cannot begin again; give a"
                " function that returns an iterator, or train for fewer epochs"
            )
        if rows.shape[1:] != self._row or rows.dtype != self._dtype:
            raise Refusal(
                f"the source gave {self._dtype} {list(self._row)} first and now"
                f" {rows.dtype} {list(rows.shape[1:])}; all must be alike"
            )
        self._read = len(rows)
        return rows

    def _begin(self) -> Iterator[np.ndarray]:
        made = self._given
        if callable(made) and not hasattr(made, "__iter__"):
            made = made()
        if hasattr(made, "as_numpy_iterator"):  # of tf.data
            made = made.as_numpy_iterator()
        self._iterator = iter(made)
        return map(_rows, self._iterator)


def _state(iterator: Any) -> Any:
    """Returns the state of an iterator as JSON, or None where it has none."""
    if not (hasattr(iterator, "get_state") and hasattr(iterator, "set_state")):
        return None
    state = iterator.get_state()
    if isinstance(state, bytes):
        return {"bytes": base64.b64encode(state).decode()}
    with suppress(TypeError, ValueError):
        return {"json": json.loads(json.dumps(state))}
    return None


def _given_back(state: Mapping[str, Any]) -> Any:
    if "bytes" in state:
        return base64.b64decode(state["bytes"])
    return state["json"]


def _states(path: Path | files.Place | None) -> dict[int, Any]:
    """Returns the states that were kept, none where the file is damaged."""
    if path is not None:
        with suppress(NotFound, Unusable):
            found = files.read_json(path, {"states": dict})["states"]
            return {
                int(position): state
                for position, state in found.items()
                if position.isdecimal() and isinstance(state, dict)
            }
    return {}


def _length(given: Any) -> int:
    """Returns how many elements there are. Raises Refusal where nobody knows."""
    try:
        return len(given)
    except TypeError as error:
        raise Refusal(
            f"nobody knows how many images the {type(given).__name__} gives"
            f" ({one_line(error)}); say what is to be an epoch: config.data.examples"
        ) from error


def _rows(element: Any) -> np.ndarray:
    """Returns the images of an element, [b, h, w, c], or views [b, v, h, w, c]."""
    given = element
    if isinstance(element, Mapping):
        if "image" not in element:
            raise Refusal(f"{EXPECTED}; got a dict of {', '.join(map(str, element))}")
        element = element["image"]
    several = isinstance(element, tuple | list)
    parts = [np.asarray(x) for x in (element if several else [element])]
    if len(parts) > 1 and parts[-1].ndim < 3:
        parts = parts[:-1]  # a label
    shapes = {x.shape for x in parts}
    ranks = {x.ndim for x in parts}
    views = len(parts) > 1 or ranks == {5}
    types = (*PIXELS, "float32") if views else PIXELS
    fits = len(shapes) == 1 and ranks <= ({3, 4} if len(parts) > 1 else {3, 4, 5})
    if not fits or any(x.dtype not in types or x.size == 0 for x in parts):
        found = ", ".join(f"{x.dtype} {list(x.shape)}" for x in parts)
        raise Refusal(f"{EXPECTED}; got {found or type(given).__name__}")
    batched = [x[None] if x.ndim == 3 else x for x in parts]
    return np.stack(batched, axis=1) if len(batched) > 1 else batched[0]
