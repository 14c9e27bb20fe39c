"""Several processes under torchrun: each trains on its part, and together they do what one does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from conftest import PROJECT, read_metrics

NOTING_TRAIN_PY = """
import json, os, sys
sys.path.insert(0, {project!r})
from ner_trial import NERTrial
from transformer_trial import run

def train_batch(self, batch, epoch_idx, batch_idx, original=NERTrial.train_batch):
    with open({folder!r} + "/seen" + os.environ.get("RANK", "0"), "a") as file:
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
        file.write(json.dumps(rows) + "\\n")
    return original(self, batch, epoch_idx, batch_idx)

NERTrial.train_batch = train_batch
run.run(NERTrial)
"""


def train(config: dict[str, Any], folder: Path, num_processes: int) -> list[list[list[list[int]]]]:
    """Train in so many processes; returns for each process the rows (sub-tokens) of each of its batches."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "noting_train.py").write_text(NOTING_TRAIN_PY.format(project=str(PROJECT), folder=str(folder)))
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    command = [*launcher, "noting_train.py", "config.yaml", "--output-dir", str(folder / "run")]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    files = [folder / f"seen{rank}" for rank in range(num_processes)]
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


@pytest.mark.parametrize(
    ("num_processes", "num_train_rows", "num_validation_rows"),
    [
        pytest.param(2, 42, 50, id="two"),
        # 41 rows in batches of 8 leave a last batch of one row, and one validation row leaves processes without any.
        pytest.param(3, 41, 1, id="three-with-empty-pieces"),
    ],
)
def test_processes_together_do_what_one_does(
    config: dict[str, Any], tmp_path: Path, num_processes: int, num_train_rows: int, num_validation_rows: int
) -> None:
    config["data"] |= {"max_train_samples": num_train_rows, "max_eval_samples": num_validation_rows}
    config["hyperparameters"]["learning_rate"] = 1e-3
    config |= {"scheduling_unit": 1, "min_validation_period": {"epochs": 1}}
    config["searcher"]["max_length"] = {"epochs": 2}

    (alone,) = train(config, tmp_path / "alone", 1)
    together = train(config, tmp_path / "together", num_processes)

    # Each step's global batch is split into as many pieces as there are processes, and no row is trained on twice.
    # A piece without rows is a row of one sub-token, padding.
    assert all(len(process) == len(alone) for process in together)
    for step, batch in enumerate(alone):
        pieces = [row for process in together for row in process[step] if len(row) > 1]
        assert sorted(pieces) == sorted(batch)

    for group in ("training", "validation"):
        lines, expected = (read_metrics(tmp_path / name / "run", group) for name in ("together", "alone"))
        assert len(lines) == len(expected) > 0
        for line, expected_line in zip(lines, expected):
            assert line.pop("group") == expected_line.pop("group") == group
            assert line == pytest.approx(expected_line, rel=2e-4)
    for name in ("together", "alone"):  # no trace of data-parallel training, which Determined's loader would stumble on
        checkpoint = next((tmp_path / name / "run").glob("checkpoints/determined/*/state_dict.pth"))
        (saved,) = torch.load(checkpoint, weights_only=False)["models_state_dict"]
        assert "classifier.weight" in saved
    weights, expected_weights = (
        safetensors.torch.load_file(tmp_path / name / "run" / "model" / "model.safetensors")
        for name in ("together", "alone")
    )
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=0, atol=2e-4)


def test_a_mistake_ends_all_processes_with_its_message(config: dict[str, Any], tmp_path: Path) -> None:
    config["data"]["train_file"] = "gone.csv"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, str(PROJECT / "train.py"), "config.yaml", "--output-dir", str(tmp_path / "run")],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode != 0
    assert "gone.csv does not exist" in result.stderr
