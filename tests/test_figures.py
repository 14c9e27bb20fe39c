"""The script that draws a run's metrics."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from conftest import PROJECT

SCRIPT = PROJECT / "figures" / "draw_metrics.py"

REPORTS: list[dict[str, Any]] = [
    {"group": "training", "batches": 10, "loss": 2.5, "learning_rate": 1e-5},
    {"group": "training", "batches": 20, "loss": 1.5, "learning_rate": None},
    {"group": "validation", "batches": 20, "accuracy_score": 0.5, "f1": 0.25, "validation_loss": 2.0, "precision": 0.1},
    {"group": "training", "batches": 30, "loss": None},
    {"group": "validation", "batches": 30, "accuracy_score": 0.75, "f1": 0.5, "validation_loss": 1.0, "recall": 0.1},
    {"group": "test", "batches": 30, "accuracy_score": 0.125, "f1": 0.125, "validation_loss": 9.0},
]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("draw_metrics", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_metrics(folder: Path, reports: Sequence[dict[str, Any]]) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(report) + "\n" for report in reports), encoding="utf-8")
    return path


def read_curves(figure: Any) -> dict[str, tuple[list[Any], bool]]:
    """The points of each curve in each panel, and whether it has markers, by its name in the legend."""
    curves = {}
    for panel in figure.axes:
        for line in panel.lines:
            points = [tuple(point) for point in line.get_xydata().tolist()]
            curves[f"{panel.get_ylabel()}: {line.get_label()}"] = (points, line.get_marker() not in ("", "None", None))
    return curves


def test_draws_loss_accuracy_and_f1_and_marks_validations(script: Any, tmp_path: Path) -> None:
    figure = script.draw(script.read_reports(write_metrics(tmp_path, REPORTS)))
    assert read_curves(figure) == {
        "loss: training (last: 1.500)": ([(10, 2.5), (20, 1.5)], False),
        "loss: validation (last: 1.000)": ([(20, 2.0), (30, 1.0)], True),
        "score in validation: accuracy of words (last: 0.750)": ([(20, 0.5), (30, 0.75)], True),
        "score in validation: F1 of entities (last: 0.500)": ([(20, 0.25), (30, 0.5)], True),
    }
    for panel in figure.axes:
        named = [text.get_text() for text in panel.get_legend().get_texts()]
        assert named == [line.get_label() for line in panel.lines]


def test_draws_what_a_short_run_has(script: Any, tmp_path: Path) -> None:
    for reports, names in ((REPORTS[:1], ["loss: training (last: 2.500)"]), (REPORTS[-1:], [])):
        path = write_metrics(tmp_path, reports)
        assert list(read_curves(script.draw(script.read_reports(path)))) == names
        script.main([str(path), "--output", str(tmp_path / "figure.png")])
        assert (tmp_path / "figure.png").stat().st_size > 0


def test_command_writes_an_image_beside_the_script(tmp_path: Path) -> None:
    path, script = write_metrics(tmp_path, REPORTS), shutil.copy(SCRIPT, tmp_path)
    subprocess.run([sys.executable, script, path], check=True)
    image = matplotlib.image.imread(tmp_path / "ner.png")
    assert image.shape[:2] == (750, 1200)
    assert image.min() < 0.3  # something is drawn
    assert image[..., :3].mean() > 0.9  # on white


WHOLE = json.dumps(REPORTS[0]) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("", "found no line; a run writes one with each report.", id="empty"),
        pytest.param(WHOLE + WHOLE[:20], f"line 2 is not a whole report of a run: {WHOLE[:20]!r}.", id="cut"),
        pytest.param(WHOLE + "\n" + WHOLE, "line 2 is not a whole report of a run: ''.", id="blank"),
        pytest.param("[1]\n", "line 1 is not a whole report of a run: '[1]'.", id="no object"),
        pytest.param('{"loss": 1}\n', "line 1 is not a whole report of a run: '{\"loss\": 1}'.", id="no group"),
    ],
)
def test_a_file_that_is_no_run_ends_in_a_sentence(script: Any, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(SystemExit) as exit_:
        script.main([str(path), "--output", str(tmp_path / "figure.png")])
    assert exit_.value.code == f"{path}: {message}"
    assert not (tmp_path / "figure.png").exists()


def test_a_missing_file_or_folder_ends_in_a_sentence(script: Any, tmp_path: Path) -> None:
    path = write_metrics(tmp_path, REPORTS)
    missing, output = tmp_path / "missing.jsonl", tmp_path / "missing" / "figure.png"
    for arguments, named in (([missing], missing), ([path, "--output", output], output)):
        with pytest.raises(SystemExit) as exit_:
            script.main([*map(str, arguments)])
        assert exit_.value.code == f"{named}: No such file or directory."
