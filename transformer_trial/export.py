"""A model as a folder that `from_pretrained` reads, whichever transformers wrote it."""

import ctypes
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformer_trial.errors import format_value

RENAME_EXCHANGE, AT_FDCWD = 2, -100
"""Of Linux' renameat2: two names change places in one step."""


def export_model(folder: Path, model: Any, tokenizer: Any, card: str) -> None:
    """Write weights (safetensors), config, tokenizer and model card to a folder.

    Args:
        folder: A new one, or one whose files of these names are replaced.
        model: Of transformers.
        tokenizer: Its tokenizer.
        card: Contents of the folder's README.md.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _make_readable_for_both(folder, tokenizer)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _make_readable_for_both(folder: Path, tokenizer: Any) -> None:
    """Let transformers 4 and 5 read the same of what either has saved."""
    files = [folder / "tokenizer_config.json", folder / "config.json"]
    of_tokenizer, of_model = configs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if (folder / "tokenizer.json").exists():
        # It says all, to a class without ideas of its own: those of transformers 5 make other parts than it describes.
        of_tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        for name in ("model_input_names", "padding_side", "truncation_side"):
            of_tokenizer[name] = getattr(tokenizer, name)
    if isinstance(of_tokenizer.get("extra_special_tokens"), list):
        of_tokenizer["additional_special_tokens"] = of_tokenizer.pop("extra_special_tokens")
    rotary = of_model.get("rope_parameters") or {}  # as transformers 5 has them
    if "rope_theta" in rotary:
        of_model["rope_theta"] = rotary["rope_theta"]
        if rotary.get("rope_type", "default") != "default":
            of_model["rope_scaling"] = rotary
    for name, layers in (("global_rope_theta", "full_attention"), ("local_rope_theta", "sliding_attention")):
        if layers in rotary:  # ModernBERT's
            of_model[name] = rotary[layers]["rope_theta"]
    for file, config in zip(files, configs):
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def replace_folder(new: Path, folder: Path) -> None:
    """Put `new` where `folder` is, or is not yet; where the system can, in one step, so that a kill leaves one of them.

    Elsewhere than on Linux there is a moment without either; the old one is then called `{folder}.old`.
    """
    if not folder.exists():
        new.rename(folder)
        return
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    paths = AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(folder), RENAME_EXCHANGE
    if renameat2 is not None and renameat2(*paths) == 0:
        shutil.rmtree(new)
        return
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old)


def recipe(settings: Any) -> str:
    """A markdown list of the settings that are not their defaults."""
    lines = []
    for name, section in vars(settings).items():
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if value != field.default:
                home, text = "data" if name == "data" else "hyperparameters", format_value(field.name, value)
                fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
                lines.append(f"- `{home}.{field.name}`: {fence}{text}{fence}")
    return "\n".join(lines)


def versions(packages: Sequence[str]) -> str:
    found = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([f"Python {platform.python_version()}", *found])
