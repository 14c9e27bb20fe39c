"""No file and no setting runs code that nobody asked for, and no secret is repeated: seen from real runs in a copy."""

import ast
import dataclasses
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from conftest import PROJECT, save_tiny_model
from test_config import FIELDS
from test_house import MODULES
from training_process import run_python

PICKLERS = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal")
BANNED = [
    "builtins", "code", "runpy", "shelve", "jsonpickle", "importlib.import_module", "pty.spawn", "subprocess.getoutput",
    "subprocess.getstatusoutput", "pandas.read_pickle", "pandas.eval", "torch.hub", "torch.jit.load", "torch.load",
    *(f"os.{name}" for name in dir(os) if re.match("system|popen|exec|spawn|posix_spawn", name)),
    *(f"yaml.{name}" for name in dir(yaml) if re.match("(full_|unsafe_)?load|(Full|Unsafe)?Loader", name)),
    *(f"{module}.{name}" for module in PICKLERS for name in ("load", "loads", "Unpickler")),
]  # fmt: skip
"""What runs texts as programs, and what runs whatever a file says."""
BUILTINS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}


def find_forbidden(folder: Path) -> list[tuple[str, str]]:
    """The modules in a folder that could run what they read, each with the name or argument that allows it."""
    banned = ", ".join(f'"{name}" = {{msg = ""}}' for name in BANNED)
    options = ("--select=TID251", "--output-format=json", f"--config=lint.flake8-tidy-imports.banned-api={{{banned}}}")
    found = json.loads(run_python("-m", "ruff", "check", "--isolated", "--exit-zero", *options, folder)[0])
    names = [(Path(each["filename"]).name, each["message"].split("`")[1]) for each in found]
    for file in folder.iterdir():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and node.id in BUILTINS:
                names.append((file.name, node.id))
            elif isinstance(node, ast.keyword):
                argument = ast.unparse(node)
                if argument == "trust_remote_code=True" or re.match("(shell|allow_pickle)=(?!False$)", argument):
                    names.append((file.name, argument))
    return sorted(names)


def test_the_code_runs_nothing_that_it_reads(tmp_path: Path) -> None:
    scripts = [file.relative_to(PROJECT) for name in ("figures", "sample") for file in (PROJECT / name).glob("*.py")]
    for file in [*MODULES, *scripts]:
        shutil.copy(PROJECT / file, tmp_path / ".".join(file.parts))
    hook = (PROJECT / "startup-hook.sh").read_text().partition("<<'PYTHON'\n")[2].rpartition("PYTHON")[0]
    (tmp_path / "hook.py").write_text(hook)
    assert len(MODULES) > 20 and "subprocess.run" in hook
    # It finds no class: test_resume.py has it read a pickle with code.
    assert find_forbidden(tmp_path) == [("transformer_trial.checkpoints.py", "pickle.Unpickler")]


def test_what_could_run_code_is_found(tmp_path: Path) -> None:
    bad = {
        "eval": "eval(text)", "exec": "run = exec", "os.system": "from os import system as quietly",
        "os.popen": "import os as o\nf = o.popen", "pickle.loads": "import pickle\npickle.loads(data)",
        "yaml.load": "import yaml\nyaml.load(text, Loader)", "torch.load": "import torch\ntorch.load(file)",
        **{text: f"run({text})" for text in ("shell=loud", "allow_pickle=True", "trust_remote_code=True")},
    }  # fmt: skip
    good = "model.eval()\nre.compile(x)\nimport pickle\npickle.UnpicklingError\nload(shell=False, trust_remote_code=x)"
    for i, code in enumerate([*bad.values(), good]):
        (tmp_path / f"{i}.py").write_text(code)
    assert find_forbidden(tmp_path) == [(f"{i}.py", name) for i, name in enumerate(bad)]


# Runs the cases of a json file, and writes for each of them its exit status, what it said and what it planted.
RUN_CASES = """
import contextlib, io, json, os, sys, traceback
sys.path.insert(0, os.getcwd())
import predict
from ner_trial import NERTrial
from transformer_trial.local import run
results = {}
for case, (program, *arguments) in json.load(open("cases.json")).items():
    said, status = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            predict.main(arguments) if program == "predict.py" else run(NERTrial, arguments)
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            status = "a traceback"
            traceback.print_exc()
    planted = [name for name in ("PWNED", "IMPORTED") if os.path.exists(name)]
    for name in planted:
        os.remove(name)
    results[case] = [status, said.getvalue(), planted]
json.dump(results, open("results.json", "w"))
"""
YAML = "sample/ner_config.yaml"
TOKEN = "hf_" + "PlantedByATest" * 2
SHELL, QUOTED, PYTHON = "$(touch PWNED)", "'; touch PWNED #", "__import__('os').system('touch PWNED')"
PICKLES = ("a pickle with code", "a pickle with code as before torch 1.6", "a pickle that is nothing but code")
NO_FILES = {"data.train_file": None, "data.validation_file": None, "data.test_file": None}
TRUSTED = {"hyperparameters.trust_remote_code": True}
PLANTED = """
import pathlib
import transformers
pathlib.Path('IMPORTED').touch()
class PlantedConfig(transformers.BertConfig):
    model_type = 'planted'
class PlantedModel(transformers.BertForTokenClassification):
    config_class = PlantedConfig
"""
MODEL = "_name (or pretrained_model_name_or_path): cannot load"


class RunsACommand:
    """Unpickled by an ordinary unpickler, it leaves a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch PWNED",)


@dataclasses.dataclass
class Outcome:
    """What a run came to."""

    status: Any
    said: str
    planted: list[str]

    def refused(self, *said: str) -> None:
        """Assert that the run ended in one message, which says this, and did nothing else."""
        assert (self.status, self.planted) == (1, []), self.said
        assert "Traceback" not in self.said and 'File "' not in self.said
        assert [text for text in said if text not in self.said] == [], self.said


def run_cases(project: Path, cases: dict[str, Any], *, preexec_fn: Any = None, **env: str) -> dict[str, Outcome]:
    """Run these command lines in a copy of the project, one after the other in one process."""
    (project / "cases.json").write_text(json.dumps(cases))
    result = subprocess.run(
        [sys.executable, "-c", RUN_CASES], cwd=project, env={**os.environ, **env}, preexec_fn=preexec_fn,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert TOKEN not in result.stdout + result.stderr
    results = json.loads((project / "results.json").read_text())
    assert results.keys() == cases.keys() and TOKEN not in str(results)
    return {case: Outcome(*values) for case, values in results.items()}


def override(settings: dict[str, Any]) -> list[str]:
    """Arguments that set these keys; a value with a tag of YAML's stays as it is."""
    values = {k: v if str(v).startswith("!!") else json.dumps(v) for k, v in settings.items()}
    return [argument for key, value in values.items() for argument in ("--config", f"{key}={value}")]


def inspect(settings: dict[str, Any]) -> list[str]:
    return ["train.py", YAML, "--test", *override(settings)]


def planted_cases() -> Iterator[tuple[str, list[str]]]:
    """For every key that takes a text, or several, and every planted text, the command line that plants it."""
    hints = {f"{section}.{key}": str(f.annotation) for section, fields in FIELDS.items() for key, f in fields.items()}
    for planted in (SHELL, QUOTED, PYTHON):
        for key, hint in hints.items():
            several = {"list": [planted], "dict": {"num_cycles": planted}}
            value = next((value for kind, value in several.items() if kind in hint), planted)
            others = {**NO_FILES, "data.dataset_name": "sample/data"} if "dataset" in key else {}
            if re.search("str|Literal", hint):
                yield f"{key}: {planted}", inspect({**others, key: value})


def make_model(folder: Path, kind: str) -> str:
    """A model's folder of this kind, and its path; nothing in it is as safe as it should be."""
    save_tiny_model(folder, num_hidden_layers=1)
    (folder / "model.safetensors").unlink()
    if kind == "code":
        names = {"AutoConfig": "planted.PlantedConfig", "AutoModelForTokenClassification": "planted.PlantedModel"}
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "planted", "auto_map": names}))
        (folder / "planted.py").write_text(PLANTED)
        return str(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    weights: dict[str, Any] = transformers.BertForTokenClassification(config).state_dict()
    file = folder / "pytorch_model.bin"
    if kind == PICKLES[2]:
        file.write_bytes(pickle.dumps(RunsACommand(), protocol=2))
    else:
        weights |= {"code": RunsACommand()} if kind in PICKLES else {}
        torch.save(weights, file, _use_new_zipfile_serialization=kind != PICKLES[1])
    return str(folder)


def copy_project(folder: Path) -> Path:
    """Copy what a training needs of the project, and return the folder."""
    folder.mkdir(exist_ok=True)
    for file in [*PROJECT.glob("*.py"), PROJECT / ".detignore"]:
        shutil.copy(file, folder)
    for name in ("ner", "transformer_trial", "sample"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def outcomes(project: Path) -> dict[str, Outcome]:
    """What became of every case, by its name."""
    cases = dict(planted_cases())
    model = "hyperparameters.pretrained_model_name_or_path"
    command = '!!python/object/apply:os.system ["touch PWNED"]'
    unsafe = (project / YAML).read_text().replace("finetuning_task: ner", f"finetuning_task: {command}")
    (project / "tag.yaml").write_text(unsafe)
    cases["a tag in the yaml"] = ["train.py", "tag.yaml", "--test"]
    cases["a tag in --config"] = inspect({"hyperparameters.finetuning_task": command})
    # Everything that a file, a folder or a run can be called, of things that work.
    row = {SHELL: ["Ada", "{{7*7}}", "$(touch PWNED)"], QUOTED: ["B-PER", "O", f"B-{SHELL}"]}
    for name in (SHELL, QUOTED):
        (project / f"{name}.json").write_text(json.dumps(row) + "\n")
    names = {
        "name": SHELL, "data.train_file": f"{SHELL}.json", "data.validation_file": f"{QUOTED}.json",
        "data.test_file": None, "data.text_column_name": SHELL, "data.label_column_name": QUOTED,
        "data.cache_dir": f"{QUOTED} cache", "hyperparameters.cache_dir": f"{SHELL} hub",
        "hyperparameters.finetuning_task": PYTHON,
    }  # fmt: skip
    cases["names"] = ["train.py", YAML, "--test", "--output-dir", "outputs/names", *override(names)]
    (project / "cell.csv").write_text(f'tokens,ner_tags\n"[{PYTHON}]",O\n')
    cases["a cell"] = inspect({**NO_FILES, "data.train_file": "cell.csv"})
    code = make_model(project / "code", "code")
    cases |= {"code": inspect({model: code}), "trusted code": inspect({model: code, **TRUSTED})}
    for kind in ("a pickle", *PICKLES):
        folder = make_model(project / kind, kind)
        cases[kind] = inspect({model: folder, "hyperparameters.use_pretrained_weights": True})
    predict = ["predict.py", "--input", "sample/data/test.json", "--output", "tags.jsonl", "--model"]
    cases |= {f"predict.py, {kind}": [*predict, kind] for kind in ("code", *PICKLES)}
    script = b"import pathlib\npathlib.Path('IMPORTED').touch()\n"
    for name, content in (("script.py", script), ("train.pkl", pickle.dumps(RunsACommand()))):
        (project / f"data {name}").mkdir()
        (project / f"data {name}" / name).write_bytes(content)
        settings = {**NO_FILES, "data.dataset_name": str(project / f"data {name}"), **TRUSTED}
        cases[f"a data set that is {name}"] = inspect(settings)
    return run_cases(project, cases | token_cases(project), HF_TOKEN=TOKEN)


def token_cases(project: Path) -> dict[str, list[str]]:
    """Where people leave tokens: accepted where Determined has keys for them, refused elsewhere."""
    config = yaml.safe_load((project / YAML).read_text())
    config["environment"] = {
        "environment_variables": [f"HF_TOKEN={TOKEN}", {"cpu": [f"WANDB_API_KEY={TOKEN}"]}],
        "registry_auth": {"username": "me", "password": TOKEN},
    }
    config["checkpoint_storage"] = {"type": "s3", "bucket": "b", "access_key": TOKEN, "secret_key": TOKEN}
    (project / "tokens.yaml").write_text(yaml.safe_dump(config))
    (project / "broken.yaml").write_text(f"hyperparameters:\n  hf_token: '{TOKEN}\n")
    (project / "twice.yaml").write_text(f"password: {TOKEN}\npassword: {TOKEN}2\n")
    (project / "colon.yaml").write_text(f"environment:\n  registry_auth: password: {TOKEN}\n")
    return {
        "accepted tokens": ["train.py", "tokens.yaml", "--test", "--output-dir", "outputs/tokens"],
        "broken.yaml": ["train.py", "broken.yaml", "--test"], "colon.yaml": ["train.py", "colon.yaml", "--test"],
        "twice.yaml": ["train.py", "twice.yaml", "--test"],
        "use_auth_token": ["train.py", YAML, "--test", "--config", f"hyperparameters.use_auth_token={TOKEN}"],
        "--config": ["train.py", YAML, "--test", "--config", f"hyperparameters.use_auth_token: {TOKEN}"],
    }  # fmt: skip


def test_no_planted_text_is_run_or_ends_in_a_traceback(outcomes: dict[str, Outcome]) -> None:
    accepted = {
        "data.cache_dir", "data.dataset_revision", "hyperparameters.cache_dir", "hyperparameters.finetuning_task",
        "hyperparameters.model_name", "hyperparameters.revision",
    }  # fmt: skip
    cases = [case for case, _ in planted_cases()]
    assert len(cases) > 70
    for case in cases:
        outcome, key = outcomes[case], case.partition(":")[0]
        if key in accepted:  # of a local folder, and without weights: nothing is looked up
            assert (outcome.status, outcome.planted) == (0, []), (case, outcome.said)
        else:
            outcome.refused(key.rpartition(".")[2].replace("dataset_config_name", "dataset_name"))


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("a tag in the yaml", ["tag.yaml: not readable as yaml: could not determine a constructor"]),
        ("a tag in --config", ["--config: could not determine a constructor"]),
        ("a cell", ["cell.csv, line 2: the words are"]),
        ("code", [f"config{MODEL}", "Python code of its own, none of", "trust_remote_code: true", "revision"]),
        *((kind, [f"model{MODEL}", "a pickle (pytorch_model.bin)", "Accepted are safetensors"]) for kind in PICKLES),
        ("predict.py, code", ["--model: cannot load", "Python code of its own, none of", "give --trust-remote-code"]),
        *((f"predict.py, {kind}", ["--model: cannot load", "Accepted are safetensors"]) for kind in PICKLES),
        *((f"a data set that is {name}", ["data.dataset_name: "]) for name in ("script.py", "train.pkl")),
        *((case, [case]) for case in ("broken.yaml", "colon.yaml", "twice.yaml", "--config")),
        ("use_auth_token", ["a value that is not repeated here"]),
    ],
)
def test_what_runs_code_or_tells_a_token_is_refused(case: str, said: list[str], outcomes: dict[str, Outcome]) -> None:
    outcomes[case].refused(*said)
    assert not re.search("trust_remote_code=True|weights_only", outcomes[case].said), "a library's advice to run it"


def test_names_of_files_and_columns_and_cells_are_texts(outcomes: dict[str, Outcome], project: Path) -> None:
    outcome = outcomes["names"]
    assert (outcome.status, outcome.planted) == (0, []), outcome.said
    card = (project / "outputs" / "names" / "model" / "README.md").read_text()
    assert "$(touch PWNED)" in card
    assert (project / f"{QUOTED} cache").is_dir()


def test_code_of_a_model_runs_only_if_the_yaml_says_so(outcomes: dict[str, Outcome]) -> None:
    trusted = outcomes["trusted code"]
    assert (trusted.status, trusted.planted) == (0, ["IMPORTED"]), trusted.said
    assert "trust_remote_code: true runs Python code from the model's folder or hub repository" in trusted.said
    assert [case for case, outcome in outcomes.items() if "runs Python code from" in outcome.said] == ["trusted code"]


def test_pickled_weights_load_if_harmless(outcomes: dict[str, Outcome]) -> None:
    harmless = outcomes["a pickle"]
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6):
        assert (harmless.status, harmless.planted) == (0, []), harmless.said
    else:
        harmless.refused(f"which torch {torch.__version__} cannot read", "is 2.6 or later", "save_pretrained")


def test_a_run_repeats_no_token(outcomes: dict[str, Outcome], project: Path) -> None:
    outcome = outcomes["accepted tokens"]
    assert outcome.status == 0, outcome.said
    assert "tokens.yaml holds what looks like a secret" in outcome.said
    folder = project / "outputs" / "tokens"
    # What Determined keeps of the configuration in a checkpoint has tests of its own.
    files = [path for path in folder.rglob("*") if path.is_file() and "checkpoints" not in path.parts]
    assert {"README.md", "config.json", "metrics.jsonl", "report.html", "data.json"} <= {path.name for path in files}
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
