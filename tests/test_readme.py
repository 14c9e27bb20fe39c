"""README.md's configuration table says what the code says, and its commands are the ones that there are."""

import ast
import dataclasses
import re
from typing import Any

import pytest
from conftest import PROJECT

from ner.config import NERDataConfig
from transformer_trial.config import ModelConfig, OptimizerConfig, SchedulerConfig, TrainingConfig

README = (PROJECT / "README.md").read_text()
SECTIONS = {
    "hyperparameters": (ModelConfig, OptimizerConfig, SchedulerConfig, TrainingConfig),
    "data": (NERDataConfig,),
}


def documented_fields(config_class: type) -> dict[str, str]:
    """The docstrings beneath a dataclass's fields, its bases' included."""
    documented: dict[str, str] = {}
    for file in ("transformer_trial/config.py", "ner/data.py"):
        for node in ast.parse((PROJECT / file).read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name in {c.__name__ for c in config_class.__mro__}:
                for field, text in zip(node.body, node.body[1:]):
                    if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                        assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
                        documented[field.target.id] = " ".join(str(text.value.value).split())
    return documented


def table_row(field: "dataclasses.Field[Any]", text: str) -> str:
    """How the README shows a key."""
    if field.default is dataclasses.MISSING:
        default = "required"
    elif isinstance(field.default, float):
        default = f"{field.default:g}"
    else:
        default = {"None": "null", "True": "true", "False": "false"}.get(str(field.default), str(field.default))
    choices = (
        " One of " + ", ".join(f"`{c}`" for c in field.metadata["choices"]) + "." if field.metadata["choices"] else ""
    )
    return f"| `{field.name}` | {default} | {text}{choices} |"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_stands_in_the_readme_with_its_default_and_meaning(section: str) -> None:
    for config_class in SECTIONS[section]:
        texts = documented_fields(config_class)
        for field in dataclasses.fields(config_class):
            row = table_row(field, texts[field.name])
            assert row in README.splitlines(), f"README.md lacks the row:\n{row}"


def test_every_make_target_and_file_that_the_readme_names_exists() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    targets = set(re.findall(r"^make ([a-z-]+)|(?<=`)make ([a-z-]+)(?=`)", README, flags=re.MULTILINE))
    assert {"train", "test"} <= {name for pair in targets for name in pair}
    for target in (first or second for first, second in targets):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target}"
    for path in set(re.findall(r"^\| `([a-z_/]+(?:\.\w+|/))` \|", README, flags=re.MULTILINE)):
        assert (PROJECT / path).exists(), path
