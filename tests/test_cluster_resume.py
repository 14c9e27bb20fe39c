"""Going on from a checkpoint on a cluster, starting from another experiment's, and both across the two stacks."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import PROJECT, SAMPLE_DATA, Config, Patch, read_metrics, slow
from determined import pytorch
from stand_in import newest_checkpoint, run_on_stand_in
from test_callbacks import script_f1
from test_distributed import train_to_end
from test_resume import assert_same_state, checkpoints_of, load_state

from ner_trial import NERTrial
from transformer_trial import local as run_module
from transformer_trial.errors import TrialError

FIXTURES = PROJECT / "tests" / "fixtures" / "checkpoints"
STACKS = ["cluster", "current"]


@pytest.fixture
def config(monkeypatch: Patch) -> dict[str, Any]:
    """13 batches, 8 an epoch and 3 a step, grouped by length, with dropout and a cosine schedule."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(run_module, "set_up_logging", lambda on_cluster: None)
    config = yaml.safe_load((FIXTURES / "config.yaml").read_text())
    return {**config, "scheduling_unit": 4, "checkpoint_policy": "none"}


# Validations are at 5, 10 and 13, steps at 3, 6, 9 and 12, reports at 4, 8 and 12; an epoch ends at 8, all ends at 13.
@pytest.mark.parametrize(("batches", "as_script"), [(4, False), (5, True), slow(8, False), slow(12, True), (13, False)])
def test_a_preempted_trial_ends_like_a_whole_one(
    config: Config, tmp_path: Path, monkeypatch: Patch, batches: int, as_script: bool
) -> None:
    script_f1(monkeypatch, [0.5, 0.4, 0.6] * 2)
    config["searcher"] |= {"metric": "f1", "smaller_is_better": False}
    config["data"]["test_file"] = config["data"]["validation_file"]
    _, expected = run_on_stand_in(config, tmp_path / "whole", as_script=as_script)
    evaluated = [f"{group} {n}" for group, n, _ in expected if group != "training"]
    assert evaluated == ["test 5", "validation 5", "validation 10", "test 13", "validation 13"]
    _, before = run_on_stand_in(config, tmp_path / "begun", preempted_at=batches, as_script=as_script)
    assert before[-1][1] == batches
    checkpoint = newest_checkpoint(tmp_path / "begun")
    _, after = run_on_stand_in(config, tmp_path / "begun", checkpoint, batches, as_script=as_script)
    assert before + after == expected
    assert_same_state(newest_checkpoint(tmp_path / "begun"), newest_checkpoint(tmp_path / "whole"))


def test_a_warm_start_trains_like_the_export(config: Config, tmp_path: Path, monkeypatch: Patch) -> None:
    better = [0.1, 0.2, 0.3, 0.4]
    script_f1(monkeypatch, [0.9, 0.8, 0.7, *better, *better])  # what the first run is like has to be forgotten
    config["searcher"] |= {"metric": "f1", "smaller_is_better": False}
    _, source = run_on_stand_in(config, tmp_path / "source")
    checkpoint = newest_checkpoint(tmp_path / "source")
    config |= {"perform_initial_validation": True, "scheduling_unit": 1, "reproducibility": {"experiment_seed": 8}}
    config["hyperparameters"] |= {"early_stopping_patience": 1}
    _, reports = run_on_stand_in(config, tmp_path / "warm", checkpoint, trial_id=2)
    assert reports[0][2]["validation_loss"] == source[-1][2]["validation_loss"]
    config["hyperparameters"]["pretrained_model_name_or_path"] = str(checkpoint / "model")
    assert reports == run_on_stand_in(config, tmp_path / "fresh", trial_id=3)[1]
    rates = [metrics["learning_rate"] for group, _, metrics in reports if group == "training"]
    assert reports[-1][1] == 13 and rates[0] == 0.01 > rates[-1]
    assert_same_state(newest_checkpoint(tmp_path / "warm"), newest_checkpoint(tmp_path / "fresh"))


@pytest.mark.parametrize(
    ("new_tag", "steps_completed", "told"),
    [
        (None, 5, "Missing key"), (None, 0, "Missing key"), ('"O"', 5, "size mismatch"),
        (r'"\1-ANY"', 0, "its labels are"),
    ],
)  # fmt: skip
def test_the_checkpoint_of_another_model_is_refused(
    config: Config, tmp_path: Path, tiny_model: Path, new_tag: str | None, steps_completed: int, told: str
) -> None:
    config["searcher"]["max_length"] = {"batches": 5}
    run_on_stand_in(config, tmp_path)
    if new_tag is None:
        config["hyperparameters"]["pretrained_model_name_or_path"] = str(tiny_model)
    else:
        for split in ("train", "validation"):
            file = tmp_path / f"{split}.json"
            file.write_text(re.sub('"([BI])-MISC"', new_tag, (SAMPLE_DATA / file.name).read_text()))
            config["data"][f"{split}_file"] = str(file)
    with pytest.raises(TrialError, match=f"^The checkpoint is of another model: .*{told}"):
        run_on_stand_in(config, tmp_path, newest_checkpoint(tmp_path), steps_completed)


@pytest.fixture
def safely(monkeypatch: Patch) -> None:
    """Let torch read nothing but plain data and what was allowed by name, whatever it is asked for."""
    if hasattr(torch.serialization, "add_safe_globals"):  # torch 2.3 can allow nothing, and reads all
        monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")


def assert_loads_alone(checkpoint: Path, folder: Path, monkeypatch: Patch) -> None:
    """Determined's loader gives the trial with these weights where neither data nor model are in reach."""
    monkeypatch.chdir(folder)  # the configuration's paths are relative
    load: Any = pytorch.load_trial_from_checkpoint_path
    trial = load(str(checkpoint), trial_class=NERTrial, torch_load_kwargs={"map_location": "cpu"})
    (weights,) = load_state(checkpoint)["models_state_dict"]
    torch.testing.assert_close(dict(trial.model.state_dict()), dict(weights), rtol=0, atol=0)
    labels = json.loads((FIXTURES / "model" / "config.json").read_text())["id2label"]
    assert trial.label_list == list(labels.values()) and trial.tagger_settings.label_scheme == "IOB2"


@pytest.mark.usefixtures("config", "safely")
@pytest.mark.parametrize("stack", STACKS)
def test_what_either_stack_saved_goes_on_and_loads(tmp_path: Path, monkeypatch: Patch, stack: str) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # which train.py sets, to be set back
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    shutil.copytree(FIXTURES / stack, cut / "checkpoints" / "determined" / "fixture")
    for folder, options in ((whole, ()), (cut, ("--resume", "auto"))):
        run_module.run(NERTrial, [str(FIXTURES / "config.yaml"), "--output-dir", str(folder), *options])
    # Equal bit for bit where the checkpoint was made with this torch, on this kind of CPU. Gradients of an accumulation
    # that were not made anew, or a new optimizer, would show in the third digit.
    for group, names in {"training": ("learning_rate", "loss"), "validation": ("validation_loss",)}.items():
        lines, expected = read_metrics(cut, group), read_metrics(whole, group)[1:]
        assert [line["batches"] for line in lines] == [10, 13]
        for name in names:
            assert [line[name] for line in lines] == pytest.approx([line[name] for line in expected], rel=1e-3)
    made_with = json.loads((FIXTURES / stack / "metadata.json").read_text())["framework"]
    if made_with.split("+")[0] == f"torch-{torch.__version__}".split("+")[0]:  # others draw other dropout
        weights, expected_weights = (load_state(checkpoints_of(run)[-1])["models_state_dict"] for run in (cut, whole))
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-3)
    assert_loads_alone(FIXTURES / stack, tmp_path, monkeypatch)


@pytest.mark.usefixtures("safely")
def test_two_slots_save_no_secret_and_it_loads(config: Config, tmp_path: Path, monkeypatch: Patch) -> None:
    config["data"]["test_file"] = config["data"]["validation_file"]
    config["environment"] = {
        "environment_variables": ["HF_TOKEN=planted-token-1"], "registry_auth": {"password": "planted-token-2"},
    }  # fmt: skip
    config["checkpoint_storage"] = {"type": "s3", "secret_key": "planted-token-3", "access_key": "planted-token-4"}
    config["entrypoint"] = "env WANDB_API_KEY=planted-token-5 python3 train.py"
    folder = train_to_end(config, tmp_path / "two", 2, "--batches", "2")
    written = [path for path in folder.rglob("*") if path.is_file() and path.name != "config.yaml"]
    assert len(written) > 40
    assert not [path for path in written if b"planted-token" in path.read_bytes()]
    (checkpoint,) = checkpoints_of(folder / "run")
    assert_loads_alone(checkpoint, tmp_path, monkeypatch)
