"""README.md and docs/ say what the code says: keys, files, make targets and links are those that there are."""

import importlib.util
import re

import pytest
from conftest import PROJECT

from transformer_trial.command_line import parse_arguments

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(PROJECT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
every_page = pytest.mark.parametrize("page", TEXTS)


def test_the_table_of_keys_is_made_from_the_code() -> None:
    spec = importlib.util.spec_from_file_location("make_configuration", PROJECT / "docs" / "make_configuration.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert TEXTS["docs/configuration.md"] == module.make_page(), "make docs writes it anew"


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_to_files_and_headings(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = (PROJECT / page).parent / path if path else PROJECT / page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


@every_page
def test_a_page_over_a_screen_has_a_table_of_contents(page: str) -> None:
    headings = re.findall(r"^## (.*)$", TEXTS[page], flags=re.MULTILINE)
    if page != "README.md" and len(TEXTS[page].splitlines()) > 60:
        listed = re.findall(r"^ *- \[(.*)\]\(#", TEXTS[page], flags=re.MULTILINE)
        assert [heading for heading in headings if heading not in listed] == []


@every_page
def test_make_targets_and_files_that_a_page_names_exist(page: str) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    for pair in re.findall(r"^make ([a-z-]+)|(?<=`)make ([a-z-]+)(?=`)", TEXTS[page], flags=re.MULTILINE):
        assert re.search(rf"^{''.join(pair)}:", makefile, flags=re.MULTILINE), f"make {''.join(pair)}"
    for cells in re.findall(r"^\| (`[^|]*`) \|", TEXTS[page], flags=re.MULTILINE):
        for path in re.findall(r"`([a-z_/]+(?:\.\w+|/))`", cells):
            if page == "README.md" and path not in ("model/", "report/", "test/", "checkpoints/", "metrics.jsonl"):
                assert (PROJECT / path).exists(), path
    for script in re.findall(r"^ *(?:python3|torchrun --nproc-per-node 2) (\S+\.py)", TEXTS[page], flags=re.MULTILINE):
        assert (PROJECT / script).exists() or script.startswith("my_"), script


def test_the_usage_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    for option in re.findall(r"--[a-z-]+", capsys.readouterr().out):
        assert option == "--help" or option in TEXTS["docs/running.md"], option
