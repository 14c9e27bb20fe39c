"""The benchmark runs, and its numbers hang together. What they are on a given machine is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT
from subprocesses import repeat_data

CONTENDERS = ["NERTrial", "run_ner", "run_ner, best flags", "bare loop"]


@pytest.mark.slow
def test_contenders_see_the_same_and_come_to_the_same(tmp_path: Path) -> None:
    script, file = PROJECT / "tests" / "benchmarks" / "benchmark.py", tmp_path / "found.json"
    sections, sizes = ["--only", "training", "evaluation"], ["--rounds", "2", "--batches", "3", "--threads", "1"]
    command = [sys.executable, str(script), *sections, *sizes, "--json", str(file)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    found = json.loads(file.read_text())
    assert found["machine"]["torch_threads"] == 1
    assert [name for name in CONTENDERS[1:] if f"NERTrial / {name} " not in process.stdout] == []

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
    script, file = PROJECT / "tests" / "benchmarks" / "benchmark.py", tmp_path / "found.json"
    command = [sys.executable, str(script), "--only", "prediction", "--rounds", "1", "--json", str(file)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("predict.py, times as fast as pipeline, batch") == 2
    found = json.loads(file.read_text())["prediction"]
    assert len(found["rounds"]) == 2 + 4 * 2
    for (times,) in found["rounds"].values():
        assert 0 < times["tagging"] < times["seconds"]
    others = found["other_tags"]
    assert found["words"] > 1000 and others["predict.py"] == 0
    assert {count for name, count in others.items() if name.startswith("pipeline")} == {0}


def test_repeated_data_has_as_many_sentences_and_labels_as_asked_for(tmp_path: Path) -> None:
    label_names = repeat_data(PROJECT / "sample" / "data", tmp_path, num_sentences=450, num_types=4)

    assert len(label_names) == 9
    rows = {split: (tmp_path / f"{split}.json").read_text().splitlines() for split in ("train", "validation")}
    assert len(rows["validation"]) == 450
    assert {tag for row in rows["train"] for tag in json.loads(row)["ner_tags"]} == set(label_names)
