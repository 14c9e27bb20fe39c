"""The callbacks: metrics log, test split and early end, alone, after a resume, and with several processes."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers
from conftest import SAMPLE_DATA, Capture, Config, Fit, Log, Patch, read_lines, read_metrics, watch
from determined import pytorch
from seqeval import metrics as seqeval_metrics
from stand_in import newest_checkpoint, run_on_stand_in
from test_distributed import train_to_end

from ner_trial import NERTrial


@pytest.fixture
def small(config: Config) -> Config:
    """A configuration that trains and tests in no time; it validates every other batch."""
    config["data"] |= {"max_train_samples": 24, "max_eval_samples": 8, "test_file": str(SAMPLE_DATA / "test.json")}
    config["hyperparameters"] |= {"learning_rate": 1e-3, "num_training_steps": 20}
    config["searcher"]["max_length"]["batches"] = 12
    return config


def script_f1(patch: Patch, values: Iterable[float]) -> None:
    """Let the next validations report these values as f1."""
    script, score = iter(values), NERTrial.score
    patch.setattr(NERTrial, "score", lambda self, collected: {**score(self, collected), "f1": next(script)})


VALIDATING = {"validation_period": pytorch.Batch(2)}


@pytest.fixture
def bars() -> Iterator[None]:
    """Let the libraries show bars, as they do where nothing was said, whatever `conftest.py` says."""
    datasets.enable_progress_bars()
    transformers.utils.logging.enable_progress_bar()
    yield
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def test_only_better_models_are_evaluated_on_test(small: Config, fit: Fit, monkeypatch: Patch) -> None:
    script_f1(monkeypatch, [0.2, 0.1, 0.3, 0.3, math.nan, 0.4])
    small["data"] |= {"return_entity_level_metrics": True, "max_train_samples": None, "max_seq_length": 16}
    small["hyperparameters"] |= {"learning_rate": 3e-3, "num_training_steps": None}
    small["searcher"]["max_length"]["batches"] = 120
    kept: list[list[dict[str, list[str]]]] = []

    def keep(_: Any, trial: Any, folder: Path, **__: Any) -> None:
        kept.append(read_lines(folder / "test" / "predictions.jsonl"))

    watch(NERTrial, "evaluate_best", monkeypatch, then=keep)
    trial = fit(small, validation_period=pytorch.Batch(20))
    lines = read_metrics(trial.output_dir, "test")
    assert [line["batches"] for line in lines] == [20, 60, 120]
    assert lines[-1]["f1"] > 0.02, "a blind model scores nothing either way"
    for line, rows in zip(lines, kept, strict=True):
        gold, predicted = ([row[name] for row in rows] for name in ("gold", "tags"))
        assert len(gold) == 200
        assert line["accuracy_score"] == pytest.approx(seqeval_metrics.accuracy_score(gold, predicted))
        scores = seqeval_metrics.classification_report(gold, predicted, output_dict=True, zero_division=0)
        for prefix, name in {"": "micro avg", **{f"{t}_": t for t in ("LOC", "MISC", "ORG", "PER")}}.items():
            assert line[f"{prefix}f1"] == pytest.approx(scores[name]["f1-score"])
    assert lines[-1].keys() == read_metrics(trial.output_dir, "validation")[-1].keys() - {"validation_loss"}


def test_without_a_test_split_and_an_export_there_is_a_report_alone(small: Config, fit: Fit) -> None:
    small["data"]["test_file"] = None
    small["hyperparameters"]["export_model"] = False
    folder = fit(small).output_dir
    assert {line["group"] for line in read_lines(folder / "metrics.jsonl")} == {"training", "validation"}
    assert sorted(path.name for path in folder.rglob("*")) == [
        "data.json", "metrics.jsonl", "report", "report.html", "report.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("patience", "values", "num_validations"),
    [
        pytest.param(None, [0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 6, id="never"),
        pytest.param(1, [0.5, 0.4], 2, id="at-once"),
        pytest.param(1, [0.5, 0.5], 2, id="as-good-is-not-better"),
        pytest.param(2, [0.5, 0.4, 0.6, 0.5, 0.55], 5, id="counted-anew"),
        pytest.param(2, [0.5, math.nan, math.nan], 3, id="not-a-number"),
        pytest.param(2, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 6, id="always-better"),
        pytest.param(6, [0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 6, id="not-reached"),
    ],
)
def test_training_stops_after_so_many_worse_validations(
    small: Config, fit: Fit, monkeypatch: Patch, patience: int | None, values: list[float], num_validations: int
) -> None:
    script_f1(monkeypatch, values)
    small["hyperparameters"]["early_stopping_patience"] = patience
    folder = fit(small, **VALIDATING).output_dir
    assert len(read_metrics(folder, "validation")) == num_validations
    assert read_metrics(folder, "training")[-1]["batches"] == 2 * num_validations


def test_a_training_whose_loss_is_no_number_keeps_no_model(small: Config, fit: Fit, caplog: Log) -> None:
    small["hyperparameters"] |= {"learning_rate": 1e30, "num_training_steps": 7, "num_warmup_steps": 0}
    folder = fit(small).output_dir
    assert not (folder / "model").exists()
    assert "validation_loss: no number. Such a model is not kept as the best." in caplog.text
    assert "The schedule of the learning rate spans 7 batches, 0 of them warm-up, but the training has" in caplog.text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param([0.5, 0.4], [0.45, 0.45], id="worse-than-the-best-before"),
        pytest.param([0.5, 0.4], [0.6, 0.1, 0.2, 0.3], id="better"),
        pytest.param([0.5, 0.4, 0.4], [0.4], id="the-last-straw"),
        pytest.param([0.5, 0.4, 0.4, 0.4], [], id="it-had-stopped"),
    ],
)
def test_a_resumed_run_stops_when_it_would_have(
    small: Config, fit: Fit, monkeypatch: Patch, tmp_path: Path, before: list[float], after: list[float]
) -> None:
    small["hyperparameters"]["early_stopping_patience"] = 3
    script_f1(monkeypatch, [*before, *after])
    small["searcher"]["max_length"]["batches"] = 2 * len(before) if after else 20
    fit(small, **VALIDATING)
    small["searcher"]["max_length"]["batches"] = 20
    checkpoint = newest_checkpoint(tmp_path / "checkpoints")
    trial = fit(small, latest_checkpoint=str(checkpoint), **VALIDATING)
    assert trial.batches_trained == 2 * len(after)
    assert (newest_checkpoint(tmp_path / "checkpoints") == checkpoint) == (not after)
    assert (trial.output_dir / "model").exists() == any(value > max(before) for value in after)


@pytest.mark.usefixtures("bars")
def test_a_cluster_gets_each_number_once_and_no_bars(small: Config, tmp_path: Path, capfd: Capture) -> None:
    small["data"]["overwrite_cache"] = True
    small |= {"min_validation_period": {"batches": 4}, "checkpoint_policy": "all"}
    _, reports = run_on_stand_in(small, tmp_path)
    groups = [group for group, *_ in reports]
    assert groups[:3] == ["training", "test", "validation"] and groups.count("test") <= groups.count("validation")
    assert reports[1][1] == 4 and reports[1][2].keys() == {"accuracy_score", "precision", "recall", "f1"}
    log, shown = capfd.readouterr()  # Determined's harness logs to standard output
    numbers = Counter(f"{metrics.get('loss', metrics.get('accuracy_score'))}" for *_, metrics in reports)
    assert {number: sum(number in line for line in log.splitlines()) for number in numbers} == numbers
    assert "batch 4 of" not in log + shown and "f1 0" not in log + shown
    assert "it/s" not in shown and "%|" not in shown, "a bar, where no terminal is"


def test_two_processes_keep_what_one_keeps(small: Config, tmp_path: Path) -> None:
    small["data"] |= {"max_eval_samples": 50, "return_entity_level_metrics": True}
    small["hyperparameters"] |= {"learning_rate": 0, "early_stopping_patience": 2}  # no validation is ever better
    small |= {"min_validation_period": {"batches": 2}, "scheduling_unit": 2}
    kept = []
    for num_ranks in (1, 2):
        folder = train_to_end(small, tmp_path / str(num_ranks), num_ranks) / "run"
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if "checkpoints" not in path.parts}
        lines = read_lines(folder / "metrics.jsonl")
        report = json.loads((folder / "report" / "report.json").read_text())
        tags = [row["tags"] for row in read_lines(folder / "test" / "predictions.jsonl")]
        kept.append((files, report, tags, lines))
    (*one, lines), (*two, other_lines) = kept
    assert one == two
    assert [line["group"] for line in lines] == ["training", "validation", "test", *["training", "validation"] * 2]
    for line, other in zip(lines, other_lines, strict=True):
        assert line.pop("group") == other.pop("group")
        assert line == pytest.approx(other, rel=1e-4)
