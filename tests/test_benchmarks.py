"""The benchmark runs, and its numbers hang together. What they are on a given machine is no test's business."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT, read_lines
from subprocesses import repeat_data
from training_process import run_python

CONTENDERS = ["NERTrial", "run_ner", "run_ner, best flags", "bare loop"]


def run_benchmark(folder: Path, *options: str) -> tuple[Any, str]:
    """Run some of its sections; returns what it measured, and what it printed."""
    script, file = PROJECT / "tests" / "benchmarks" / "benchmark.py", folder / "found.json"
    said, _ = run_python(script, "--json", file, "--only", *options, folder=folder)
    return json.loads(file.read_text()), said


@pytest.mark.slow
def test_contenders_see_the_same_and_come_to_the_same(tmp_path: Path) -> None:
    sizes = ["--rounds", "2", "--batches", "3", "--threads", "1"]
    found, said = run_benchmark(tmp_path, "training", "evaluation", *sizes)
    assert found["machine"]["torch_threads"] == 1
    assert [name for name in CONTENDERS[1:] if f"NERTrial / {name} " not in said] == []

    (training,) = found["training"].values()
    assert list(training["rounds"]) == list(training["step_milliseconds"]) == CONTENDERS
    tokens = {round(r["tokens_per_second"] * r["seconds"]) for rounds in training["rounds"].values() for r in rounds}
    assert len(tokens) == 1, "a contender saw other sentences than another, or a word of them was lost"
    for rounds in training["rounds"].values():
        assert [r["sentences"] for r in rounds] == [3 * 8, 3 * 8]
        assert all(0 < r["real_tokens"] <= 1 and r["sentences_per_second"] > 0 for r in rounds)
    for parts in training["step_milliseconds"].values():
        assert parts["data"] >= 0  # the first batch is there before the clock starts; the bare loop's are all
        assert all(parts[name] > 0 for name in ("forward", "backward", "clipping", "optimizer", "rest"))
        assert parts["forward"] + parts["backward"] > parts["clipping"]

    (evaluation,) = found["evaluation"].values()
    ours, theirs = evaluation["rounds"]["NERTrial"][0], evaluation["rounds"]["run_ner"][0]
    assert ours["sentences"] == theirs["sentences"] == 200
    assert ours["f1"] == pytest.approx(theirs["f1"], abs=1e-6)
    assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_prediction_is_compared_on_the_same_tags(tmp_path: Path) -> None:
    found, said = run_benchmark(tmp_path, "prediction", "--rounds", "1")
    assert said.count("predict.py, times as fast as pipeline, batch") == 2
    found = found["prediction"]
    assert len(found["rounds"]) == 2 + 4 * 2
    for (times,) in found["rounds"].values():
        assert 0 < times["tagging"] < times["seconds"]
    others = found["other_tags"]
    assert found["words"] > 1000 and others["predict.py"] == 0
    assert {count for name, count in others.items() if name.startswith("pipeline")} == {0}


def test_repeated_data_has_as_many_sentences_and_labels_as_asked_for(tmp_path: Path) -> None:
    label_names = repeat_data(PROJECT / "sample" / "data", tmp_path, num_sentences=450, num_types=4)
    train, validation = (read_lines(tmp_path / f"{split}.json") for split in ("train", "validation"))
    assert len(validation) == 450
    assert {tag for row in train for tag in row["ner_tags"]} == set(label_names) and len(label_names) == 9
