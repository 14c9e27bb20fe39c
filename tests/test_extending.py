"""The examples of docs/extending.md, as they stand there, and what the base does for any task."""

import csv
import functools
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
import yaml
from conftest import PROJECT, SAMPLE_DATA, Capture, Config, Fit, Log, Patch, read_lines, read_metrics, refuses, slow
from training_process import Training, run_python, start_ranks, wait_for_all

import ner_utils
import predict
from ner.data import read_splits
from ner_trial import NERTrial
from transformer_trial import local
from transformer_trial.errors import ConfigError, TrialError
from transformer_trial.trial import BaseTransformerTrial

TASK, LOADER, LOSS, HEAD = "Another task", "Another loader", "Another loss", "Another head"
ROWS = read_lines(SAMPLE_DATA / "train.json")[:57]  # of two slots, one gets no row of the eighth batch
VALIDATION_ROWS = 23
Command = Callable[[str], list[str]]
"""The fixture `command`."""


def is_good(row: dict[str, Any]) -> bool:
    return "B-PER" in row["ner_tags"]


@pytest.fixture
def command(config: Config, tmp_path: Path, monkeypatch: Patch) -> Command:
    """Write an example's files, its yaml and its data into a folder, and return the command line of its training."""
    with (tmp_path / "sentiment.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((" ".join(r["tokens"]), int(is_good(r))) for r in ROWS)])
    for split in ("train", "validation"):
        lines = [" ".join(f"{word}/{tag}" for word, tag in zip(row["tokens"], row["ner_tags"])) for row in ROWS]
        (tmp_path / f"{split}.slashed").write_text("\n".join(lines))
    (tmp_path / ".detignore").write_text("/outputs/\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def write(name: str) -> list[str]:
        page = (PROJECT / "docs" / "extending.md").read_text(encoding="utf-8")
        (text,) = (part for part in page.split("\n## ") if part.startswith(name))
        blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
        assert sum(block.count("\n") for _, block in blocks) <= 30
        for code in (block for kind, block in blocks if kind == "python"):
            file = Path(code.splitlines()[0].removeprefix("# "))
            file.write_text(code)
            monkeypatch.delitem(sys.modules, file.stem, raising=False)  # of another test
        changes = yaml.safe_load(next(block for kind, block in blocks if kind == "yaml"))
        config.update(min_validation_period={"batches": 7}, scheduling_unit=3, entrypoint=changes["entrypoint"])
        config["hyperparameters"] |= {"learning_rate": 3e-3, **changes.get("hyperparameters", {})}
        config["data"] = changes.get("data", config["data"] | {"max_train_samples": len(ROWS)})
        config["data"] |= {"max_eval_samples": VALIDATION_ROWS}
        config["searcher"] |= {"max_length": {"batches": 16}, **changes.get("searcher", {})}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        return [str(tmp_path / "config.yaml"), "--output-dir"]

    return write


def train_here(arguments: list[str], *options: str, batches: int = 4) -> Path:
    """Train in this process; returns the folder of the exported model."""
    folder = Path(arguments[0]).parent / "outputs" / "run"
    local.run(NERTrial, [*arguments, str(folder), "--batches", str(batches), *options], follows_entrypoint=True)
    return folder / "model"


def see_modules(folder: Path) -> None:
    sys.path.insert(0, str(folder))


@pytest.mark.parametrize("name", [TASK, slow(LOADER), slow(LOSS), slow(HEAD)])
def test_an_example_trains_resumes_and_is_the_same_in_two_ranks(command: Command, tmp_path: Path, name: str) -> None:
    arguments, log, changes = command(name), tmp_path / "log", [functools.partial(see_modules, tmp_path)]
    whole, cut, two = (tmp_path / "outputs" / name for name in ("whole", "cut", "two"))

    def train(folder: Path, *options: str, signals: Any = ()) -> int:
        return Training([*arguments, str(folder), *options], log, signals, changes=changes).wait()

    assert train(whole) == 0, log.read_text()
    validations = read_metrics(whole, "validation")
    assert len(validations) == 3 and validations[-1]["validation_loss"] < validations[0]["validation_loss"]
    assert train(cut, signals=[("training", 10, int(signal.SIGINT))]) == 128 + signal.SIGINT, log.read_text()
    assert train(cut, "--resume", "auto") == 0, log.read_text()
    for file in ("metrics.jsonl", "model/model.safetensors"):
        assert (cut / file).read_bytes() == (whole / file).read_bytes()
    assert wait_for_all(start_ranks([*arguments, str(two)], log, 2, changes=changes)) == [0, 0], log.read_text()
    if name != HEAD:  # its dropout differs from slot to slot
        for line, expected in zip(read_metrics(two, "validation"), validations, strict=True):
            assert line.pop("group") == expected.pop("group")
            assert line == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_the_classifier_of_the_docs_is_for_pipeline_and_scored_by_rows(command: Command, tmp_path: Path) -> None:
    model = train_here([*command(TASK)], batches=8)
    classify = transformers.pipeline("text-classification", str(model))
    right = sum((classify(" ".join(r["tokens"]))[0]["label"] == "good") == is_good(r) for r in ROWS[:VALIDATION_ROWS])
    assert read_metrics(tmp_path / "outputs" / "run", "validation")[-1]["accuracy"] == right / VALIDATION_ROWS


def test_the_loader_of_the_docs_serves_all_programs(command: Command, tmp_path: Path, capfd: Capture) -> None:
    arguments = command(LOADER)
    model = train_here(arguments)
    options = ["--loader", "own_data_trial:read_rows", "--input", "train.slashed", "--output", "tagged.jsonl"]
    predict.main(["--model", str(model), *options])
    assert [(row["tokens"], row["gold"]) for row in read_lines(tmp_path / "tagged.jsonl")] == [
        (row["tokens"], row["ner_tags"]) for row in ROWS
    ]
    (tmp_path / "validation.slashed").write_text("Ada/B-PER\nLondon/B-\n")
    model = model.parent.rename(tmp_path / "outputs" / "first") / "model"
    for run in (
        lambda: train_here(arguments),
        lambda: predict.main(["--model", str(model), *options[:3], "validation.slashed", *options[4:]]),
    ):
        with pytest.raises(SystemExit):
            run()
        assert "validation.slashed, line 2: tag 1 is 'B-', which names no type" in capfd.readouterr().err


def test_the_weight_of_the_docs_counts_as_in_torch(command: Command, tmp_path: Path) -> None:
    logits, labels = torch.randn(3, 4, 5), torch.tensor([[0, 1, -100, 3]] * 3)
    weights = torch.tensor([0.1, 0.2, 1, 3, 1])
    for given in (None, weights):
        total, count = ner_utils.sum_losses(logits, labels, given)
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), given)
        torch.testing.assert_close(total / count, expected)
    arguments = command(LOSS)
    losses = []
    for weight in ("0.01", "1.0"):
        train_here(arguments, "--config", f"hyperparameters.outside_weight={weight}", batches=1)
        losses.append(read_metrics(tmp_path / "outputs" / "run", "validation")[-1]["validation_loss"])
        (tmp_path / "outputs" / "run").rename(tmp_path / f"outputs/{weight}")
    assert losses[0] != losses[1]


def test_the_head_of_the_docs_is_exported_with_its_code(command: Command, capfd: Capture) -> None:
    model = train_here(command(HEAD))
    assert "does not rebuild" not in capfd.readouterr().err
    weights = transformers.pipeline("token-classification", str(model), trust_remote_code=True).model.state_dict()
    assert weights["classifier.3.weight"].shape == (9, 32)
    Path("new.txt").write_text("Ada lives in London\n")
    arguments = ["--model", str(model), "--input", "new.txt", "--output", "new.jsonl"]
    predict.main([*arguments, "--trust-remote-code"])
    assert len(read_lines(Path("new.jsonl"))[0]["tags"]) == 4
    with pytest.raises(SystemExit):
        predict.main(arguments)
    assert "brings the code for it. Read that; to run it: --trust-remote-code" in capfd.readouterr().err


def test_a_head_that_only_its_trial_builds_is_told_at_both_ends(config: Config, fit: Fit, caplog: Log) -> None:
    class OtherHeadTrial(NERTrial):
        def build_model(self) -> None:
            super().build_model()
            self.model.classifier = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(32, 9))

    config["searcher"]["max_length"]["batches"] = 1
    folder = fit(config, OtherHeadTrial).output_dir / "model"
    assert "AutoModelForTokenClassification.from_pretrained does not rebuild" in caplog.text
    with refuses("no weights for classifier.bias", "but for classifier.1.bias", "predict.Tagger"):
        predict.Tagger.load(folder)


def test_rows_longer_than_the_models_positions_are_told_before_training(config: Config, fit: Fit) -> None:
    class LongTrial(BaseTransformerTrial):
        def load_datasets(self) -> Any:
            return {"train": [{"text": "a"}] * 3 + [{"text": "a " * 600}], "validation": lambda: iter([{"text": "a"}])}

        @staticmethod
        def tokenize_rows(rows: Any, tokenizer: Any, data_config: Any) -> Any:
            return {**tokenizer(rows["text"]), "labels": [0] * len(rows["text"])}

    config["hyperparameters"] |= {"model_mode": "sequence-classification", "num_labels": 2}
    config["data"] = {}
    with pytest.raises(TrialError, match=r"train split: row 4 has 602 sub-tokens; accepted are at most 512"):
        fit(config, LongTrial)


def test_another_task_knows_its_own_settings_and_none_of_ner(config: Config, command: Command) -> None:
    command(LOSS)
    weighted = __import__("weighted_trial").WeightedTrial
    given = config["hyperparameters"] | {"outside_weight": {"type": "double", "minval": 0.2, "maxval": 0.6}}
    assert weighted.parse_settings(given, config["data"]).task.outside_weight == pytest.approx(0.4)
    for trial, section, key, message in [
        (weighted, "hyperparameters", "outside_wieght", "Did you mean outside_weight?"),
        (weighted, "hyperparameters", "outside_weight", r"accepted is a number above 0"),
        (NERTrial, "hyperparameters", "outside_weight", "unknown key"),
        (BaseTransformerTrial, "data", "doc_stride", "unknown key"),
    ]:
        sections = {name: {**config[name]} for name in ("hyperparameters", "data")}
        sections["hyperparameters"].pop("outside_weight", None)
        sections[section][key] = -1
        with pytest.raises(ConfigError, match=re.escape(message)):
            trial.parse_settings(sections["hyperparameters"], sections["data"])


@pytest.mark.parametrize(
    ("entrypoint", "message"),
    [
        ("no_such_module:Trial", "No module named 'no_such_module'"),
        ("json:NoTrial", "has no attribute 'NoTrial'"),
        ("json:JSONDecoder", "accepted is a subclass of BaseTransformerTrial"),
    ],
)
def test_a_wrong_entrypoint_is_told(command: Command, capfd: Capture, entrypoint: str, message: str) -> None:
    with pytest.raises(SystemExit):
        train_here(command(LOSS), "--config", f"entrypoint={entrypoint}")
    error = capfd.readouterr().err
    assert f"entrypoint: found {entrypoint}" in error and message in error


def test_a_trial_of_the_script_that_is_run_is_refused(config: Config, tmp_path: Path) -> None:
    code = "from ner_trial import NERTrial\nfrom transformer_trial.local import run\nclass Own(NERTrial): ...\nrun(Own)"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    _, errors = run_python("-c", code, tmp_path / "config.yaml", status=1)
    assert "Own is defined in the script that is run. Define it in a module of its own" in errors


def test_rows_of_a_file_are_cached_until_it_changes_and_other_rows_are_not(config: Config, tmp_path: Path) -> None:
    calls = []
    file = tmp_path / "names"

    def read(path: Path) -> Iterator[dict[str, Any]]:
        calls.append(path)
        for name in path.read_text().split():
            yield {"tokens": [name, "slept"], "tags": ["B-PER", "O"], "place": f"name {name}"}

    def load(rows: Any) -> datasets.Dataset:
        calls.clear()
        settings = NERTrial.parse_settings(config["hyperparameters"], {})
        return read_splits({"train": rows}, settings.data, "ner")[0]["train"]

    file.write_text("Ada Bea")
    cached = functools.partial(read, file)
    assert load(cached)["tokens"][1] == ["Bea", "slept"] and len(calls) == 2  # to find the columns, and to read
    assert load(cached)["place"][:] == ["name Ada", "name Bea"] and len(calls) == 1
    file.write_text("Cid")
    assert load(cached)["tokens"][:] == [["Cid", "slept"]] and len(calls) == 2
    for rows in (list(read(file)), lambda: read(file), datasets.Dataset.from_list(list(read(file)))):
        assert load(rows)["tokens"][:] == [["Cid", "slept"]]
    with pytest.raises(TrialError, match=r"train split\), row 2: found 'Bea'; accepted is a dict"):
        load([{"tokens": ["Ada"], "tags": ["O"]}, "Bea"])
