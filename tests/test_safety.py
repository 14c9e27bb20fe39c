"""Nothing is destroyed, and no wrong start goes unsaid; and the way from a data file to its yaml."""

import datetime
import functools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
import yaml
from conftest import PROJECT, SAMPLE_DATA, SAMPLE_MODEL, Config, Fit, read_metrics, refuses, slow, watch, write_config
from determined import pytorch
from training_process import Run, Training
from training_process import run as run  # a fixture

from ner.config import TaggerSettings
from transformer_trial import command_line
from transformer_trial.builders import build_default_lr_scheduler, build_using_auto
from transformer_trial.command_line import check_output_dir, find_data, make_plain, parse_arguments, read_config
from transformer_trial.config import ModelConfig, SchedulerConfig
from transformer_trial.errors import TrialError
from transformer_trial.private import is_ignored
from transformer_trial.processes import join_torchrun


@pytest.fixture
def config(config: Config) -> Config:
    config["data"] |= {"max_train_samples": 40, "max_eval_samples": 20}
    config["searcher"]["max_length"] = {"batches": 10}
    return config | {"min_validation_period": {"batches": 4}, "scheduling_unit": 2}


def contents_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["model", "report", "checkpoints", "test", "model.new"])
def test_a_folder_with_files_of_others_is_left_alone(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / name / "precious").write_text("precious")
    before = contents_of(tmp_path / "run")
    assert f"holds {name}, which no training with this program has written" in run("run", status=1)
    assert contents_of(tmp_path / "run") == before


def test_inputs_and_output_never_lie_in_each_other(config: Config, tmp_path: Path) -> None:
    (tmp_path / "run" / "mine").mkdir(parents=True)
    for path in (tmp_path / "run" / "mine", tmp_path / "run", tmp_path):
        with refuses("hyperparameters.model_name", "lie in each other"):
            check_output_dir(tmp_path / "run", {"hyperparameters.model_name": path}, resumes=False)
    (tmp_path / "run" / "a.json").touch()
    for value in ("*.json", "a.json"):
        inputs = command_line.resolve_paths({"data": {"train_file": value}}, tmp_path / "run", tmp_path)
        with refuses("data.train_file", "lie in each other"):
            check_output_dir(tmp_path / "run", inputs, resumes=False)
    check_output_dir(tmp_path / "run", {"data.train_file": SAMPLE_DATA / "train.json"}, resumes=False)


def test_secrets_do_not_travel_with_the_code() -> None:
    for name in (".env", "sub/key.pem", "id_rsa", ".netrc", ".npmrc", ".pypirc", "sub/my-credentials.json"):
        assert is_ignored(PROJECT, PROJECT / name)
    assert not is_ignored(PROJECT, PROJECT / "ner_trial.py")


def test_the_name_of_an_experiment_stays_in_outputs(tmp_path: Path) -> None:
    options = parse_arguments([])
    folder = command_line.choose_output_dir(tmp_path, {"name": "../../x/\ny" + "z" * 300}, options)
    assert folder.parent == tmp_path / "outputs" and len(folder.name) < 130


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)
DEEP = functools.reduce(lambda inner, _: [inner], range(100), list[Any]())
TYPES = "accepted are texts, numbers, lists and mappings"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({1, 2}, TYPES), (b"x", TYPES), ([{"a": {3}}], TYPES), (CIRCLE, "contains itself"),
        (DEEP, "more than 50 levels"), ("\ud83d", "half of a character"),
    ],
)  # fmt: skip
def test_values_that_json_cannot_hold_are_refused_and_dates_become_text(value: Any, said: str) -> None:
    with refuses("description", said):
        make_plain({"description": value}, "", [])
    given = {"a": datetime.date(2024, 1, 1), "b": [(1, None)]}
    assert make_plain(given, "", []) == {"a": "2024-01-01", "b": [[1, None]]}


EXPANDING = "&a0 [x, x]" + "".join(f", &a{i + 1} [*a{i}, *a{i}]" for i in range(60))
"""A list of yaml that doubles 60 times."""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hyperparamters.x=1", "hyperparamters: unknown key (found {'x': 1}). Did you mean hyperparameters?"),
        ("searcher.max_lenght=1", "searcher.max_lenght: unknown key (found 1). Did you mean max_length?"),
        ("resources.slot_per_trial=1", "slot_per_trial: unknown key (found 1). Did you mean slots_per_trial?"),
        ("learning_rate=1e-3", "unknown key (found 0.001). learning_rate belongs in the section hyperparameters."),
        ("searcher.scheduling_unit=9", "unknown key (found 9). scheduling_unit belongs at the top level."),
        ("reproducibility.seed=4", "unknown key (found 4). Here that is reproducibility.experiment_seed."),
        ("optimizations.agregation_frequency=2", "Did you mean aggregation_frequency?"),
        ("name.a.b=1", "found a key within a value that is no mapping"),
        (f"labels=[{EXPANDING}]", "its aliases make more than 100000 values of it"),
    ],
)
def test_a_misspelt_key_of_determined_is_told(config: Config, tmp_path: Path, override: str, message: str) -> None:
    arguments = [write_config(config, tmp_path)[0], "--config", override]
    with refuses(message):
        read_config(parse_arguments(arguments))


RANKS = dict.fromkeys(("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_PORT"), "1")


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set, but not RANK, LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK, "),
        ({**RANKS, "WORLD_SIZE": "x", "MASTER_ADDR": "here"}, "WORLD_SIZE='x': accepted is a whole number. Start with"),
        ({**RANKS, "WORLD_SIZE": "2", "MASTER_ADDR": "here", "RANK": "-"}, "RANK='-': accepted is a whole number."),
    ],
)
def test_processes_that_torchrun_did_not_start_are_refused(env: dict[str, str], said: str, monkeypatch: Any) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with refuses(said), join_torchrun():
        pass


def test_a_period_can_change_its_unit(run: Run, tmp_path: Path) -> None:
    unit = ("--config", "min_validation_period.epochs=1")
    advice = "Set all units but one to null: --config min_validation_period.batches=null."
    assert advice in run("run", *unit, status=1)
    run("run", *unit, "--config", "min_validation_period.batches=null")
    assert [line["batches"] for line in read_metrics(tmp_path / "run", "validation")] == [5, 10]


def test_a_model_without_its_tokenizer_or_with_too_large_a_one_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    small = transformers.BertConfig(vocab_size=100, hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
    transformers.AutoModel.from_config(small).save_pretrained(tmp_path / "small")
    shutil.copytree(tiny_model, tmp_path / "other")
    weights = safetensors.torch.load_file(tiny_model / "model.safetensors")
    names = {f"another.{name}": weight for name, weight in weights.items()}
    safetensors.torch.save_file(names, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    for name, tokenizer, said in [
        ("bare", None, "there is no tokenizer"),
        ("small", str(SAMPLE_MODEL), "entries, but the model knows 100"),
        ("other", None, "none of the model's weights is there"),
    ]:
        model = ModelConfig(
            model_mode="token-classification", model_name=str(tmp_path / name), config_name=str(tmp_path / name),
            tokenizer_name=tokenizer or str(tmp_path / name),
        )  # fmt: skip
        with refuses(said):
            build_using_auto(model, ["O", "B-X"])


def test_a_validation_without_entities_lets_the_loss_choose(
    config: Config, fit: Fit, tmp_path: Path, caplog: Any
) -> None:
    (tmp_path / "v.json").write_text('{"tokens": ["Ada", "slept"], "ner_tags": ["O", "O"]}\n' * 4)
    config["data"]["validation_file"] = str(tmp_path / "v.json")
    config["hyperparameters"]["learning_rate"] = 1e-3
    trial = fit(config, validation_period=pytorch.Batch(4))
    assert "has no entity: f1 is always 0, and validation_loss chooses the model" in caplog.text
    assert trial.callbacks["best_model"].best_batches > 4


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("polynomial", {"lr_end": 1e-4}),
        ("polynomial", {"power": -1.0}),  # at the last batch
        ("warmup_stable_decay", {"num_decay_steps": 5, "min_lr_ratio": -0.5}),
    ],
)
def test_a_schedule_of_impossible_rates_is_refused_before_training(kind: Any, arguments: dict[str, Any]) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=5e-5)
    schedule = SchedulerConfig(lr_scheduler_type=kind, lr_scheduler_kwargs=arguments)
    for num_batches in (20, 10**21):  # the second would take for ever, one by one
        with refuses("hyperparameters.lr_scheduler_kwargs"):
            build_default_lr_scheduler(optimizer, schedule, num_batches)


@pytest.mark.parametrize(
    "settings", [{"max_seq_length": -1}, {"doc_stride": "x"}, {"metric_options": {}}, {"new": 1}, 5]
)
def test_an_export_whose_settings_were_edited_is_refused(settings: Any) -> None:
    config = transformers.BertConfig()
    config.ner = settings
    with refuses("config.json was changed"):
        TaggerSettings.from_config(config)


def test_a_resume_with_another_metric_optimizer_or_data_says_so(config: Config, run: Run) -> None:
    config["searcher"] |= {"metric": "validation_loss", "smaller_is_better": True}
    run("run", "--batches", "4")
    config["searcher"] |= {"metric": "accuracy_score", "smaller_is_better": False}
    config["data"]["max_train_samples"] = 39
    log = run("run", "--resume", "auto")
    assert "searcher.metric was validation_loss; the best model is found anew, by accuracy_score" in log
    assert "The training rows or their order are not those of the checkpoint" in log
    log = run("run", "--resume", "auto", "--batches", "9", status=1)
    assert "searcher.max_length: found 9 batches, but " in log and "trained for 10. Give at least" in log
    config["hyperparameters"]["adafactor"] = True
    log = run("run", "--resume", "auto", "--batches", "12", status=1)
    assert "the checkpoint holds the state of adafactor: false" in log


LATER = b'\n{"gr'


@pytest.mark.parametrize(
    ("damage", "is_told"),
    [
        pytest.param(None, True, id="removed"),
        pytest.param(lambda text: text[:-7], True, id="half-a-line"),
        pytest.param(lambda text: text[: len(text) // 2], True, id="cut-in-the-middle"),
        pytest.param(lambda text: text[9:], True, id="without-its-beginning"),
        pytest.param(lambda text: b"\xff" + text, True, id="not-text"),
        pytest.param(lambda text: text + text.splitlines()[-1].replace(b": 4", b": 6") + LATER, False, id="more-lines"),
    ],
)
def test_metrics_are_rebuilt_to_the_checkpoints_batch(
    run: Run, tmp_path: Path, damage: Callable[[bytes], bytes] | None, is_told: bool
) -> None:
    file = tmp_path / "run" / "metrics.jsonl"
    run("run", "--batches", "4")
    before = file.read_bytes()
    file.unlink()
    if damage is not None:
        file.write_bytes(damage(before))
    log = run("run", "--resume", "auto")
    assert log.count(f"{file} is shorter than when the checkpoint was saved") == is_told, log
    assert file.read_bytes().startswith(before)
    lines = [(line["group"], line["batches"]) for line in map(json.loads, file.read_text().splitlines())]
    assert [n for group, n in lines if group == "training"] == [2, 4, 6, 8, 10]
    assert [n for group, n in lines if group == "validation"] == [4, 8, 10]


def test_metrics_are_on_the_disk_before_their_checkpoint_counts(config: Config, fit: Fit, monkeypatch: Any) -> None:
    flushed: list[tuple[str, bool]] = []

    def note(file: Any) -> None:
        path = Path(file.name)
        flushed.append((path.name, any((path.parents[1] / "checkpoints").rglob("metadata.json"))))

    watch(os, "fsync", monkeypatch, first=lambda file: note(file) if hasattr(file, "name") else None)
    fit(config, validation_period=pytorch.Batch(4))
    assert flushed[0] == ("metrics.jsonl", False)


@pytest.mark.parametrize(("ignores", "status"), [(False, 128 + signal.SIGHUP), slow(True, 0)])
def test_a_closed_terminal_saves_a_checkpoint_unless_it_is_ignored(run: Run, ignores: bool, status: int) -> None:
    changes = [functools.partial(signal.signal, signal.SIGHUP, signal.SIG_IGN if ignores else signal.SIG_DFL)]
    log = run("run", signals=[("training", 3, int(signal.SIGHUP))], changes=changes, status=status)
    assert ("Stopped after batch 2 of 10" in log) == (not ignores), log


def test_a_data_file_or_a_folder_is_answered_with_the_yaml_to_write(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("en-train.conll", "en-dev.conll", "en-test.conll", "one.csv"):
        (tmp_path / name).write_text("Ada\tB-PER\n\n")
    with pytest.raises(TrialError) as raised:
        read_config(parse_arguments(["one.csv"]))
    lines = str(raised.value).split("\n\n")[1]
    one = str(tmp_path / "one.csv")
    assert yaml.safe_load(lines)["data"] == {"dataset_name": None, "train_file": one, "validation_split_percentage": 10}
    names = {"train_file": "en-train.conll", "validation_file": "en-dev.conll", "test_file": "en-test.conll"}
    assert find_data(parse_arguments(["."])) == names
    (tmp_path / "mine.yaml").write_text("{name: mine, data: {encoding: cp1252}}")
    files = ["--train-file", "a", "--validation-file", "/b", "--inspect"]
    for arguments, name in ((files, "huggingface_ner_trial"), (["mine.yaml", *files], "mine")):
        read = read_config(parse_arguments(arguments))
        data = {"dataset_name": None, "train_file": str(tmp_path / "a"), "validation_file": "/b"}
        assert read["name"] == name and read["data"].items() >= data.items()
    assert read["data"]["encoding"] == "cp1252"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train-1.json", "train-2.json", "dev.json"], "found train-1.json, train-2.json for the train split."),
        (["engtrain.bio", "engtest.bio"], "found engtest.bio, engtrain.bio, of which none is named as"),
        (["dev.json", "wnuttrain.json"], "found dev.json, wnuttrain.json, of which none is named as"),
    ],
)
def test_a_folder_whose_names_leave_the_splits_open_is_asked_about(names: list[str], said: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with refuses(said):
        find_data(parse_arguments([str(tmp_path)]))


def test_a_data_file_is_inspected_at_once_and_without_weights(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "mine.csv").write_text("tokens;ner_tags\nAda slept;B-PER O\nNo one;O O\n")
    log, model = tmp_path / "log", f"hyperparameters.pretrained_model_name_or_path={tmp_path / 'model'}"
    assert Training([str(tmp_path / "mine.csv"), "--inspect", "--config", model], log).wait() == 0, log.read_text()
    said = log.read_text()
    assert "- PER" in said and "Next: the same command without --inspect" in said and "LOAD REPORT" not in said


def test_paths_lead_from_the_yaml_first_and_both_places_are_named(config: Config, run: Run, tmp_path: Path) -> None:
    shutil.copy(SAMPLE_DATA / "train.json", tmp_path / "mine.json")
    config["data"] |= {"train_file": "mine.json", "validation_file": "sample/data/validation.json"}
    run("run", "--test")
    config["data"]["train_file"] = "gone.json"
    log = run("gone", "--test", status=1)
    assert f"neither {tmp_path / 'gone.json'} nor {PROJECT / 'gone.json'} is there" in log
