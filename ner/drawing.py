"""The figures of an error report: F1 of the types, and what the types were taken for. Only here is matplotlib used."""

import base64
import io
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from transformer_trial.errors import printable

MAX_DRAWN_TYPES = 60
"""Figures show the most frequent types: with more, nothing could be read."""

STYLE: list[Any] = ["default", {"svg.fonttype": "none", "svg.hashsalt": "ner_report"}]
"""Text stays text: a browser has the letters that matplotlib's fonts lack. The user's own style has no effect."""


def draw_figures(report: Mapping[str, Any]) -> list[str]:
    """A bar chart and a heat map, each a data URI of SVG."""
    by_support = sorted(report["types"], key=lambda name: -report["types"][name]["support"])
    rows = {name: report["types"][name] for name in sorted(by_support[:MAX_DRAWN_TYPES])}
    labels = [_shorten(printable(name)) for name in rows]
    padding = 0.1 + 0.06 * max(map(_count_wide, labels))  # inches; matplotlib may take wide letters for narrow ones
    metadata: Any = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    drawn = []
    with matplotlib.style.context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about letters that the fonts lack
        for figure in (draw_bars(labels, [row["f1"] for row in rows.values()]), draw_heat_map(labels, rows, report)):
            file = io.BytesIO()
            figure.savefig(file, format="svg", bbox_inches="tight", pad_inches=padding, dpi=200, metadata=metadata)
            drawn.append("data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode())
    return drawn


def draw_bars(labels: Sequence[str], scores: Sequence[float]) -> Figure:
    size = len(labels)
    figure = Figure(figsize=(6, 0.26 * size))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1.1), ylim=(size - 0.4, -0.6), xlabel="F1")
    axes.bar_label(axes.barh(range(size), scores, color="#4878a8"), [f"{f1:.3f}" for f1 in scores], padding=3)
    axes.set_yticks(range(size), labels, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_heat_map(labels: Sequence[str], rows: Mapping[str, Mapping[str, Any]], report: Mapping[str, Any]) -> Figure:
    """Gold types by predicted types, with a column each for boundary errors and missed ones, and a row for spurious."""
    size, places = len(rows), {name: i for i, name in enumerate(rows)}
    counts = np.zeros((size + 1, size + 2), int)
    for cell in report["confusion"]:
        if cell["gold"] in rows and cell["predicted"] in rows:
            counts[places[cell["gold"]], places[cell["predicted"]]] = cell["same_span"] + cell["other_span"]
    for i, row in enumerate(rows.values()):
        counts[i, [i, size, size + 1]] = row["correct"], row["boundary"], row["missed"]
        counts[size, i] = row["spurious"]
    shades = np.sqrt(counts / counts.sum(axis=1, keepdims=True).clip(1))  # the root makes a few percent visible
    is_correct = np.eye(size + 1, size + 2, dtype=bool)

    inches = min(max(0.24, 4 / (size + 2)), 0.6)  # of a cell
    figure = Figure(figsize=(inches * (size + 2), inches * (size + 1)))
    axes = figure.add_axes((0, 0, 1, 1), xlabel="predicted", ylabel="gold")
    for shown, colors in ((is_correct, "Blues"), (~is_correct, "Oranges")):
        image = np.ma.array(shades, mask=~shown | (counts == 0))
        axes.imshow(image, cmap=colors, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for i, j in np.argwhere(counts):
        text = f"{counts[i, j]}" if counts[i, j] < 10_000 else f"{counts[i, j] / 1000:.0f}k"
        color = "white" if shades[i, j] > 0.7 else "black"
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize=min(10, 26 * inches))
    axes.xaxis.tick_top()
    axes.yaxis.set_label_position("right")
    axes.set_xticks(range(size + 2), [*labels, "boundary", "missed"], rotation=90, parse_math=False)
    axes.set_yticks(range(size + 1), [*labels, "spurious"], parse_math=False)
    for place in range(size + 1):
        color = "black" if place == size else "#dddddd"
        axes.axhline(place - 0.5, color=color, linewidth=0.8)
        axes.axvline(place - 0.5, color=color, linewidth=0.8)
    return figure


def _shorten(label: str) -> str:
    length = 12 if _count_wide(label) else 24
    return label if len(label) <= length else label[: length - 1] + "…"


def _count_wide(text: str) -> int:
    """How many letters are as wide as two Latin ones."""
    return sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
