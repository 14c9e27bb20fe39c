"""What the command line of `train.py` says: its arguments, the configuration with its overrides, and the folders."""

import datetime
import glob
import itertools
import json
import logging
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from transformer_trial import private
from transformer_trial.errors import MAX_VALUES, ConfigError, TrialError, count_values
from transformer_trial.experiment import SearcherConfig, check_keys
from transformer_trial.files import resolve
from transformer_trial.parsing import read_known

logger = logging.getLogger(__name__)

MARK = ".training"  # the file that says that an output folder is one, which is locked during a training
OUTPUTS = ("model", "model.new", "model.replaced", "report", "test", "metrics.jsonl", "checkpoints")
MAX_DEPTH = 50
YAML_ENDINGS = (".yaml", ".yml")

SPLITS = {"train": "train", "validation": "valid|validation|val|dev", "test": "test"}
"""The splits, and what names of their files hold."""

PATH_KEYS = {
    "data": ("train_file", "validation_file", "test_file", "dataset_name"),
    "hyperparameters": ("pretrained_model_name_or_path", "config_name", "tokenizer_name", "model_name"),
}


def parse_arguments(arguments: Sequence[str] | None) -> Namespace:
    what = "Train a trial without a cluster, under torchrun, or as the entrypoint of an experiment."
    parser = ArgumentParser(description=what)
    what = "default: ner_config.yaml; for a data file or a folder of them, what to write into one"
    parser.add_argument("config_file", nargs="?", metavar="CONFIG.yaml", help=what)
    for split in SPLITS:
        what = f"a data file of the {split} split, to be told what to write into a yaml, or for --inspect"
        parser.add_argument(f"--{split}-file", metavar="FILE", help=what)
    what = "override one key, such as hyperparameters.learning_rate=1e-4, as `det` does; repeat --config for each key"
    parser.add_argument("--config", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help=what)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, metavar="N", help="train for N epochs, whatever the searcher says")
    length.add_argument("--batches", type=int, metavar="N", help="train for N batches, whatever the searcher says")
    what = "folder for model/, metrics.jsonl and checkpoints/ (default: outputs/, then experiment's name and time)"
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help=what)
    what = "go on from this folder, or with `auto` from the newest checkpoint in --output-dir"
    parser.add_argument("--resume", metavar="CHECKPOINT", help=what)
    parser.add_argument("--test", action="store_true", help="train and validate one batch of each, to see that it runs")
    parser.add_argument("--inspect", action="store_true", help="show what the data holds, and stop before training")
    return parser.parse_args(arguments)


def read_config(options: Namespace) -> dict[str, Any]:
    """The yaml with its overrides, read by the functions that `det` reads it with.

    Files of data in place of a yaml are a TrialError that says what a yaml needs, unless they are only to be inspected.
    """
    path = Path(options.config_file or "ner_config.yaml")
    options.data = files = find_data(options)
    if files:
        data: dict[str, Any] = {"dataset_name": None, **{key: os.path.abspath(file) for key, file in files.items()}}
        if options.config_file is None or path.suffix not in YAML_ENDINGS:
            path = Path(__file__).parents[1] / "ner_config.yaml"
        if not options.inspect:
            data |= {} if "validation_file" in files else {"validation_split_percentage": 10}
            lines = "".join(f"\n  {key}: {json.dumps(value)}" for key, value in data.items())
            advice = f"Copy {path.name}, and write there instead of what stands under data:"
            text = f"A training is described by a yaml. {advice}\n\ndata:{lines}\n\nOr look at it: --inspect."
            raise TrialError(text)
    if not os.path.isfile(path):
        raise TrialError(f"{path}: no such file (looked for {path.absolute()}). Give an experiment configuration.")
    try:
        config = YAML(typ="safe", pure=True).load(path)
    except Exception as error:
        raise TrialError(f"{path}: not readable as yaml: {explain_yaml(error)}") from error
    if not isinstance(config, dict):
        raise TrialError(f"{path}: found {type(config).__name__}; accepted is a mapping of keys to values.")
    if files:
        given = config.get("data")
        config["data"] = {**(given if isinstance(given, dict) else {}), **data}
    if not all("=" in override for override in options.overrides):
        raise TrialError("--config: found an argument without =; accepted is KEY=VALUE.")
    try:
        config = private.override(config, options.overrides)
    except (TypeError, AttributeError, KeyError):
        raise TrialError("--config: found a key within a value that is no mapping; accepted is KEY=VALUE.") from None
    except Exception as error:
        raise TrialError(f"--config: {explain_yaml(error)}") from error
    if count_values(config, {}) > MAX_VALUES:
        found = f"its aliases make more than {MAX_VALUES} values of it"
        raise TrialError(f"{path}: {found}. Write out what they stand for.")
    check_keys(config)
    return make_plain(config, "", [])


def make_plain(value: Any, key: str, above: Sequence[Any]) -> Any:
    """The value as JSON can hold it, which checkpoints are written in; a ConfigError where it cannot."""
    if isinstance(value, datetime.date):  # or a datetime
        return value.isoformat()
    if isinstance(value, str) and value != value.encode(errors="ignore").replace(b"\0", b"").decode():
        raise ConfigError([f"{key}: found {value!r}, which holds half of a character or a zero byte. Leave it out."])
    if isinstance(value, (set, bytes)) or any(value is other for other in above):
        found = "a value that contains itself" if any(value is other for other in above) else type(value).__name__
        raise ConfigError([f"{key}: found {found}; accepted are texts, numbers, lists and mappings."])
    if len(above) > MAX_DEPTH:
        raise ConfigError([f"{key[:80]}: found more than {MAX_DEPTH} levels of mappings and lists."])
    if isinstance(value, Mapping):
        return {name: make_plain(item, f"{key}.{name}".lstrip("."), [*above, value]) for name, item in value.items()}
    return [make_plain(item, key, [*above, value]) for item in value] if isinstance(value, (list, tuple)) else value


def find_data(options: Namespace) -> dict[str, str]:
    """The data files that the command line gives in place of a yaml, by the key that a yaml has for them."""
    files = {f"{split}_file": getattr(options, f"{split}_file") for split in SPLITS}
    path = Path(options.config_file or "ner_config.yaml")
    if path.suffix not in YAML_ENDINGS and os.path.exists(path) and not any(files.values()):
        names = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
        for split, pattern in SPLITS.items():
            named = [name for name in names if re.search(rf"(^|[\W_])({pattern})([\W_]|$)", name.lower())]
            files[f"{split}_file"] = str(path / named[0]) if named else None
            if len(named) > 1:
                found = f"{path}: found {', '.join(named)} for the {split} split"
                raise TrialError(f"{found}. Name one of them, or all by a glob in quotes: --{split}-file.")
        if files["train_file"] is None:  # a file, or a folder whose names tell no split: it is train as a whole
            if odd := [name for name in names if re.search("train|dev|valid|test", name.lower())]:
                found = f"{path}: found {', '.join(odd)}, of which none is named as train.conll or my-train.json is"
                raise TrialError(f"{found}. Say which is which: --train-file, --validation-file, --test-file.")
            files = {"train_file": str(path)}
    return {key: file for key, file in files.items() if file is not None}


def resolve_paths(config: Mapping[str, Any], folder: Path, project: Path) -> dict[str, Path]:
    """Make paths of a yaml absolute that lead from its own folder; the others lead from the project's.

    Returns the path of each key that names a file or a folder. A file of data that is in neither is a ConfigError.
    """
    paths = {}
    for section, keys in PATH_KEYS.items():
        values: Any = config.get(section)
        for key in keys if isinstance(values, dict) else ():
            value = values.get(key)
            if isinstance(value, str) and value and not value.startswith(("/", "~")):
                own, other = folder / value, project / value
                if os.path.exists(own) or glob.glob(str(own), recursive=True):
                    values[key] = str(own)
                elif key.endswith("_file") and not (os.path.exists(other) or glob.glob(str(other), recursive=True)):
                    looked = f"neither {own} nor {other} is there"
                    raise ConfigError([f"{section}.{key}: {looked}. Give the path of a file, or a glob."])
            if isinstance(value, str) and value:
                path = str(project / os.path.expanduser(values[key]))
                if found := [path] if os.path.exists(path) else glob.glob(path, recursive=True):
                    paths[f"{section}.{key}"] = Path(found[0]).resolve()
    return paths


def warn_of_ignored(options: Namespace) -> None:
    """Name the arguments that a task of a cluster does not follow."""
    given = {"CONFIG.yaml": options.config_file, "--config": options.overrides, "--test": options.test}
    given |= {"--inspect": options.inspect, "--output-dir": options.output_dir, "--resume": options.resume}
    if ignored := [name for name, value in given.items() if value]:
        logger.warning("On a cluster the experiment's own configuration counts, not %s.", ", ".join(ignored))


def explain_yaml(error: Exception) -> str:
    """What a yaml parser says, and where, but not the line itself: it may hold a secret."""
    if (mark := getattr(error, "problem_mark", None)) is None:
        return " ".join(str(error).split())
    problem = str(getattr(error, "problem", None)).partition(" with value ")[0]  # of a key that stands twice
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})"


def with_length(config: dict[str, Any], options: Namespace) -> dict[str, Any]:
    """The configuration with the training's length from the command line, where that gives one."""
    for unit in ("epochs", "batches"):
        if (amount := getattr(options, unit)) is not None:
            if amount < 1:
                raise ConfigError([f"--{unit}: found {amount}; accepted is at least 1."])
            read_known("searcher", config, SearcherConfig)
            # In place: on a cluster Determined hands this very mapping to the trial.
            config["searcher"] = {**(config.get("searcher") or {}), "max_length": {unit: amount}}
    return config


def choose_output_dir(project: Path, config: Mapping[str, Any], options: Namespace) -> Path:
    """The folder that the command line gives, or that the checkpoint to resume is in, or else a new one in outputs/."""
    if options.resume is not None and (options.test or options.inspect):
        raise TrialError("--resume: goes with neither --test nor --inspect.")
    if options.output_dir is not None:
        return resolve("--output-dir", make_plain(str(options.output_dir), "--output-dir", []))
    if options.resume is not None:
        parents = resolve("--resume", options.resume).parents
        if options.resume == "auto" or len(parents) < 3 or parents[1].name != "checkpoints":
            raise TrialError("--resume: needs --output-dir DIR here, the folder of the run that is to go on.")
        return parents[2]
    time = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    letters = re.UNICODE if sys.getfilesystemencoding() == "utf-8" else re.ASCII
    name = re.sub(r"[^\w. -]", "_", str(config.get("name", "experiment")), flags=letters)[:100]
    names = (f"{name}-{time}" + (f"-{number}" if number else "") for number in itertools.count())
    return next(folder for folder in map((project / "outputs").joinpath, names) if not folder.exists())


def check_output_dir(folder: Path, inputs: Mapping[str, Path], *, resumes: bool) -> None:
    """Refuse a folder that holds another run, another's files or inputs, or that each checkpoint would copy."""
    if (folder / "metrics.jsonl").exists() and not resumes:
        advice = "Choose another folder, or go on with that run: --resume auto."
        raise TrialError(f"--output-dir: {folder} holds the results of another run. {advice}")
    if folder.exists() and not folder.is_dir():
        raise TrialError(f"--output-dir: {folder} is a file. Choose another folder.")
    is_ours = (folder / MARK).exists() or (resumes and (folder / "checkpoints" / "determined").is_dir())
    if (others := [name for name in OUTPUTS if (folder / name).exists()]) and not is_ours:
        found = f"{folder} holds {', '.join(others)}, which no training with this program has written there"
        raise TrialError(f"--output-dir: {found}. Choose another folder: these would be replaced.")
    for key, path in inputs.items():
        if folder == path or folder in path.parents or (path.is_dir() and path in folder.parents):
            raise TrialError(f"{key}: {path} and --output-dir {folder} lie in each other. Choose another folder.")
    project = Path.cwd()
    if (folder == project or project in folder.parents) and not private.is_ignored(project, folder):
        advice = "Choose a folder under outputs/ or outside of the project, or name this one in .detignore."
        lies = f"{folder} lies in the project's folder, which every checkpoint takes a copy of"
        raise TrialError(f"--output-dir: {lies}. {advice}")
