"""The sections of the page: what is drawn, and how it is to be read."""

from html import escape
from typing import NamedTuple

import numpy as np

from vicreg_jax.methods import health
from vicreg_jax.report import figures, maps, pictures, tables
from vicreg_jax.report.figures import Drawn, Reference, curve, short
from vicreg_jax.report.maps import Gallery
from vicreg_jax.report.records import Record, is_number


class Figure(NamedTuple):
    panels: dict[str, Drawn]  # name of its file -> drawing
    caption: str  # HTML
    layout: str = "panels"  # class of the page's style sheet
    extra: str = ""  # HTML


class Table(NamedTuple):
    html: str
    caption: str  # HTML


Part = Figure | Table | str  # str is HTML


def loss(record: Record) -> list[Part]:
    n, d = record.config.data.batch_size, record.config.model.expander[-1]
    weights = dict(record.config.loss)
    panels = _curves(record, {"loss": ("Loss", {})})
    parts = {name: w for name, w in weights.items() if w > 0}
    steps, values = _columns(record, *parts)
    if len(steps) and len(parts) > 1:
        weighted = {
            name: weight * value
            for (name, weight), value in zip(parts.items(), values, strict=True)
        }
        panels["shares"] = figures.shares(
            "Share of each weighted term", steps, weighted
        )
    panels |= _curves(record, {name: (name.capitalize(), {}) for name in weights})
    steps, (ratio, std) = _columns(record, "covariance_over_noise", "embedding_std")
    if len(steps):
        panels["covariance_over_noise"] = curve(
            "Covariance over its chance level",
            steps,
            ratio,
            references=[Reference("chance at this std", std**4)],
        )
    caption = (
        "The loss, what each weighted term adds to it, and the unweighted terms, at"
        " the logged steps. With weights of 25, 25 and 1 a healthy run ends at 13 to"
        " 15. <i>Invariance</i>, the mean squared difference of the two embeddings of"
        " an image, falls to 0.03 to 0.15. <i>Variance</i>, the mean of 1 − std where"
        " the std is below 1, settles near 0.4, where the invariance pulls as hard;"
        " rising towards 1 is collapse. <i>Covariance</i> stays about level and never"
        f" vanishes: embeddings of unit variance without any correlation show"
        f" {short(2 * (d - 1) / (n - 1))} at n = {n:,} and d = {d:,}. The last panel is"
        " the term divided by that; dashed, what chance leaves at the std of the step."
        " Near the dashed line a batch shows no correlation, far above it some is left."
    )
    return _figure(record, panels, caption)


def diagnostics(record: Record) -> list[Part]:
    config = record.config
    target = {"references": [Reference("target 1", 1.0)]}
    panels = _curves(
        record,
        {
            "embedding_std": ("Std of embeddings", target),
            "embedding_rank": ("Effective rank of embeddings", {}),
            "embedding_correlation": ("Correlation of embeddings", {}),
            "representation_std": ("Std of representations", {}),
            "representation_rank": ("Effective rank of representations", {}),
            "grad_norm": ("Norm of the gradient", {"log": True}),
        },
    )
    most = min(health.LIMIT, config.data.batch_size, config.model.expander[-1])
    caption = (
        "Statistics of the first view. <i>Std</i> is that of each dimension over the"
        " batch, averaged over dimensions. The verdict above goes by the embeddings':"
        " it dips at first and then rises to about 0.6; a quarter of its start is"
        " collapse. That of the representations may have any scale, but not vanish."
        " <i>Effective rank</i> (RankMe,"
        ' <a href="https://arxiv.org/abs/2210.02885">arXiv:2210.02885</a>) counts the'
        f" directions in use, at most {most:,} for the embeddings; it ignores scale and"
        " stays high while everything shrinks, so judge its trend. <i>Correlation</i>"
        " is the mean size of that of two dimensions: 0.1 to 0.3 is usual, near 1 all"
        " dimensions say the same."
    )
    return _figure(record, panels, caption)


def speed(record: Record) -> list[Part]:
    limit = {"percent": True, "references": [Reference("too slow above", 0.1)]}
    panels = _curves(
        record,
        {
            "learning_rate": ("Learning rate", {}),
            "images_per_second": ("Images per second", {}),
            "data_wait": ("Time spent waiting for images", limit),
        },
    )
    caption = (
        "The schedule; images per second over all devices, each with two views; and"
        " the share of the time for which the device had to wait for images. Above"
        " 10 % the input is too slow for the device."
    )
    return _figure(record, panels, caption)


def spectrum(record: Record) -> list[Part]:
    found = _diagnosed(record)

    def series(key):
        values = {name: own.get(key) for name, own in found.items()}
        return {
            name: np.array(x, float)
            for name, x in values.items()
            if isinstance(x, list) and x and all(map(is_number, x))
        }

    panels, parts = {}, []
    values = {
        name: x / max(x.max(), 1e-30) for name, x in series("singular_values").items()
    }
    if values:
        title = "Singular values over the largest"
        panels["singular_values"] = figures.spectra(
            title, values, xlabel="rank", log=True
        )
    if series("stds"):
        panels["stds"] = figures.spectra(
            "Std of each dimension",
            series("stds"),
            xlabel="dimension, sorted",
            log=False,
        )
    if panels:
        caption = (
            "Features of whole images, without augmentation. Singular values, of the"
            " features as they are, so that the first is mostly their mean: in a"
            " healthy encoder they fall slowly over many ranks; a cliff means that the"
            " directions beyond it are hardly used. Dimensions whose std is near 0 are"
            " dead."
        )
        parts.append(Figure(panels, caption))
    names = {
        **{"std": "mean std", "dead": "dead dimensions", "correlation": "correlation"},
        **{"rank": "effective rank", "alpha": "α", "lidar": "LiDAR"},
    }
    if any(is_number(own.get(name)) for own in found.values() for name in names):
        caption = (
            "Of the same features. <i>Dead</i> are dimensions with a std below 0.01."
            " <i>Effective rank</i> and <i>correlation</i> as in training, of more"
            " images. <i>α</i> is the exponent by which the eigenvalues of the"
            " covariance fall: the best encoders are reported near 1, more is steeper."
            " Compare runs of the same data and width."
        )
        if any("lidar" in own for own in found.values()):
            caption += (
                ' <i>LiDAR</i> (<a href="https://arxiv.org/abs/2312.04000">'
                "arXiv:2312.04000</a>) is the effective rank of what tells images apart"
                " rather than their views."
            )
        parts.append(Table(tables.diagnostics(found, names), caption))
    return parts


def evaluation(record: Record) -> list[Part]:
    panels = _curves(
        record,
        {
            "knn_top1": ("20-NN accuracy, per cent", {}),
            "probe_top1": ("Accuracy of the linear probe, per cent", {}),
        },
    )
    caption = (
        "While training, on training images, by labels that the encoder never sees:"
        " nearest neighbours vote on images held back from them; the linear probe"
        " learns beside the encoder, from augmented views, and is averaged over about"
        " 100 steps. Both are for watching the trend, not for reporting."
    )
    parts = _figure(record, panels, caption)
    if not record.results:
        return parts
    config = record.config
    caption = (
        "Test results in per cent. ± is half of the 95 % (Wilson) interval that chance"
        " in the choice of the test images leaves; chance in training is not in it."
    )
    if any(result.get("published") for result in record.results):
        caption += (
            " Published numbers are those of the recipe that the evaluation names;"
            f" this run is {escape(config.model.encoder)} (width {config.model.width}),"
            f" {config.epochs:,} epochs, batches of {config.data.batch_size:,}."
        )
    parts.append(Table(tables.evaluations(record.results), caption))
    notes = [
        f"{result.get('name') or result.get('task', '')}: {note}"
        for result in record.results
        for note in result.get("notes", [])
    ]
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        parts.append(f'<ul class="notes">{items}</ul>')
    return parts


def few_labels(record: Record) -> list[Part]:
    rows = record.few_labels
    if not rows:
        return []
    draws = max(len(row["draws"]) for row in rows)
    caption = (
        "Test accuracy in per cent of probes on frozen features, given so many labels"
        f" per class: means over {draws} draws of the labels, which all rows share, and"
        " half of their 95 % intervals. The best of a column is bold; the last row are"
        " differences draw by draw. Pretraining pays where it beats raw pixels and the"
        " untrained encoder, most with few labels."
    )
    return [Table(tables.few_labels(rows), caption)]


def feature_map(gallery: Gallery) -> list[Part]:
    drawn, method, hover = pictures.feature_map(gallery)
    n = len(gallery.features)
    caption = f"{method} map of the representations of {n:,} images"
    if gallery.labels is not None:
        few = len(np.unique(gallery.labels)) <= len(pictures.LABELS)
        caption += ", " if few else ", the ten most frequent labels "
        caption += "coloured by label" if few else "in colour"
        caption += " (neither training nor the map has seen the labels)"
    caption += (
        ". Each point is an image, some are shown; point at others to see them. Near"
        " points are similar to the encoder; sizes of groups and distances between"
        " them mean little. A good encoder gathers what belongs together; one cloud"
        " of mixed colours has learned little."
    )
    return [Figure({"map": drawn}, caption, _picture(gallery.thumbnails), hover)]


def neighbours(gallery: Gallery) -> list[Part]:
    k = min(pictures.NEIGHBOURS, len(gallery.features) - 1)
    caption = (
        f"Some images and the {k} whose representations are nearest by cosine, among"
        f" {len(gallery.features):,}."
    )
    if gallery.labels is not None:
        share, chance = maps.agreement(gallery.features, gallery.labels, k)
        caption += (
            " Those of another label are framed, with their label below. Over all"
            f" images, {100 * share:.1f} % of the {k} nearest have the label of the"
            f" query; chance would give {100 * chance:.1f} %."
        )
    drawn = pictures.neighbours(gallery)
    return [Figure({"neighbours": drawn}, caption, _picture(gallery.thumbnails))]


def views(record: Record, gallery: Gallery) -> list[Part]:
    if not len(gallery.views):
        return []
    least, most = record.config.augment.crop_scale
    caption = (
        "Pairs of augmented views, as training sees them: crops of"
        f" {100 * least:.0f} to {100 * most:.0f} % of the image's area, and the other"
        " augmentations listed below. The invariance term pulls the two of a pair"
        " together, so they should differ in what does not matter and agree in what"
        " does. Where you cannot tell that they show the same thing, the augmentations"
        " are too strong."
    )
    layout = _picture(gallery.views[:, 0])
    return [Figure({"views": pictures.views(gallery)}, caption, layout)]


def settings(record: Record) -> list[Part]:
    return [
        "<p>Marked is what differs from the defaults, which are the paper's recipe for"
        " ImageNet, of 100 epochs.</p>",
        tables.settings(record.config),
    ]


def _picture(images):
    """Returns the classes of a picture; small images are shown in square pixels."""
    return "picture smooth" if images.shape[1] >= pictures.SMOOTH else "picture"


def _columns(record, *names):
    """Returns the steps that have all these values, and the values of each, [t]."""
    lines = [line for line in record.metrics if line.keys() >= set(names)]
    steps = np.array([line["step"] for line in lines], float)
    return steps, [np.array([line[name] for line in lines], float) for name in names]


def _diagnosed(record):
    """Returns the statistics of each kind of features that has been evaluated."""
    found = {}
    for folder, facts in record.diagnostics.items():
        before = f"{folder}, " if len(record.diagnostics) > 1 else ""
        for kind in ("representation", "embedding"):
            own = {
                name.removeprefix(f"{kind}_"): value
                for name, value in facts.items()
                if name.startswith(f"{kind}_")
            }
            if own:
                found[f"{before}{kind}s"] = own
                if "lidar" in facts and kind == "representation":
                    own["lidar"] = facts["lidar"]
    return found


def _curves(record, wanted):
    """Returns a panel for each of the wanted values that has been logged."""
    panels = {}
    for name, (title, options) in wanted.items():
        steps, (values,) = _columns(record, name)
        if len(steps):
            panels[name] = curve(title, steps, values, **options)
    return panels


def _figure(record, panels, caption):
    if not panels:
        return []
    if len(record.metrics) > figures.POINTS:
        caption += (
            " Lines are means over neighbouring steps, the bands go from their least"
            " to their greatest value."
        )
    return [Figure(panels, caption)]
