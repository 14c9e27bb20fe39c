"""The house stays in order: imports point one way, private names have one room, budgets hold."""

import ast
import re
from pathlib import Path

import pytest
from conftest import PROJECT

FLOORS = ("transformer_trial", "ner", "ner_utils", "ner_trial", "predict", "batch_predict", "train")
"""What may import what stands before it: `predict` and `ner_trial` do not know each other."""

MODULES = [
    file.relative_to(PROJECT)
    for folder in (".", "ner", "ner/formats", "transformer_trial")
    for file in sorted((PROJECT / folder).glob("*.py"))
]

WITHOUT_DETERMINED = ["predict.py", "ner_utils.py", *(str(file) for file in MODULES if file.parts[0] == "ner")]
WITHOUT_DETERMINED += [f"transformer_trial/{name}.py" for name in ("errors", "config", "data", "files", "machine")]


def imported(file: Path) -> set[str]:
    """The modules that a file imports anywhere, those of `from package import module` included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((PROJECT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports name the whole module"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


GRAPH = {
    ".".join(file.with_suffix("").parts): imported(file) & {".".join(m.with_suffix("").parts) for m in MODULES}
    for file in MODULES
}


@pytest.mark.parametrize("module", GRAPH)
def test_imports_point_one_way(module: str) -> None:
    floor = FLOORS.index(module.partition(".")[0])
    for other in GRAPH[module]:
        other_floor = FLOORS.index(other.partition(".")[0])
        assert other_floor < floor or (other_floor == floor and floor < 2), f"{module} imports {other}"
    assert {module, *GRAPH[module]}.isdisjoint({"ner_trial"} if "predict" in module else {"predict", "batch_predict"})


def test_no_module_imports_itself_by_way_of_others() -> None:
    left = dict(GRAPH)
    while free := [module for module, others in left.items() if not others & left.keys()]:
        for module in free:
            del left[module]
    assert not left, "these import each other"


def test_types_hide_no_import() -> None:
    assert [file for file in MODULES if "TYPE_CHECKING" in (PROJECT / file).read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("file", WITHOUT_DETERMINED)
def test_prediction_and_data_do_not_need_determined(file: str) -> None:
    assert {name.partition(".")[0] for name in imported(Path(file))}.isdisjoint({"determined"})


def test_private_names_of_determined_have_one_room() -> None:
    private = re.compile(r"pytorch\._|_ShouldExit|context\._[a-z]|trial\._config|determined\.(cli|common)")
    found = [file for file in MODULES if private.search((PROJECT / file).read_text(encoding="utf-8"))]
    assert found == [Path("transformer_trial/private.py")]


def test_the_house_can_be_read_in_a_sitting() -> None:
    lines = {str(file): len((PROJECT / file).read_text(encoding="utf-8").splitlines()) for file in MODULES}
    assert sum(lines[file] for file in ("ner_trial.py", "ner_utils.py", "transformer_trial/trial.py")) <= 800
    assert sum(lines.values()) <= 7150
    assert max(lines.values()) <= 400
    for file in MODULES:
        for node in ast.walk(ast.parse((PROJECT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{file}: {node.name}"
    assert len((PROJECT / "README.md").read_text(encoding="utf-8").splitlines()) <= 220
