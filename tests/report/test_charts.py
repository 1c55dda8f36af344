"""Charts: what is written beside a curve is beside its own."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra report")

from matplotlib import colors  # noqa: E402

from vicreg_jax.report import charts  # noqa: E402


def test_names_of_spectra_are_beside_their_own_curves(monkeypatch):
    shown = []
    monkeypatch.setattr(charts, "finish", lambda axes, title: shown.append(axes))
    n, wide = np.arange(1, 65), np.arange(1, 257)
    curves = {
        "above": (n**-0.3, wide**-0.9),
        "below": (n**-0.9, wide**-0.3),
        "crossing": (n**-0.5, np.where(wide < 10, 0.9, wide**-0.6)),
    }
    for log in (False, True):
        for representations, embeddings in curves.values():
            values = {"representations": representations, "embeddings": embeddings}
            charts.spectra("Values", values, xlabel="rank", log=log)
            axes = shown.pop()
            assert [text.get_text() for text in axes.texts] == list(values)
            points = [axes.transData.transform(x.get_xydata()) for x in axes.lines]
            for i, (text, line) in enumerate(zip(axes.texts, axes.lines, strict=True)):
                assert line.get_label() == text.get_text()
                assert (line.get_xydata() == text.xy).all(axis=1).any()
                # The middle of the text, whose letters are about half as wide as high.
                size = text.get_fontsize() * axes.figure.dpi / 72
                width = 0.55 * size * len(text.get_text())
                right = 1 if text.get_ha() == "left" else -1
                at = axes.transData.transform(text.xy)
                offset = np.array(text.xyann) * axes.figure.dpi / 72
                middle = at + offset + (right * width / 2, size / 3)
                gaps = [
                    np.hypot(*(dense(p) - middle).T).min()
                    for p in (points[i], points[1 - i])
                ]
                assert gaps[0] < gaps[1], (text.get_text(), log)


def dense(points):
    """Returns points [n, 2] of a line with a hundred more between any two."""
    at = np.linspace(0, len(points) - 1, 100 * len(points))
    columns = [np.interp(at, np.arange(len(points)), x) for x in points.T]
    return np.stack(columns, axis=1)


def test_names_of_equal_spectra_are_both_legible(monkeypatch):
    shown = []
    monkeypatch.setattr(charts, "finish", lambda axes, title: shown.append(axes))
    y = np.arange(1, 65) ** -0.5
    charts.spectra("Values", {"a": y, "b": y}, xlabel="rank", log=True)
    a, b = shown[0].texts
    assert a.xyann[1] > 0 > b.xyann[1]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_the_frame_of_a_name_has_the_colour_of_its_own_curve(monkeypatch, seed, log):
    shown, rng = [], np.random.default_rng(seed)
    monkeypatch.setattr(charts, "finish", lambda axes, title: shown.append(axes))
    names, curves = ["representations", "embeddings", "of another run"], {}
    for name in names[: rng.integers(2, 4)]:
        x = np.arange(1, 1 + rng.choice([1, 2, 64, 256, 1000]))
        kinds = x ** -rng.uniform(0.1, 2), np.exp(-x / 9), rng.uniform(size=len(x))
        curves[name] = rng.permutation(kinds[rng.integers(3)])
    curves["dead"] = np.zeros(5)  # of which a logarithmic axis shows nothing
    charts.spectra("Values", curves, xlabel="rank", log=log)
    lines = {line.get_label(): line for line in shown[0].lines}
    texts = {text.get_text(): text for text in shown[0].texts}
    assert list(texts) == list(lines) == list(curves)[: -1 if log else None]
    colours = [line.get_color() for line in lines.values()]
    assert len(set(colours)) == min(len(colours), len(charts.SHARES))
    for name, line in lines.items():
        y = np.sort(curves[name])[::-1]
        np.testing.assert_array_equal(line.get_ydata(), y)
        edge = texts[name].get_bbox_patch().get_edgecolor()
        assert colors.same_color(edge, line.get_color())
        assert (line.get_xydata() == texts[name].xy).all(axis=1).any()
