"""What the machine refuses, names that no path has, and models that were edited: a sentence and exit status 1."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from resource import RLIMIT_FSIZE, RLIMIT_NOFILE, setrlimit
from typing import Any

import pytest
import transformers
from conftest import PROJECT, SAMPLE_DATA, Capture, Config, Patch, write_config, write_lines
from test_bad_inputs import become_another_user
from test_fuzz import run_case
from training_process import CONTEXT, run_python

import predict
from ner_trial import NERTrial
from transformer_trial import local

Refused = Callable[..., str]
VALIDATION = str(SAMPLE_DATA / "validation.json")


@pytest.fixture(scope="module")
def export(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a head for the sample's tags, not trained."""
    folder = tmp_path_factory.mktemp("export") / "model"
    shutil.copytree(tiny_model, folder)
    labels = ["O", *(f"{prefix}-{name}" for prefix in "BI" for name in ("PER", "LOC", "ORG", "MISC"))]
    config = transformers.AutoConfig.from_pretrained(folder, id2label=dict(enumerate(labels)))
    transformers.AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def refused(config: Config, export: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> Refused:
    """Run a program, with options in place of the usual ones; returns the sentence that it ends with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # what the run sets is undone

    def refused(program: str, option: str, value: str) -> str:
        usual = {"--model": str(export), "--input": VALIDATION, "--output": str(tmp_path / "o.jsonl")}
        arguments = [text for pair in (usual | {option: value}).items() for text in pair]
        if program == "train":
            if option == "--output-dir":
                arguments = [write_config(config, tmp_path)[0], option, value]
            else:
                section, key = option.split(".")
                arguments = write_config({**config, section: config[section] | {key: value}}, tmp_path)
        with pytest.raises(SystemExit) as stopped:
            predict.main(arguments) if program == "predict" else local.run(NERTrial, arguments)
        said = capsys.readouterr().err
        assert stopped.value.code == 1 and "Traceback" not in said and "Tokenizing" not in said
        assert not (tmp_path / "run").exists() and not (tmp_path / "o.jsonl").exists()
        return said.splitlines()[-1]

    return refused


PATHS = [
    ("file", "file"), ("file/sub", "Not a directory"), ("loop", "loop"), ("a" * 300, "File name too long"),
    ("~nouser/x", "leads nowhere"), ("a\0*", "zero byte|leads nowhere"), ("\ud83d", "half of a char|leads nowhere"),
    ("e\x1b[31m\0", "e\\x1b[31m\\x00"),
]  # fmt: skip
WHERE = [("train", "--output-dir"), ("train", "data.cache_dir"), ("predict", "--output"), ("predict", "--model")]


@pytest.mark.parametrize(("program", "option"), WHERE)
@pytest.mark.parametrize(("name", "said"), PATHS)
def test_a_path_is_refused(program: str, option: str, name: str, said: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "loop").symlink_to("loop")
    before = {path.name for path in [*PROJECT.iterdir(), *tmp_path.iterdir()]}
    path = name if name.startswith("~") else str(tmp_path / name)
    if (program, option, name) == ("predict", "--output", "file"):
        path = str(tmp_path)
    told = refused(program, option, path)
    if option == "--model":
        said = "there is no such folder|cannot load"
    elif path == str(tmp_path):
        said = "Is a directory"
    assert any(text in told for text in said.split("|")), told
    assert told.isprintable() and (tmp_path / "file").read_text() == "precious"
    made = {path.name for path in [*PROJECT.iterdir(), *tmp_path.iterdir()]} - before
    assert not {name for name in made if "nouser" in name}


no_more_files = partial(setrlimit, RLIMIT_NOFILE, (3, 3))


def close_output() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


@pytest.mark.parametrize(
    ("program", "change", "place", "said"),
    [
        ("train", no_more_files, "run", "Too many open files"),
        ("predict", no_more_files, "o", "Too many open files"),
        ("train", partial(setrlimit, RLIMIT_FSIZE, (3000, 3000)), "run", "Cannot write: [Errno 27] File too"),
        ("predict", close_output, "o", "cannot write the scores: No space left"),
        ("train", become_another_user, "closed/run", "Cannot write: [Errno 13] Permission denied"),
        ("predict", become_another_user, "closed/o", "Permission denied"),
    ],
)
def test_what_machines_refuse(program: str, change: Any, place: str, said: str, config: Config, export: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "closed").mkdir(mode=0o700)
        for path in (model := shutil.copytree(export, folder / "model"), *model.iterdir()):
            path.chmod(0o755)
        config["data"]["cache_dir"] = str(folder / "cache")
        arguments = [write_config(config, folder)[0], "--output-dir", str(folder / place)]
        if program == "predict":
            arguments = ["--model", str(folder / "model"), "--input", VALIDATION, "--output", str(folder / place)]
        process = CONTEXT.Process(target=run_case, args=(program, arguments, folder / "log", folder, change))
        process.start()
        process.join(120)
        log = (folder / "log").read_text()
    assert process.exitcode == 1 and "Traceback" not in log, log
    assert said in log.splitlines()[-1], log


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_attention_heads": 3}, "multiple of the number of attention heads"),
        ({"num_attention_heads": -2}, "cannot read a word: invalid shape"), ({"num_attention_heads": "x"}, "_heads"),
        ({"return_dict": False}, "The model cannot read a word"), ({"num_hidden_layers": 10**20}, "_layers: 1e+20"),
        ({"hidden_size": 48}, ""), ({"hidden_size": -1}, ""), ({"vocab_size": 10**15}, ""), ({"vocab_size": None}, ""),
        ({"vocab_size": 10}, "it has 900 entries, but the model knows 10|ignore_mismatched_sizes"),
        ({"model_type": None}, "model type `None`"), ({"hidden_act": "nothing"}, "nothing"),
        ({"hidden_dropout_prob": 5}, "between 0 and 1"), ({"pad_token_id": 10**6}, "Padding_idx"),
        ("tokenizer.json", ""), ("model.safetensors", ""), ("larger", "it has 2001 entries, but the model knows 900"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("program", "option"), [("train", "hyperparameters.pretrained_model_name_or_path"), ("predict", "--model")]
)
def test_a_model_that_was_edited_is_refused_before_it_works(
    program: str, option: str, change: Any, said: str, refused: Refused, export: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(export, tmp_path / "model")
    if isinstance(change, dict):
        found = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(found | change))
    elif change == "larger":
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"]["another"] = 2000
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    else:
        (folder / change).write_bytes((folder / change).read_bytes()[:-100])
    told = refused(program, option, str(folder))
    assert any(text in told for text in said.split("|")), told
    assert told.startswith(("hyperparameters.", "--model: cannot load", "The model cannot read a word"))


RUN = """
import sys
from ner_trial import NERTrial
from transformer_trial.local import run
import predict
config, data, folder = sys.argv[1:]
run(NERTrial, [config, "--inspect"])
run(NERTrial, [config, "--output-dir", folder + "/run"])
for name in (folder + "/o.jsonl", folder + "/o.conll", "-"):
    predict.main(["--model", folder + "/run/model", "--input", data, "--output", name])
"""


def test_output_that_takes_ascii_alone_gets_it(config: Config, tmp_path: Path) -> None:
    row = {"tokens": ["Зоя", "in", "Łódź", "😀"], "ner_tags": ["B-人名", "O", "B-LÖC", "O"], "document_id": "ä"}
    file = write_lines([row] * 8, tmp_path / "a.jsonl")
    files = {f"{split}_file": file for split in ("train", "validation", "test")}
    config |= {"name": "Näme 😀", "data": config["data"] | files | {"return_entity_level_metrics": True}}
    config["searcher"]["max_length"] = {"batches": 1}
    plain: Any = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"}
    shown, errors = run_python("-c", RUN, write_config(config, tmp_path)[0], file, tmp_path, **plain)
    assert "Traceback" not in errors and "Logging error" not in errors
    assert errors.isascii() and "L\\xd6C" in shown  # the scores; tagged rows are UTF-8
    assert "Łódź" in (tmp_path / "o.conll").read_text(encoding="utf-8")
    assert "人名" in (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
