"""Draw a run's metrics.jsonl: loss above, accuracy and F1 below, over batches; each marker is a validation.

python3 figures/draw_metrics.py DIR [--output FILE.png]

DIR is a run's folder, or its metrics.jsonl; the image goes beside that, as metrics.png.
It needs matplotlib, which determined requires; nothing else of the project does.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PANELS = ("loss", "score in validation")
CURVES = (
    # panel, group, metric, name, color, marker
    (0, "training", "loss", "training", "#4878a8", ""),
    (0, "validation", "validation_loss", "validation", "#c44e52", "o"),
    (1, "validation", "accuracy_score", "accuracy of words", "#7a5195", "s"),
    (1, "validation", "f1", "F1 of entities", "#2e7d32", "D"),
)


def read_reports(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl.

    Raises:
        ValueError: If there is none, or one is not a whole report.
    """
    reports = []
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                report = json.loads(text)
                reports.append({**report, "group": report["group"], "batches": int(report["batches"])})
            except (ValueError, TypeError, KeyError):
                raise ValueError(f"line {number} is not a whole report of a run: {text.strip()[:60]!r}.") from None
    if not reports:
        raise ValueError("found no line; a run writes one with each report.")
    return reports


def draw(reports: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 5), layout="constrained")
    panels = figure.subplots(len(PANELS), 1, sharex=True)
    for i, group, metric, name, color, marker in CURVES:
        numbers = [(r["batches"], r.get(metric)) for r in reports if r["group"] == group]
        points = [point for point in numbers if isinstance(point[1], int | float)]
        if points:
            label = f"{name} (last: {points[-1][1]:.3f})"
            panels[i].plot(*zip(*points), color=color, marker=marker, markersize=5, label=label)
            panels[i].legend(frameon=False)
    for panel, name in zip(panels, PANELS):
        panel.set(ylabel=name, ylim=(0, None))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set(xlabel="batches", xlim=(0, None), ylim=(0, 1.02))
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the loss, accuracy and F1 that a run reported.")
    parser.add_argument("metrics", type=Path, metavar="DIR", help="a run's folder, or its metrics.jsonl")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="by default metrics.png beside metrics.jsonl")
    options = parser.parse_args(arguments)
    metrics = options.metrics / "metrics.jsonl" if options.metrics.is_dir() else options.metrics
    output = options.output or metrics.with_name("metrics.png")
    try:
        draw(read_reports(metrics)).savefig(output, format="png", dpi=150)
        print(f"The figure is {output}")
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}.")
    except ValueError as error:
        sys.exit(f"{metrics}: {error}")


if __name__ == "__main__":
    main()
