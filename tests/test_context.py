"""Documents as context: trained, evaluated, exported and used on files and texts; each word counts once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SAMPLE_DATA, Config, Fit, read_lines, read_metrics, refuses, write_lines
from hypothesis import given
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from test_distributed import assert_same_metrics_and_weights, train_to_end
from test_predict import train

import predict
from ner import context
from ner.sentences import Sentence

Rows = list[dict[str, Any]]
MODES = ("neighbours", "merged")


def write_documents(split: str, folder: Path, *names: str, size: int = 4) -> Path:
    """The split of the sample as json lines, in documents of so many sentences; `names` instead for the first rows."""
    lines = read_lines(SAMPLE_DATA / f"{split}.json")
    rows: Rows = [line | {"document_id": f"{split} {i // size}"} for i, line in enumerate(lines)]
    for row, name in zip(rows, names):
        row["document_id"] = name
    return Path(write_lines(rows, folder / f"{split}.json"))


def options_of(mode: str) -> dict[str, Any]:
    return {"document_context": mode, "context_tokens": 12, "max_seq_length": 48}


def data_of(mode: str, folder: Path) -> dict[str, Any]:
    """What the section `data` says of files with documents, which are written to the folder."""
    splits = ("train", "validation", "test")
    return {f"{split}_file": str(write_documents(split, folder)) for split in splits} | options_of(mode)


@pytest.fixture(scope="module", params=MODES)
def run(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run; the files that it was trained and tested on are beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    return train(tiny_model, folder, **data_of(request.param, folder))


@pytest.fixture
def tag(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Rows, str]]:
    """Tags a file with the model of the run; returns the rows, and what was said."""

    def tag(file: Path, *options: str) -> tuple[Rows, str]:
        output = tmp_path / "out" / "rows.jsonl"
        output.parent.mkdir(exist_ok=True)
        predict.main(["--model", str(run / "model"), "--input", str(file), "--output", str(output), *options])
        return read_lines(output), capsys.readouterr().err

    return tag


def tags_of(rows: Rows) -> list[list[str]]:
    return [row["tags"] for row in rows]


def test_scores_and_predictions_are_those_of_predict_on_the_same_files(run: Path, tag: Any, tmp_path: Path) -> None:
    tested = read_lines(run / "test" / "predictions.jsonl")
    rows, said = tag(run.parent / "test.json")
    gold = [row["ner_tags"] for row in read_lines(run.parent / "test.json")]
    assert [row["gold"] for row in rows] == [row["gold"] for row in tested] == gold
    assert tags_of(rows) == tags_of(tested)
    assert "The model was trained on documents" in said and "has some" in said

    rows, _ = tag(run.parent / "validation.json")
    best = max(read_metrics(run, "validation"), key=lambda line: line["f1"])
    for oracle, name in ((seqeval.f1_score, "f1"), (seqeval.accuracy_score, "accuracy_score")):
        assert oracle([row["gold"] for row in rows], tags_of(rows)) == pytest.approx(best[name])
    assert 0.1 < best["f1"] < 1, "it has to learn something that a difference would change"


def test_a_sentence_is_tagged_by_what_is_around_it_in_its_document(run: Path, tag: Any, tmp_path: Path) -> None:
    file = run.parent / "test.json"
    whole, _ = tag(file)
    (tmp_path / "alone").mkdir()
    alone = [row | {"document_id": ""} for row in read_lines(file)]
    write_lines(alone, tmp_path / "alone" / "a.json")
    without, _ = tag(tmp_path / "alone" / "a.json")
    assert [row["scores"] for row in whole] != [row["scores"] for row in without]
    # Another document beside it changes nothing.
    second = file.read_text(encoding="utf-8").splitlines(keepends=True)[4:8]
    (tmp_path / "alone" / "b.json").write_text("".join(second), encoding="utf-8")
    part, _ = tag(tmp_path / "alone" / "b.json")
    for row, of_whole in zip(part, whole[4:8], strict=True):
        assert row["tags"] == of_whole["tags"] and row["scores"] == pytest.approx(of_whole["scores"], abs=2e-5)


def test_paragraphs_of_a_text_are_documents_and_files_without_are_told(run: Path, tag: Any, tmp_path: Path) -> None:
    sentences = [row["tokens"] for row in read_lines(SAMPLE_DATA / "test.json")[:6]]
    lines = [" ".join(words) for words in sentences]
    (tmp_path / "text.txt").write_text("\n".join([*lines[:3], "", *lines[3:]]), encoding="utf-8")
    rows, said = tag(tmp_path / "text.txt", "--format", "text")
    assert [row.get("document") for row in rows] == [*["paragraph 1"] * 3, None, *["paragraph 2"] * 3]
    assert "has the paragraphs of a text" in said
    texts = [row for row in rows if row["tokens"]]
    marked = [{"tokens": row["tokens"], "document_id": i // 3} for i, row in enumerate(texts)]
    write_lines(marked, tmp_path / "rows.jsonl")
    of_rows, _ = tag(tmp_path / "rows.jsonl")
    assert tags_of(texts) == tags_of(of_rows)
    write_lines(({"tokens": words} for words in sentences), tmp_path / "bare.jsonl")
    _, said = tag(tmp_path / "bare.jsonl")
    assert "marks none: each sentence is tagged alone" in said


def test_a_paragraph_ends_with_its_file() -> None:
    lines = [Sentence(["a"], place=place) for place in ("a.txt, line 1", "a.txt, line 2", "b.txt, line 1")]
    assert [s.document for s in context.name_paragraphs(lines)] == ["paragraph 1", "paragraph 1", "paragraph 2"]


def test_the_card_and_the_config_say_what_the_model_saw(run: Path) -> None:
    settings = json.loads((run / "model" / "config.json").read_text())["ner"]
    assert {name: settings[name] for name in options_of("")} == options_of(run.parent.name[:-1])
    card = (run / "model" / "README.md").read_text()
    assert settings["document_context"] in card and "`pipeline` on single sentences is not that" in card


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_slots_count_what_one_counts(config: Config, tmp_path: Path, mode: str) -> None:
    config["data"] |= data_of(mode, tmp_path)
    one, two = (train_to_end(config, tmp_path / str(num_slots), num_slots) for num_slots in (1, 2))
    assert_same_metrics_and_weights(two, one)


@pytest.mark.parametrize(
    ("split", "names", "said"),
    [
        ("validation", [""] * 1000, ["data.document_context: merged", "the validation split marks none", "-DOCSTART-"]),
        ("train", ["a", "b", "a"], ["train.json, line 3", "the document 'a' goes on here", "one after the other"]),
    ],
)
def test_data_without_whole_documents_is_refused(
    config: Config, fit: Fit, tmp_path: Path, split: str, names: list[str], said: list[str]
) -> None:
    config["data"] |= data_of("merged", tmp_path)
    write_documents(split, tmp_path, *names)
    with refuses(*said):
        fit(config)


@given(names=st.lists(st.sampled_from(["a", "b", ""]), max_size=40), size=st.integers(1, 9), longest=st.integers(1, 12))
def test_documents_are_the_same_whether_read_whole_or_in_groups(names: list[str], size: int, longest: int) -> None:
    expected: list[list[int]] = []
    for i, name in enumerate(names):
        goes_on = i > 0 and name != "" and names[i - 1] == name and len(expected[-1]) < longest
        expected = [*expected[:-1], [*expected[-1], i]] if goes_on else [*expected, [i]]
    sentences = [Sentence([str(i)], document=name) for i, name in enumerate(names)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "MAX_SENTENCES", longest)
        groups = [*context.group_documents(sentences, size)]
        found = []
        for group in groups:
            starts = context.find_documents([sentence.document for sentence in group])
            found += np.split([int(sentence.words[0]) for sentence in group], starts[1:-1])
    assert [part.tolist() for part in found] == expected
    assert all(size <= len(group) < size + longest for group in groups[:-1])
