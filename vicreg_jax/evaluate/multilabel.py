"""Classification with several labels an image: a reader, linear SVMs and mean AP.

Nothing here decodes or encodes an image.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vicreg_jax import files
from vicreg_jax.refusals import Refusal, require

__all__ = [
    "COSTS",
    "MultiLabel",
    "Scores",
    "average_precision",
    "fit_and_score",
    "read_multilabel",
]

COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)  # VISSL's
STEPS = 2000  # at most, of the solver


class MultiLabel(NamedTuple):
    """A split: labels are 1 (present), -1 (absent) or 0 (difficult: to be ignored)."""

    paths: list[Path]
    labels: np.ndarray  # int8 [n, c]
    classes: list[str]


class Scores(NamedTuple):
    """Average precisions, in per cent."""

    average_precision: list[float]  # one for each class
    costs: list[float]  # chosen for each class
    mean: float


def read_multilabel(root: str | Path, split: str) -> MultiLabel:
    """Returns the images and labels of a split, in the layout of the VOC devkit.

        root/ImageSets/Main/CLASS_SPLIT.txt     a line for each image: NAME LABEL
        root/JPEGImages/NAME.jpg

    LABEL is 1 where an object of the class is in the image, -1 where none is, 0 where
    all of them are marked as difficult. The files of a split are those that end in
    _SPLIT.txt; classes are in alphabetic order, images in that of the first class.

    Args:
      root: the folder of a year, such as VOCdevkit/VOC2007. split: such as "trainval".

    Raises:
      FileNotFoundError: a folder, the files of the split or an image are missing.
      Refusal: a line of another form, an image listed twice, or classes whose images
        differ.
    """
    root = Path(root)
    lists, folder = root / "ImageSets" / "Main", root / "JPEGImages"
    for needed in (lists, folder):
        if not needed.is_dir():
            raise FileNotFoundError(f"multi-label data: there is no folder {needed}")
    ending = f"_{split}.txt"
    files = sorted(lists.glob(f"*{ending}"))
    if not files:
        raise FileNotFoundError(
            f"multi-label data: no files CLASS{ending} in {lists}; expected one for"
            f" each class of the split {split!r}"
        )
    columns = [_column(path) for path in files]
    names = list(columns[0])
    for path, column in zip(files, columns, strict=True):
        if different := column.keys() ^ columns[0].keys():
            raise Refusal(
                f"{path} and {files[0]} list different images: {len(different)} are"
                f" in one only, such as {min(different)!r}"
            )
    present = {path.name for path in folder.iterdir()}
    missing = [name for name in names if f"{name}.jpg" not in present]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(names)} images of {split!r} are not in"
            f" {folder}, such as {missing[0]}.jpg"
        )
    labels = [[column[name] for column in columns] for name in names]
    return MultiLabel(
        paths=[folder / f"{name}.jpg" for name in names],
        labels=np.array(labels, np.int8),
        classes=[path.name.removesuffix(ending) for path in files],
    )


def average_precision(
    scores: np.ndarray, labels: np.ndarray, *, eleven_point: bool
) -> float:
    """Returns the average precision of a ranking by descending score, 0 to 1.

    With precision and recall at every threshold, and the highest precision at any
    recall of r or more, p(r): either the mean of p at r = 0, 0.1, ..., 1 (VOC2007), or
    the area under p (VOC since 2010, and what VISSL reports for VOC2007). Equal scores
    share one threshold, so that the order of images does not matter.

    Args:
      scores: [n]. labels: [n] of 1, -1 and 0; images of label 0 are left out.
      eleven_point: which of the two.

    Raises:
      Refusal: shapes that differ, other labels, scores that are not finite, or no
        image of label 1.

    Source: Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010,
    and the development kits of 2007 and 2010.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise Refusal(
            "average precision needs scores and labels of one shape [n]; got"
            f" {scores.shape} and {labels.shape}"
        )
    _check_labels(labels)
    scores, positive = scores[labels != 0], labels[labels != 0] == 1
    if not positive.any():
        raise Refusal("average precision needs an image of label 1; got none")
    if not np.isfinite(scores).all():
        raise Refusal("average precision needs finite scores")
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], positive[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # of its score
    hits = np.cumsum(positive)[last]
    precision, recall = hits / (last + 1), hits / hits[-1]
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if eleven_point:
        # Compared as integers: 0.3 is not quite 3 / 10.
        first = [np.argmax(10 * hits >= i * hits[-1]) for i in range(11)]
        return float(np.mean(best[first]))
    return float(np.sum(np.diff(recall, prepend=0) * best))


def fit_and_score(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    costs: tuple[float, ...] = COSTS,
    folds: int = 3,
    seed: int = 0,
    eleven_point: bool = False,
) -> Scores:
    """Returns the test average precision of a linear SVM for each class.

    Features are divided by their length. For each class and cost C, a linear SVM
    (LIBLINEAR's dual solver, squared hinge, L2, positive images weighing twice) is
    judged by the area under its precision in cross-validation; the best C, the least of
    equals, is fitted again to all training images. So does VISSL for VOC2007, but for
    three points: difficult images are left out of training as they are of the test,
    where VISSL trains on them as negatives; folds are shuffled, by `seed`; and the
    average precision in cross-validation is that of the test, not scikit-learn's, which
    does not interpolate.

    Args:
      train_features: [n, f]; train_labels: [n, c] of 1, -1 and 0, see `MultiLabel`;
        test_features: [m, f]; test_labels: [m, c].
      costs: the C to choose from.
      folds: of the cross-validation, at least 2, with like shares of the labels.
      seed: of the shuffled folds and of the solver.
      eleven_point: of the test, see `average_precision`.

    Raises:
      ModuleNotFoundError: scikit-learn is not installed.
      Refusal: shapes that do not fit, features that are not finite, other labels, a
        class with fewer examples of 1 or -1 than folds, or without any in the test.

    Source: arXiv:1905.01235; facebookresearch/vissl, svm_trainer.py, evaluate.py and
    eval_resnet_8gpu_transfer_voc07_svm.yaml.
    """
    require("sklearn.svm", "a linear SVM", install="vicreg_jax[demo]")
    train = _checked(train_features, train_labels, "training", folds)
    test = _checked(test_features, test_labels, "test", 1)
    shapes = [[x.shape[1] for x in split] for split in (train, test)]
    if shapes[0] != shapes[1]:
        got = f"{shapes[0]} and {shapes[1]}"
        raise Refusal(
            f"training and test need the same features and classes; got {got}"
        )
    costs = sorted(costs)
    if folds < 2 or not costs or costs[0] <= 0:
        raise Refusal(f"need folds >= 2 and costs > 0; got {folds} and {costs}")
    precisions, chosen = [], []
    for known, asked in zip(train[1].T, test[1].T, strict=True):
        x, y = train[0][known != 0], known[known != 0]
        right = [_validated(x, y, cost, folds=folds, seed=seed) for cost in costs]
        chosen.append(costs[np.argmax(right)])
        decisions = _fitted(x, y, chosen[-1], seed).decision_function(test[0])
        precision = average_precision(decisions, asked, eleven_point=eleven_point)
        precisions.append(100 * precision)
    return Scores(precisions, chosen, float(np.mean(precisions)))


def _fitted(x, y, cost, seed):
    """Returns a linear SVM; a solver that stops early warns."""
    from sklearn.svm import LinearSVC

    weights = {1: 2, -1: 1}
    model = LinearSVC(C=cost, class_weight=weights, max_iter=STEPS, random_state=seed)
    return model.fit(x, y)


def _validated(x, y, cost, *, folds, seed):
    """Returns the mean average precision of a cost in cross-validation."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold

    found = []
    with warnings.catch_warnings():  # a high cost that does not converge may lose
        warnings.simplefilter("ignore", ConvergenceWarning)
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y)
        for known, asked in splits:
            model = _fitted(x[known], y[known], cost, seed)
            decisions = model.decision_function(x[asked])
            found.append(average_precision(decisions, y[asked], eleven_point=False))
    return np.mean(found)


def _column(path):
    """Returns image name -> label of the file of a class."""
    found = {}
    for number, line in enumerate(files.read_text(path).splitlines(), 1):
        words = line.split()
        if len(words) != 2 or words[1] not in ("1", "-1", "0"):
            raise Refusal(
                f"{path}, line {number}: expected an image's name and 1, -1 or 0; got"
                f" {line!r}"
            )
        if words[0] in found:
            raise Refusal(f"{path}, line {number}: {words[0]!r} comes twice")
        found[words[0]] = int(words[1])
    if not found:
        raise Refusal(f"{path} lists no images")
    return found


def _checked(features, labels, name, least):
    """Returns features of length one and labels, after checking them."""
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.ndim != 2 or len(features) != len(labels):
        raise Refusal(
            f"{name} needs features [n, f] and labels [n, c]; got {features.shape} and"
            f" {labels.shape}"
        )
    _check_labels(labels)
    for label in (1, -1):
        counts = np.sum(labels == label, axis=0)
        if counts.size and counts.min() < least:
            raise Refusal(
                f"every class needs {least} {name} images of label {label} or more;"
                f" class {counts.argmin()} has {counts.min()}"
            )
    wrong = np.count_nonzero(~np.isfinite(features).all(axis=1))
    if wrong:
        raise Refusal(f"{wrong} of the {len(features)} {name} rows are not finite")
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length == 0, 1, length), labels


def _check_labels(labels):
    if not np.isin(labels, (1, -1, 0)).all():
        found = np.unique(labels)[:5].tolist()
        raise Refusal(f"labels must be 1, -1 or 0; got {found}")
