"""A task's container, as far as it can be had without one: its start, folders that are not writable, a shared cache."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import SAMPLE_DATA, SAMPLE_MODEL, Config, Patch
from test_client import StandInMaster
from test_client import project as project  # fixtures
from test_client import sample as sample
from test_client import tracked as tracked
from test_security import TOKEN, YAML, copy_project, run_cases
from test_startup_hook import write_as_an_ordinary_user
from training_process import Run, Training, wait_for_all
from training_process import run as run  # a fixture

import ner.data
import ner_utils


@pytest.fixture
def read_only(tmp_path: Path) -> Path:
    """A folder that an ordinary user may not write to."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    folder.chmod(0o555)
    probe = ["sh", "-c", "touch probe"]
    result = subprocess.run(probe, cwd=folder, preexec_fn=write_as_an_ordinary_user, capture_output=True)
    assert result.returncode != 0, "it is writable all the same"
    return folder


# As Determined's entrypoint does: what it sources ends up in the shell that then becomes the trial.
ENTRYPOINT = """
set -ex
test -f startup-hook.sh && source startup-hook.sh
set +x
exec "$DET_PYTHON_EXECUTABLE" train.py sample/ner_config.yaml --test --output-dir ../run
"""


@pytest.mark.slow
def test_what_is_uploaded_sources_the_hook_and_trains(sample: StandInMaster, tmp_path: Path, read_only: Path) -> None:
    folder = tmp_path / "workdir"
    for name, content in sample.upload().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    env = {
        "PATH": os.environ["PATH"], "DET_PYTHON_EXECUTABLE": sys.executable, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "HF_HOME": str(folder / "hf"),
        "HOME": str(read_only),
    }  # fmt: skip
    options: Any = {"preexec_fn": write_as_an_ordinary_user, "capture_output": True, "text": True, "timeout": 120}
    result = subprocess.run(["bash", "-c", ENTRYPOINT], cwd=folder, env=env, **options)
    assert result.returncode == 0, result.stderr
    trace = ["+ test -f startup-hook.sh", "+ source startup-hook.sh", f"++ {sys.executable} -", "+ set +x"]
    assert result.stderr.splitlines()[:4] == trace
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert TOKEN not in result.stdout + result.stderr


@pytest.mark.slow
def test_folders_that_are_not_writable_are_named_or_do_without(tmp_path: Path, read_only: Path) -> None:
    project = copy_project(tmp_path / "project")
    own_cache = ["--config", f"data.cache_dir={tmp_path / 'cache'}"]
    cases = {
        "the default cache": ["train.py", YAML, "--test", "--output-dir", str(tmp_path / "run")],
        "data.cache_dir": ["train.py", YAML, "--inspect", "--config", f"data.cache_dir={read_only / 'cache'}"],
        "neither": [
            "train.py", YAML, "--test", "--output-dir", str(tmp_path / "run"), *own_cache,
            "--config", f"hyperparameters.cache_dir={read_only / 'hub'}",
        ],
    }  # fmt: skip
    home = str(read_only)
    env = {"HOME": home, "HF_HOME": home, "HF_DATASETS_CACHE": f"{home}/datasets"}
    outcomes = run_cases(project, cases, preexec_fn=write_as_an_ordinary_user, **env)
    outcomes["the default cache"].refused(f"'{home}/datasets'", "Permission denied")
    outcomes["data.cache_dir"].refused(f"'{home}/cache", "Permission denied")
    assert outcomes["neither"].status == 0, outcomes["neither"].said
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_two_containers_share_a_cache(tmp_path: Path) -> None:
    env, weights = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}, set[bytes]()
    for options in ([], ["--config", "data.overwrite_cache=true"]):
        arguments = [YAML, "--test", "--config", "checkpoint_policy=none", *options, "--output-dir"]
        folders = [tmp_path / f"{name}{len(options)}" for name in "ab"]
        runs = [Training([*arguments, str(folder)], tmp_path / f"{folder.name}.log", env=env) for folder in folders]
        assert wait_for_all(runs) == [0, 0], runs[0].log.read_text() + runs[1].log.read_text()
        weights |= {(folder / "model" / "model.safetensors").read_bytes() for folder in folders}
    assert len(weights) == 1


def read_and_tokenize(config: ner.config.NERDataConfig) -> list[list[int]]:
    """The sub-tokens that a training gets to see."""
    rows, label_names = ner.data.read_splits(ner.data.load_splits(config), config, "ner")
    metadata = ner_utils.get_dataset_metadata(rows, label_names, None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(SAMPLE_MODEL)
    labels, anew = metadata.label_list, config.overwrite_cache
    tokenized = ner_utils.build_tokenized_datasets(rows, tokenizer, labels, 64, 16, overwrite_cache=anew)
    return [list(ids) for ids in tokenized["train"]["input_ids"]]


def data_config(folder: Path, **options: Any) -> ner.config.NERDataConfig:
    options = {"train_file": str(SAMPLE_DATA / "train.json"), "cache_dir": str(folder / "cache"), **options}
    return ner.config.NERDataConfig(**options)


def test_who_reads_anew_leaves_alone_who_tokenizes(tmp_path: Path, monkeypatch: Patch) -> None:
    file = tmp_path / "train.json"
    file.write_text((SAMPLE_DATA / "train.json").read_text() * 2)  # two batches of 1,000
    expected = read_and_tokenize(data_config(tmp_path / "alone", train_file=str(file)))
    tokenize, calls = ner_utils.tokenize_and_align_labels, []

    def tokenize_while_another_reads(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # the first batch is written
            anew = data_config(tmp_path, train_file=str(file), overwrite_cache=True)
            ner.data.read_splits(ner.data.load_splits(anew), anew, "ner")
        return tokenize(*arguments, **options)

    monkeypatch.setattr(ner_utils, "tokenize_and_align_labels", tokenize_while_another_reads)
    assert read_and_tokenize(data_config(tmp_path, train_file=str(file))) == expected
    assert len(calls) == 2


@pytest.mark.slow
def test_what_killed_processes_leave_is_no_obstacle(config: Config, run: Run, tmp_path: Path) -> None:
    file, cache = tmp_path / "train.json", tmp_path / "cache"
    file.write_text((SAMPLE_DATA / "train.json").read_text() * 3)  # several batches of 1,000
    config["data"] |= {"train_file": str(file), "cache_dir": str(cache)}
    for signals in ([("reading", 2501, signal.SIGKILL)], [("tokenizing", 3, signal.SIGKILL)]):
        run("run", "--test", signals=signals, status=-signal.SIGKILL)
    names = [path.name for path in cache.rglob("*")]
    assert any(name.endswith(".lock") for name in names) and any(name.startswith("tmp") for name in names)
    assert "Training on 3000 rows" in run("run", "--test")


@pytest.mark.parametrize("part", ["generator-train.arrow", "cache-*.arrow", "dataset_info.json"])
def test_overwrite_cache_repairs_a_damaged_one(tmp_path: Path, part: str) -> None:
    """As a machine that went down leaves it: a file of the right name, and half of what was in it."""
    expected = read_and_tokenize(data_config(tmp_path))
    (file,) = tmp_path.rglob(part)
    content = file.read_bytes()
    file.unlink()  # the old one is still mapped into memory
    file.write_bytes(content[: len(content) // 2])
    assert read_and_tokenize(data_config(tmp_path, overwrite_cache=True)) == expected
    assert read_and_tokenize(data_config(tmp_path)) == expected
