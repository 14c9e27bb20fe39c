"""What a checkpoint and an exported model hold: what we change in each, and whether a checkpoint is whole."""

import contextlib
import importlib.metadata
import json
import logging
import os
import pickle
import platform
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from transformer_trial.errors import MAX_VALUES, TrialError, count_values, format_value, redact
from transformer_trial.files import resolve

logger = logging.getLogger(__name__)

MAX_CONFIGURATION = 100_000  # bytes; what is longer is data
SAFE_YAML = YAML(typ="safe", pure=True)  # reads as `det` does: to it `no` is a text


def allow_determined_checkpoints() -> None:
    """Let torch >= 2.6 read Determined's checkpoints, which hold a plain array of NumPy's; it refuses all else."""
    if not hasattr(torch.serialization, "add_safe_globals"):
        return  # a torch whose torch.load is not restricted
    reconstruct: Any = np.zeros(1).__reduce__()[0]
    names = [(reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("_core", "core")]  # of NumPy 2 and 1
    torch.serialization.add_safe_globals([*names, np.ndarray, np.dtype, type(np.dtype("uint32"))])


def write_plain_data(checkpoint: dict[str, Any]) -> None:
    """Name the weights as Determined's loader does; turn NumPy's array, which torch refuses by default, into a list."""
    kind, numbers, *rest = checkpoint["rng_state"]["np_rng_state"]
    checkpoint["rng_state"]["np_rng_state"] = (kind, numbers.tolist(), *rest)
    consume_prefix_in_state_dict_if_present(checkpoint["models_state_dict"][0], "module.")


def refuse_another_model(checkpoint: dict[str, Any], model: Any, labels: Mapping[int, str] | None) -> None:
    """Load a checkpoint's weights into the bare model; a TrialError if they or the labels are those of another one."""
    what, weights, expected = None, checkpoint["models_state_dict"][0], model.config.id2label
    consume_prefix_in_state_dict_if_present(weights, "module.")
    if labels is not None and labels != expected:
        known, given = (format_value("labels", list(names.values())) for names in (labels, expected))
        what = f"its labels are {known}, not {given}"
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:200] + "..."
    if what is not None:
        advice = "Go on with the model and the labels that it was trained with."
        raise TrialError(f"The checkpoint is of another model: {what}. {advice}")


def redact_configurations(folder: Path) -> None:
    """Replace the secrets in the configurations of a checkpoint's copy of the code."""
    for file, config in find_secrets(folder.glob("code/**/*")):
        file.write_text(json.dumps(config)) if file.suffix == ".json" else SAFE_YAML.dump(config, file)


def find_secrets(files: Iterable[Path]) -> Iterator[tuple[Path, Any]]:
    """Those of the files that are configurations, yaml or json, and hold a secret; and what they hold without it."""
    for file in files:
        if file.suffix in (".yaml", ".yml", ".json") and file.stat().st_size < MAX_CONFIGURATION:
            with contextlib.suppress(Exception):  # not every yaml is a configuration
                config = json.loads(file.read_text()) if file.suffix == ".json" else SAFE_YAML.load(file)
                if count_values(config, {}) <= MAX_VALUES and (redacted := redact(config)) != config:
                    yield file, redacted


def complete_load_data(file: Path, model: Any) -> None:
    """Add the model's config, from which Determined's loader rebuilds the trial, and replace the secrets."""
    load_data = redact(json.loads(file.read_text()))
    model_config = json.loads(model.config.to_json_string(use_diff=False))
    load_data["experiment_config"] = {**(load_data["experiment_config"] or {}), "model_config": model_config}
    load_data["is_trainer"] = True  # otherwise the loader builds the context of a training
    file.write_text(json.dumps(load_data))


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, which Determined never writes there")


def read_trial_state(checkpoint: Path) -> dict[str, Any]:
    """Determined's record of the training's progress: a pickle, of which nothing but plain data is read."""
    with (checkpoint / "trial_state.pkl").open("rb") as file:
        state = _PlainUnpickler(file).load()
    if not isinstance(state, dict) or not isinstance(state.get("batches_trained"), int):
        raise ValueError("trial_state.pkl does not say how many batches were trained")
    return state


def find_damage(checkpoint: Path) -> str | None:
    """Say why a checkpoint cannot be resumed; None where it can."""
    try:
        for name in ("metadata.json", "load_data.json"):
            json.loads((checkpoint / name).read_text())
        read_trial_state(checkpoint)
        with zipfile.ZipFile(checkpoint / "state_dict.pth") as file:
            if broken := file.testzip():
                return f"state_dict.pth is damaged at {broken}"
    except Exception as error:  # unpickling damaged bytes raises errors of many kinds
        return " ".join(str(error).split()) or type(error).__name__
    return None


def find_checkpoint(requested: str, output_dir: Path) -> Path | None:
    """The checkpoint that `--resume` asks for: a folder, or with "auto" the newest whole one of a run, if it has any.

    Determined writes metadata.json last: a checkpoint without it was being saved when the run was killed.
    """
    if requested != "auto":
        checkpoint = resolve("--resume", requested)
        if (damage := find_damage(checkpoint)) is None:
            return checkpoint
        advice = "a folder such as DIR/checkpoints/determined/UUID, or auto for the newest one of --output-dir DIR"
        raise TrialError(f"--resume: {checkpoint} cannot be resumed: {damage}. Give a whole checkpoint, {advice}.")
    files = list(output_dir.glob("checkpoints/determined/*/metadata.json"))
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        if (damage := find_damage(file.parent)) is None:
            return file.parent
        logger.warning("%s cannot be resumed: %s. Trying the one before it.", file.parent, damage)
    if files:
        raise TrialError(f"--resume: no checkpoint in {output_dir} is whole. To start anew, choose another folder.")
    return None


def warn_of_changes(checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Name the settings that have changed since a checkpoint was made: the run will not be what it would have been."""
    before = json.loads((checkpoint / "load_data.json").read_text())["experiment_config"] or {}
    now = redact(config)
    for section in sorted({*before, *now} - {"model_config", "name", "description", "labels", "workspace", "project"}):
        old, new = (c if isinstance(c, Mapping) else {"": c} for c in (before.get(section), now.get(section)))
        for key in sorted(key for key in {*old, *new} if old.get(key) != new.get(key)):
            name = f"{section}.{key}".rstrip(".")
            values = f"{format_value(name, old.get(key))} in the checkpoint, {format_value(name, new.get(key))} now"
            logger.warning("%s has changed: %s.", name, values)
    if before.get("hyperparameters") != now.get("hyperparameters"):
        logger.warning("Optimizer and schedule go on as the checkpoint has them, with their rates.")


def export_model(folder: Path, model: Any, tokenizer: Any, card: str) -> None:
    """Write weights (safetensors), config, tokenizer and the model card, README.md, to a folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _make_readable_for_both(folder, tokenizer)
    (folder / "README.md").write_text(card, encoding="utf-8")
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.iterdir():  # safetensors lets nobody else read
        file.chmod(0o666 & ~umask)


def _make_readable_for_both(folder: Path, tokenizer: Any) -> None:
    """Change what transformers 4 or 5 saved so that both read the same from it."""
    files = [folder / "tokenizer_config.json", folder / "config.json"]
    of_tokenizer, of_model = configs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if (folder / "tokenizer.json").exists():
        # This class takes everything from tokenizer.json; the classes of transformers 5 replace parts of it.
        of_tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        for name in ("model_input_names", "padding_side", "truncation_side"):
            of_tokenizer[name] = getattr(tokenizer, name)
    if isinstance(of_tokenizer.get("extra_special_tokens"), list):
        of_tokenizer["additional_special_tokens"] = of_tokenizer.pop("extra_special_tokens")
    rotary = of_model.get("rope_parameters") or {}  # of transformers 5
    if "rope_theta" in rotary:
        of_model["rope_theta"] = rotary["rope_theta"]
        if rotary.get("rope_type", "default") != "default":
            of_model["rope_scaling"] = rotary
    for name, layers in (("global_rope_theta", "full_attention"), ("local_rope_theta", "sliding_attention")):
        if layers in rotary:  # in ModernBERT
            of_model[name] = rotary[layers]["rope_theta"]
    for file, config in zip(files, configs):
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def recipe(settings: Any) -> str:
    """A markdown list of the settings that are not their defaults."""
    lines = []
    for name, section in vars(settings).items():
        for key, value in section.model_dump(exclude_defaults=True).items():
            home, text = "data" if name == "data" else "hyperparameters", format_value(key, value)
            fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
            lines.append(f"- `{home}.{key}`: {fence}{text}{fence}")
    return "\n".join(lines)


def versions(packages: Sequence[str]) -> str:
    """The versions of Python and of these packages, as a model card names them."""
    found = (f"{name} {importlib.metadata.version(name)}" for name in packages)
    return ", ".join([f"Python {platform.python_version()}", *found])
