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

from transformer_trial.parsing import shown

RENAME_EXCHANGE, AT_FDCWD = 2, -100
"""Of Linux' renameat2: two names change places in one step."""


def export_model(folder: Path, model: Any, tokenizer: Any, card: str) -> None:
    """Write weights (safetensors), config, tokenizer and model card to a folder.

    Args:
        folder: A new one, or one whose files of these names are replaced.
        model: Of transformers, perhaps wrapped for data-parallel training.
        tokenizer: Its tokenizer.
        card: Contents of the folder's README.md.
    """
    getattr(model, "module", model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _make_readable_for_both(folder / "tokenizer_config.json")
    (folder / "README.md").write_text(card, encoding="utf-8")


def _make_readable_for_both(file: Path) -> None:
    """Let transformers 4 read the config of a tokenizer that transformers 5 saved."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
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
                home, text = "data" if name == "data" else "hyperparameters", shown(field.name, value)
                fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
                lines.append(f"- `{home}.{field.name}`: {fence}{text}{fence}")
    return "\n".join(lines)


def versions(packages: Sequence[str]) -> str:
    found = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([f"Python {platform.python_version()}", *found])
