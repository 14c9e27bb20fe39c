"""Exports: folders that transformers loads, on either stack, and a card that tells the truth.

With another environment's Python in NER_OTHER_PYTHON, or in .venv or .venv-cluster, exports go back and forth.
"""

import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from conftest import PROJECT, SAMPLE_DATA, Config, Fit, Patch, read_lines, read_metrics
from hypothesis import given
from hypothesis import strategies as st
from model_kinds import KINDS, LABELS, save_kind
from prediction import tag_by_pipeline
from stand_in import run_on_stand_in
from test_callbacks import script_f1
from test_ner_report import Page

import ner.card
import ner.report
import predict
from ner.config import NERDataConfig, TaggerSettings
from ner.sentences import Sentence
from ner.windows import prepare_tokenizer
from transformer_trial.checkpoints import export_model, recipe
from transformer_trial.config import parse_trial_config
from transformer_trial.errors import printable


@pytest.fixture
def small(config: Config) -> Config:
    """A configuration that trains and tests in no time."""
    config["data"] |= {"max_train_samples": 40, "max_eval_samples": 30, "test_file": str(SAMPLE_DATA / "test.json")}
    config["hyperparameters"]["learning_rate"] = 3e-3
    config["searcher"]["max_length"]["batches"] = 8
    return config


def test_an_export_has_weights_names_tokenizer_and_settings(small: Config, fit: Fit) -> None:
    small["data"] |= {"max_seq_length": 20, "doc_stride": 5, "metric_mode": "strict"}
    trial = fit(small)
    assert {path.name for path in trial.output_dir.iterdir()} == {"metrics.jsonl", "report", "test", "model"}
    folder = trial.output_dir / "model"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl"))}
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    torch.testing.assert_close(weights, dict(trial.model.state_dict()), rtol=0, atol=0)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    assert [model.config.id2label[i] for i in range(9)] == trial.label_list
    assert model.config.label2id == {name: i for i, name in enumerate(trial.label_list)}
    options = {"mode": "strict", "scheme": "IOB2"}
    expected = {"label_scheme": "IOB2", "max_seq_length": 20, "doc_stride": 5, "metric_options": options}
    assert model.config.ner | expected == model.config.ner


def test_pipeline_gives_the_tags_of_predict(small: Config, fit: Fit) -> None:
    small["data"] |= {"max_train_samples": 400}
    small["searcher"]["max_length"]["batches"] = 50
    folder = fit(small).output_dir / "model"
    sentences = [row["tokens"] for row in read_lines(SAMPLE_DATA / "validation.json")]
    long, without = [word for words in sentences[:30] for word in words], ["\x07", "Ada"]
    sentences += [long, without]
    rows = list(predict.predict(folder, sentences))
    assert len({tag for row in rows for tag in row["tags"]}) > 3, "a blind model agrees with anything"
    found = tag_by_pipeline(str(folder), sentences, batch_size=1, is_sorted=False)()
    differ = [
        (number, i)
        for number, (row, tags) in enumerate(zip(rows, found))
        for i, pair in enumerate(zip(row["tags"], tags, strict=True))
        if len({*pair}) > 1
    ]
    # The pipeline cuts what is longer than the model, of which words from the middle of the first window on may be seen
    # from a later one. All others agree.
    in_long = [i for number, i in differ if number == sentences.index(long)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    middle = tokenizer(long, is_split_into_words=True, truncation=True, max_length=64).word_ids()[-2]
    assert in_long and min(in_long) > middle and len(in_long) == len(differ)


def render(card: str) -> Page:
    """The card as a markdown library that is no part of this project shows it."""
    _, _, text = card.removeprefix("---\n").partition("\n---\n")
    return Page(importlib.import_module("markdown").markdown(text, extensions=["tables", "fenced_code"]))


def count_tags(page: Page) -> Counter[str]:
    return Counter(tag for tag, _ in page.elements)


REPORT_FOLDERS = {"validation": "report", "test": "test/report"}
SCORE_NAMES = ("precision", "recall", "f1", "support")


def check_scores(card: str, reports: dict[str, Any]) -> None:
    """Every number of the card's tables of scores is that of the report."""
    tables = [rows for _, *rows in (table for table in render(card).tables if table[0][0] == "type")]
    for rows, report in zip(tables, reports.values(), strict=True):
        lines = [*report["types"].items(), ("all types", report["overall"])]
        for row, (name, scores) in zip(rows, lines, strict=True):
            values = [float(cell.replace(",", "")) for cell in row[1:]]
            assert row[0] == printable(name)
            assert values == pytest.approx([scores[key] for key in SCORE_NAMES], abs=5e-4)


any_name = st.sampled_from(["run <b>3</b>\n# [x](y)"]) | st.text(min_size=1, max_size=12).filter(
    lambda text: text.strip() and max(text) < "\ud800"
)
HOSTILE = [
    "<script>alert(1)</script>", "a|b", "`x`", "*_~~x~~_*", "[l](javascript:1)", "\x1b[31m", "\u202eX", "#", "&lt;",
]  # fmt: skip
PLAIN_TAGS = {"h1", "h2", "p", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}


@given(types=st.lists(any_name | st.sampled_from(HOSTILE), min_size=1, max_size=4, unique=True), title=any_name)
def test_names_in_the_card_are_neither_markdown_nor_html(types: list[str], title: str) -> None:
    types = [name.strip() for name in types]
    report = ner.report.ErrorReport("IOB2")
    for name in types:
        report.add([f"B-{name}", "O"], [f"B-{types[0]}", "O"])
    counts = {"sentences": 1, "words": 2, "entities": dict.fromkeys(types, 3)}
    card, plain_card = (
        ner.card.model_card(
            name, TaggerSettings(label_scheme="IOB2", max_seq_length=8).model_dump(), {"splits": {"train": counts}},
            {"test": report.as_dict()}, batches=7, recipe="- `data.x`: `1`", versions="Python",
        )
        for name in (title, "x")
    )  # fmt: skip
    check_scores(card, {"test": report.as_dict()})
    tags = count_tags(render(card))
    assert render(card).text_of("h1")[0].strip() == printable(title).strip()
    assert tags.keys() <= PLAIN_TAGS
    assert tags == count_tags(render(plain_card))
    assert card.isprintable() or all(c.isprintable() or c in "\n\u200c\u200d" for c in card)


def test_the_cards_recipe_repeats_no_secret_and_stays_code() -> None:
    hparams = {
        "model_mode": "token-classification", "global_batch_size": 8,
        "pretrained_model_name_or_path": "a`b</code>``<script>c", "lr_scheduler_type": "cosine_with_restarts",
        "lr_scheduler_kwargs": {"num_cycles": 2, "auth_token": "hf_planted"},
    }  # fmt: skip
    text = recipe(parse_trial_config(hparams, {"train_file": "x.json"}, NERDataConfig))
    assert "hf_planted" not in text and "lr_scheduler_kwargs" in text
    assert count_tags(render(f"---\nx: 1\n---\n{text}")) == {"ul": 1, "li": 6, "code": 12}


def test_the_card_has_the_scores_that_were_reported(small: Config, fit: Fit) -> None:
    small["searcher"]["max_length"]["batches"] = 60
    small["data"]["max_train_samples"] = None
    folder = fit(small).output_dir
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    files = {split: folder / part / "report.json" for split, part in REPORT_FOLDERS.items()}
    reports = {split: json.loads(file.read_text()) for split, file in files.items()}
    check_scores(card, reports)
    for split, report in reports.items():
        assert sum(row["support"] for row in report["seen"].values()) == report["overall"]["support"]
        assert bool(report["thresholds"]) == bool(report["worst_sentences"][0]["scores"]) == (split == "test")
        (line,) = read_metrics(folder, split)
        for name in ("precision", "recall", "f1"):
            assert report["overall"][name] == pytest.approx(line[name], abs=1e-12)
        assert report["accuracy"] == pytest.approx(line["accuracy_score"])
    assert render(card).text_of("h1") == ["test"]
    assert ["train", "1,000", "11,988", "1,864"] in [row for table in render(card).tables for row in table]


@pytest.mark.parametrize("export", [True, False])
def test_a_checkpoint_holds_model_and_reports(export: bool, small: Config, tmp_path: Path, monkeypatch: Patch) -> None:
    f1s = [0.2, 0.1, 0.3, 0.3]
    script_f1(monkeypatch, f1s)
    small |= {"checkpoint_policy": "all", "min_validation_period": {"batches": 2}}
    small["hyperparameters"]["export_model"] = export
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    run_on_stand_in(small, tmp_path / "cluster")
    assert not list((tmp_path / "temp").iterdir()), "temporary folders are left"
    files = (tmp_path / "cluster").glob("*/metadata.json")
    checkpoints = sorted((json.loads(file.read_text())["steps_completed"], file.parent) for file in files)
    assert [batches for batches, _ in checkpoints] == [2, 4, 6, 8]
    for (batches, folder), is_best in zip(checkpoints, (True, False, True, False)):
        expected = {*(["model"] if export else []), *(["report", "test"] if is_best else [])}
        assert {"model", "report", "test"} & {path.name for path in folder.iterdir()} == expected
        reports = {split: folder / part / "report.json" for split, part in REPORT_FOLDERS.items()} if is_best else {}
        if is_best:
            assert len(read_lines(folder / "test" / "predictions.jsonl")) == 200
            assert (folder / "report" / "data.json").exists()
        if not export:
            continue
        card = (folder / "model" / "README.md").read_text()
        assert f"Fine-tuned for {batches} batches." in card
        check_scores(card, {split: json.loads(file.read_text()) for split, file in reports.items()})
        (weights,) = torch.load(folder / "state_dict.pth", weights_only=False)["models_state_dict"]
        exported = safetensors.torch.load_file(folder / "model" / "model.safetensors")
        assert all(torch.equal(exported[name], weights[name]) for name in weights)


SENTENCES = [row["tokens"] for row in read_lines(SAMPLE_DATA / "train.json")[:12]]
SENTENCES += [["Ada", "\x07", "", "東京", "👩‍👩‍👧", "e\u0301", "ab" * 30, "two words"], ["\u200b"], []]
ROTARY = {"global_rope_theta": 50.0, "local_rope_theta": 500.0, "global_attn_every_n_layers": 2, "local_attention": 8}


def export_kinds(folder: Path) -> dict[str, Any]:
    """Export a model of each kind, as NERTrial does, and tag with what is exported; weights make the most of inputs."""
    tagged = {}
    for number, (name, kind) in enumerate(KINDS.items()):
        source = folder / f"{number}.source"
        source.mkdir(parents=True)
        save_kind(kind, source)
        if name == "ModernBERT":
            values = json.loads((source / "config.json").read_text()) | ROTARY
            values = {key: value for key, value in values.items() if key not in ("rope_parameters", "layer_types")}
            (source / "config.json").write_text(json.dumps(values))
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        prepare_tokenizer(tokenizer)
        names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
        config = transformers.AutoConfig.from_pretrained(source, **names)
        config.pad_token_id = tokenizer.pad_token_id
        config.ner = {"label_scheme": "IOB2", "max_seq_length": 16, "doc_stride": 4}
        torch.manual_seed(1)
        model = transformers.AutoModelForTokenClassification.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8)
        tagged[name] = tag_sentences(predict.Tagger(model, tokenizer, batch_size=4))
        export_model(folder / name, model, tokenizer, "# card\n")
    return tagged


def tag_sentences(tagger: predict.Tagger) -> list[tuple[list[str], list[float | None]]]:
    rows = (sentence.as_json(tagger.settings.label_scheme) for sentence in tagger.tag(map(Sentence, SENTENCES)))
    return [(row["tags"], row["scores"]) for row in rows]


def tag_with_exports(folder: Path) -> dict[str, Any]:
    return {kind: tag_sentences(predict.Tagger.load(folder / kind, batch_size=4)) for kind in KINDS}


@functools.cache
def find_other_python() -> str | None:
    folders = [PROJECT / name for name in (".venv-cluster", ".venv")]
    whole = [folder / "bin" / "python" for folder in folders if (folder / "done").exists()]  # else it is being made
    pythons = [Path(os.environ.get("NER_OTHER_PYTHON", "/nowhere/bin/python")), *whole]
    others = (str(python) for python in pythons if python.is_file() and python.parents[1] != Path(sys.prefix))
    return next(others, None)


def assert_same_tags(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for kind in KINDS:
        assert len({tag for tags, _ in expected[kind] for tag in tags}) > 1, "a blind model agrees with anything"
        for (tags, scores), (expected_tags, expected_scores) in zip(found[kind], expected[kind], strict=True):
            assert tags == expected_tags, kind
            assert scores == pytest.approx(expected_scores, abs=1e-4), kind


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("kinds") / "here"
    return folder, export_kinds(folder)


def test_an_export_tags_as_the_model_and_tokenizer_that_it_was_made_from(kinds: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = kinds
    assert_same_tags(tag_with_exports(folder), expected)


@pytest.mark.skipif(find_other_python() is None, reason="no other environment: NER_OTHER_PYTHON, .venv, .venv-cluster")
@pytest.mark.slow
def test_exports_of_either_stack_tag_the_same_on_the_other(kinds: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    here, expected = kinds
    command = [str(find_other_python()), __file__, str(here), str(tmp_path / "there")]
    subprocess.run(command, check=True)
    assert_same_tags(json.loads(here.with_suffix(".json").read_text()), expected)
    expected_there = json.loads((tmp_path / "there.json").read_text())
    assert_same_tags(tag_with_exports(tmp_path / "there"), expected_there)


if __name__ == "__main__":
    here, there = map(Path, sys.argv[1:])
    there.with_suffix(".json").write_text(json.dumps(export_kinds(there)))
    here.with_suffix(".json").write_text(json.dumps(tag_with_exports(here)))
