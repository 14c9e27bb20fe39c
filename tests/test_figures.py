"""The script that draws a run's metrics."""

import json
import operator
import runpy
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from conftest import PROJECT, Patch, write_lines
from training_process import run_python

SCRIPT = PROJECT / "figures" / "draw_metrics.py"
draw, main, read_reports = operator.itemgetter("draw", "main", "read_reports")(runpy.run_path(str(SCRIPT)))

REPORTS: list[dict[str, Any]] = [
    {"group": "training", "batches": 10, "loss": 2.5, "learning_rate": 1e-5},
    {"group": "training", "batches": 20, "loss": 1.5, "learning_rate": None},
    {"group": "validation", "batches": 20, "accuracy_score": 0.5, "f1": 0.25, "validation_loss": 2.0, "precision": 0.1},
    {"group": "training", "batches": 30, "loss": None},
    {"group": "validation", "batches": 30, "accuracy_score": 0.75, "f1": 0.5, "validation_loss": 1.0, "recall": 0.1},
    {"group": "test", "batches": 30, "accuracy_score": 0.125, "f1": 0.125, "validation_loss": 9.0},
]


def read_curves(figure: Any) -> dict[str, tuple[list[Any], bool]]:
    """The points of each curve in each panel, and whether it has markers, by its name in the legend."""
    lines = [(panel.get_ylabel(), line, line.get_marker()) for panel in figure.axes for line in panel.lines]
    return {
        f"{name}: {line.get_label()}": ([*map(tuple, line.get_xydata())], marker not in ("", "None", None))
        for name, line, marker in lines
    }


def test_draws_loss_accuracy_and_f1_and_marks_validations(tmp_path: Path) -> None:
    figure = draw(read_reports(Path(write_lines(REPORTS, tmp_path / "metrics.jsonl"))))
    assert read_curves(figure) == {
        "loss: training (last: 1.500)": ([(10, 2.5), (20, 1.5)], False),
        "loss: validation (last: 1.000)": ([(20, 2.0), (30, 1.0)], True),
        "score in validation: accuracy of words (last: 0.750)": ([(20, 0.5), (30, 0.75)], True),
        "score in validation: F1 of entities (last: 0.500)": ([(20, 0.25), (30, 0.5)], True),
    }
    for panel in figure.axes:
        named = [text.get_text() for text in panel.get_legend().get_texts()]
        assert named == [line.get_label() for line in panel.lines]


@pytest.mark.parametrize(("report", "names"), [(0, ["loss: training (last: 2.500)"]), (-1, [])])
def test_draws_what_a_short_run_has(report: int, names: list[str], tmp_path: Path) -> None:
    path = write_lines([REPORTS[report]], tmp_path / "metrics.jsonl")
    assert list(read_curves(draw(read_reports(Path(path))))) == names
    main([path, "--output", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").stat().st_size > 0


@pytest.mark.parametrize("named", ["", "metrics.jsonl"])
def test_command_draws_a_run_into_its_folder(named: str, tmp_path: Path) -> None:
    write_lines(REPORTS, tmp_path / "metrics.jsonl")
    tracked = SCRIPT.with_name("ner.png").read_bytes()
    assert run_python(SCRIPT, tmp_path / named)[0] == f"The figure is {tmp_path / 'metrics.png'}\n"
    assert SCRIPT.with_name("ner.png").read_bytes() == tracked
    image = matplotlib.image.imread(tmp_path / "metrics.png")
    assert image.shape[:2] == (750, 1200)
    assert image.min() < 0.3  # something is drawn
    assert image[..., :3].mean() > 0.9  # on white


WHOLE = json.dumps(REPORTS[0]) + "\n"


@pytest.mark.parametrize(
    ("content", "output", "message"),
    [
        pytest.param("", "b", "a: found no line; a run writes one with each report.", id="empty"),
        pytest.param(WHOLE + WHOLE[:20], "b", f"a: line 2 is not a whole report of a run: {WHOLE[:20]!r}.", id="cut"),
        pytest.param(WHOLE + "\n" + WHOLE, "b", "a: line 2 is not a whole report of a run: ''.", id="blank"),
        pytest.param("[1]", "b", "a: line 1 is not a whole report of a run: '[1]'.", id="no object"),
        pytest.param('{"loss": 1}', "b", "a: line 1 is not a whole report of a run: '{\"loss\": 1}'.", id="no group"),
        pytest.param(None, "b", "a: No such file or directory.", id="no file"),
        pytest.param(Path, "b", "a/metrics.jsonl: No such file or directory.", id="folder of no run"),
        pytest.param(WHOLE, "gone/b", "gone/b: No such file or directory.", id="no folder"),
    ],
)
def test_a_mistake_is_told(content: Any, output: str, message: str, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, str):
        Path("a").write_text(content)
    elif content:
        Path("a").mkdir()
    with pytest.raises(SystemExit) as exit_:
        main(["a", "--output", output])
    assert exit_.value.code == message
    assert not Path(output).exists()
