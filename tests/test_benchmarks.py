"""The benchmark runs, and its numbers hang together. What they are on a given machine is no test's business."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import PROJECT
from meters import StepWatch
from subprocesses import repeat_data

CONTENDERS = ["NERTrial", "run_ner", "run_ner, best flags", "bare loop"]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What a run on the sample found, and what it printed."""
    file = tmp_path_factory.mktemp("benchmark") / "found.json"
    script = PROJECT / "tests" / "benchmarks" / "benchmark.py"
    sections, sizes = ["--only", "training", "evaluation"], ["--rounds", "2", "--batches", "3", "--threads", "1"]
    command = [sys.executable, str(script), *sections, *sizes, "--json", str(file)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=file.parent)
    assert process.returncode == 0, process.stderr
    return json.loads(file.read_text()), process.stdout


@pytest.mark.slow
def test_all_contenders_train_on_the_same_sentences(benchmark: tuple[dict[str, Any], str]) -> None:
    (training,) = benchmark[0]["training"].values()

    assert list(training["rounds"]) == CONTENDERS
    tokens = {round(r["tokens_per_second"] * r["seconds"]) for rounds in training["rounds"].values() for r in rounds}
    assert len(tokens) == 1, "a contender saw other sentences than another, or a word of them was lost"
    for rounds in training["rounds"].values():
        assert [r["sentences"] for r in rounds] == [3 * 8, 3 * 8]
        assert all(0 < r["real_tokens"] <= 1 and r["sentences_per_second"] > 0 for r in rounds)


@pytest.mark.slow
def test_parts_of_a_step_add_up(benchmark: tuple[dict[str, Any], str]) -> None:
    (training,) = benchmark[0]["training"].values()

    assert list(training["step_milliseconds"]) == CONTENDERS
    for parts in training["step_milliseconds"].values():
        # A contender's first batch is there before the clock starts; the bare loop's are all.
        assert parts["data"] >= 0
        assert all(parts[name] > 0 for name in ("forward", "backward", "clipping", "optimizer", "rest"))
        assert parts["forward"] + parts["backward"] > parts["clipping"]


@pytest.mark.slow
def test_evaluations_come_to_the_same_metrics(benchmark: tuple[dict[str, Any], str]) -> None:
    (evaluation,) = benchmark[0]["evaluation"].values()

    ours, theirs = evaluation["rounds"]["NERTrial"][0], evaluation["rounds"]["run_ner"][0]
    assert ours["sentences"] == theirs["sentences"] == 200
    assert ours["f1"] == pytest.approx(theirs["f1"], abs=1e-6)
    assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_tables_name_contenders_and_ratios(benchmark: tuple[dict[str, Any], str]) -> None:
    for name in CONTENDERS[1:]:
        assert f"NERTrial / {name} " in benchmark[1]
    assert benchmark[0]["machine"]["torch_threads"] == 1


def test_waits_for_a_gpu_are_counted() -> None:
    class Model(torch.nn.Linear):
        """Warns as torch's debug mode does where there is a GPU."""

        config = SimpleNamespace(num_hidden_layers=1, hidden_size=4)

        def forward(self, attention_mask: torch.Tensor) -> torch.Tensor:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            return super().forward(attention_mask)

    model = Model(4, 1)
    optimizer = torch.optim.SGD(model.parameters())
    with StepWatch(2, parts=True) as watch:
        watch.see(model)
        for _ in range(2):
            model(attention_mask=torch.ones(3, 4)).sum().backward()
            optimizer.step()
    assert watch.results()["syncs"] == 1


def test_repeated_data_has_as_many_sentences_and_labels_as_asked_for(tmp_path: Path) -> None:
    label_names = repeat_data(PROJECT / "sample" / "data", tmp_path, num_sentences=450, num_types=4)

    assert len(label_names) == 9
    rows = {split: (tmp_path / f"{split}.json").read_text().splitlines() for split in ("train", "validation")}
    assert len(rows["validation"]) == 450
    assert {tag for row in rows["train"] for tag in json.loads(row)["ner_tags"]} == set(label_names)
