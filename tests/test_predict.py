"""predict.py: the tags of training for every word of every kind of file, and whole lines whatever happens."""

import functools
import gzip
import io
import itertools
import json
import multiprocessing.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from resource import RLIMIT_FSIZE, RUSAGE_SELF, getrusage, setrlimit
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import torch
import transformers
import yaml
from conftest import (
    PROJECT,
    SAMPLE_DATA,
    Capture,
    Patch,
    read_lines,
    read_metrics,
    refuses,
    slow,
    train_here,
    write_config,
    write_lines,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval_metrics
from test_fuzz import run_case
from test_ner_formats import as_lines, as_table, to_parquet
from training_process import CONTEXT, run_python

import ner.formats
import predict as predict_module
from ner.config import ReadOptions
from ner.report import ErrorReport
from ner.sentences import Sentence, write_predictions
from predict import Tagger, predict
from transformer_trial.errors import TrialError

SCORES = {"accuracy_score": "accuracy", "precision": "precision", "recall": "recall", "f1": "f1"}

Command = Callable[..., None]
Tag = Callable[..., list[dict[str, Any]]]


def train(model: Path, folder: Path, **data: Any) -> Path:
    config = yaml.safe_load((PROJECT / "sample" / "ner_config.yaml").read_text(encoding="utf-8"))
    config["hyperparameters"] |= {"pretrained_model_name_or_path": str(model), "use_pretrained_weights": True}
    config["hyperparameters"] |= {"global_batch_size": 8, "learning_rate": 3e-3}
    config["data"] |= {"test_file": None, **data}
    config["searcher"]["max_length"] = {"batches": 160}
    config |= {"min_validation_period": {"batches": 40}, "checkpoint_policy": "none"}
    train_here(*write_config(config, folder))
    return folder / "run"


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_model, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    return run / "model"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: Patch) -> Command:
    """`predict.py` with these arguments, in this process and in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: predict_module.main([str(argument) for argument in arguments])


@pytest.fixture
def tag(command: Command, model: Path) -> Tag:
    """Tags a file, or what is to be written to a file, and returns the rows of the output, out.jsonl."""

    def tag(file: Path | str, contents: Any = None, *options: Any, model: Path = model) -> list[dict[str, Any]]:
        if contents is not None:
            Path(file).write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        command("--model", model, "--input", file, "--output", "out.jsonl", *options)
        return read_lines(Path("out.jsonl"))

    return tag


def change_settings(model: Path, **settings: Any) -> Path:
    """A copy of an exported model that was trained with other settings, as its config says."""
    shutil.copytree(model, "changed")
    config = json.loads((model / "config.json").read_text())
    Path("changed/config.json").write_text(json.dumps(config | {"ner": config["ner"] | settings}))
    return Path("changed")


def start_tagging(arguments: list[str], output: Path, change: Any = int) -> BaseProcess:
    """`predict.py` in a process of its own that starts fast and calls `change`; its log is beside the output."""
    log, arguments = output.with_suffix(".log"), [*arguments, "--output", str(output)]
    process = CONTEXT.Process(target=run_case, args=("predict", arguments, log, output.parent, change))
    process.start()
    return process


def check_row(row: dict[str, Any]) -> None:
    """Each word has a tag and a score; the words of entities are in spans, with type, mean score and text."""
    assert len(row["tags"]) == len(row["scores"]) == len(row["tokens"])
    assert all(score is None or 0 <= score <= 1 for score in row["scores"])
    inside = set()
    for span in row["spans"]:
        words = range(span["first_word"], span["last_word"] + 1)
        scores = [row["scores"][i] for i in words if row["scores"][i] is not None]
        assert {row["tags"][i][2:] for i in words} == {span["type"]}
        assert span["score"] == pytest.approx(sum(scores) / len(scores) if scores else None, abs=2e-6)
        text = row["text"][span["start"] : span["end"]] if "text" in row else " ".join(row["tokens"][i] for i in words)
        assert span["text"] == text
        inside |= set(words)
    assert inside == {i for i, tag in enumerate(row["tags"]) if tag != "O"}


@pytest.mark.parametrize("window", [{}, {"max_seq_length": 12, "doc_stride": 4}], ids=["whole-sentences", "windows"])
def test_metrics_are_those_of_the_output(window: Any, tiny_model: Path, run: Path, tmp_path: Path, tag: Tag) -> None:
    folder = train(tiny_model, tmp_path, **window) if window else run
    validations = read_metrics(folder, "validation")
    reported = max(validations, key=lambda line: line["f1"])  # the first of equals
    assert 0.1 < reported["f1"] < 1, "the comparison needs a model that is neither blind nor perfect"
    gold = read_lines(SAMPLE_DATA / "validation.json")
    for batch_size in (1, 8, 64):
        rows = tag(SAMPLE_DATA / "validation.json", None, "--batch-size", batch_size, model=folder / "model")
        assert [{"tokens": row["tokens"], "ner_tags": row["gold"]} for row in rows] == gold
        assert rows[0].keys() == {"tokens", "tags", "scores", "spans", "gold"}
        assert sum(len(row["spans"]) for row in rows) > 100
        for row in rows:
            check_row(row)
            assert None not in row["scores"]
        found, expected = ([row[name] for row in rows] for name in ("tags", "gold"))
        report = json.loads(Path("report/report.json").read_text())
        for name, seqeval_name in SCORES.items():
            score = getattr(seqeval_metrics, f"{seqeval_name}_score")(expected, found)
            assert reported[name] == pytest.approx(score, abs=1e-12)
            assert (report | report["overall"])[seqeval_name] == pytest.approx(score, abs=1e-12)
        Path("report/report.html").unlink()


BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
ODD_TEXTS = [
    "", " ", "a\u3000b", "👩‍👩‍👧 e\u0301", "東京へ", "\u202eabc", "don't--stop", "\x00\x1b[1m", "a\x1cb", "[sic]",
]  # fmt: skip
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(ODD_TEXTS)
words_of_columns = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["-DOCSTART-", "#", "# x", "# x = y", "\ufeff", " ", "\u2028", "\x85", "a b", "O", "word", "tag", "1", "1-2", "\0"]
)


@pytest.fixture(scope="module")
def tagger(model: Path) -> Tagger:
    tagger = Tagger.load(model)
    tagger.model.train()
    return tagger


@settings(suppress_health_check=list(HealthCheck))
@given(text=any_text, data=st.data())
@example(text="Ada Lovelace (x)", data=None)
def test_offsets_are_those_of_the_words_in_the_text(tagger: Tagger, text: str, data: Any) -> None:
    (sentence,) = tagger.tag([Sentence.of_text(text)])
    assert tagger.model.training and sentence.offsets is not None
    assert [text[start:end] for start, end in sentence.offsets] == sentence.words
    borders = [0, *(place for offsets in sentence.offsets for place in offsets), len(text)]
    assert borders == sorted(borders)
    assert not any(text[end:start].strip() for end, start in zip(borders[::2], borders[1::2])), "a word is missing"
    without_tokens = [tag for tag, score in zip(sentence.tags or [], sentence.scores or []) if score is None]
    assert without_tokens == ["O"] * len(without_tokens)
    if data is not None:  # whatever the tags are
        size = len(sentence.words)
        sentence.tags = data.draw(st.lists(st.sampled_from(BIO), min_size=size, max_size=size))
    row = sentence.as_json(tagger.settings.label_scheme)
    check_row(row)
    assert row["text"] == text and next(iter(row)) == "text"
    for span in row["spans"]:
        assert span["text"].startswith(sentence.words[span["first_word"]])
        assert span["text"].endswith(sentence.words[span["last_word"]])


ROWS = [
    (["Ada", "Lovelace", "lived", "in", "London", "."], ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]),
    (["Nobody", "came", "!"], ["O", "O", "O"]),
    (["(", "東", "京", ")", "and", "Rome"], ["O", "B-LOC", "I-LOC", "O", "O", "B-LOC"]),
]
CUT_ENTITY = {"text": "Ada Lovelace slept", "entities": [[0, 7, "PER"]]}
TEXTS = ["Ada Lovelace lived in London.", "Nobody came!", "(東京) and Rome"]
SPANS = [[(0, 12, "PER"), (22, 28, "LOC")], [], [(1, 3, "LOC"), (9, 13, "LOC")]]
GOOD = '{"tokens": ["Ada"], "ner_tags": ["B-PER"]}\n'


def columns(separator: str, *, start: str = "", count: bool = False, tagged: bool = False) -> str:
    sentences = []
    for words, tags in ROWS:
        cells = [[*([str(i)] * count), w, "POS", *([t] * tagged)] for i, (w, t) in enumerate(zip(words, tags), 1)]
        sentences.append("\n".join(map(separator.join, cells)))
    return start + "\n\n".join(sentences) + "\n"


LISTS = [{"tokens": words} for words, _ in ROWS]
WORD_ROWS = "Sentence #,Word\n" + "".join(f"{i},{word}\n" for i, (words, _) in enumerate(ROWS) for word in words)

# What a file holds, whether it has the text that words were split from, and whether it has tags.
FILES: dict[str, tuple[str, Any, bool, bool]] = {
    "json": ("rows.json", json.dumps(LISTS, indent=1), False, False),
    "json, tagged": ("rows.json", as_lines([{"tokens": words, "ner_tags": tags} for words, tags in ROWS]), False, True),
    "json lines, gzip": ("rows.jsonl.gz", gzip.compress(as_lines(LISTS).encode()), False, False),
    "csv of json": ("a.csv", as_table(["tokens"], [[json.dumps(words)] for words, _ in ROWS]), False, False),
    "csv of text": ("a.csv", as_table(["id", "text"], [["1", text] for text in TEXTS]), True, False),
    "tsv": ("a.tsv", as_table(["tokens", "id"], [[str(w), "1"] for w, _ in ROWS], delimiter="\t"), False, False),
    "a row per word": ("a.csv", WORD_ROWS, False, False),
    "parquet": ("a.parquet", to_parquet(pd.DataFrame(LISTS)), False, False),
    "conll": ("a.conll", columns("\t"), False, False),
    "conll with spaces": ("a.iob2", columns(" "), False, False),
    "conll .txt, tagged": ("a.txt", columns("\t", start="-DOCSTART-\n\n", tagged=True), False, True),
    "conll-u": ("a.conllu", columns("\t", start="# global.columns = ID FORM MISC\n", count=True), False, False),
    "entities, untagged": ("a.jsonl", as_lines([{"text": text} for text in TEXTS]), True, False),
    "entities": ("a.jsonl", as_lines([{"text": text, "label": s} for text, s in zip(TEXTS, SPANS)]), True, True),
    "text": ("a.txt", "\n".join(TEXTS), True, False),
    "text, gzip": ("a.txt.gz", gzip.compress("\n".join(TEXTS).encode()), True, False),
}  # fmt: skip


def expected_rows(model: Path, has_text: bool, tagged: bool) -> list[dict[str, Any]]:
    """What the output holds of a file."""
    rows = list(predict(model, TEXTS if has_text else [words for words, _ in ROWS]))
    assert [row["tokens"] for row in rows] == [words for words, _ in ROWS]
    return [row | ({"gold": tags} if tagged else {}) for row, (_, tags) in zip(rows, ROWS)]


@pytest.mark.parametrize(("file", "contents", "has_text", "tagged"), [pytest.param(*v, id=k) for k, v in FILES.items()])
def test_every_format_is_tagged(file: str, contents: Any, has_text: bool, tagged: bool, model: Path, tag: Tag) -> None:
    document = {"document": "a.txt, document 1"} if "DOCSTART" in str(contents) else {}
    assert tag(file, contents) == [document | row for row in expected_rows(model, has_text, tagged)]
    assert Path("report").exists() == tagged


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("EU\tORG\nrejects\tO\n\nGerman\tMISC\n", ["EU rejects", "German"], id="TABs, plain types"),
        pytest.param("EU B-ORG\nrejects O\n\nGerman B-MISC\n", ["EU rejects", "German"], id="tags in most"),
        pytest.param("We drove I-95\nand home\n", ["We drove I - 95", "and home"], id="text"),
    ],
)
def test_text_is_told_from_columns(content: str, expected: list[str], tag: Tag) -> None:
    assert [" ".join(row["tokens"]) for row in tag("a.txt", content)] == expected


def test_numbers_among_gold_tags_are_what_they_were_in_training_or_what_is_given(model: Path, tag: Tag) -> None:
    numbers, names = '{"tokens": ["EU", "a"], "ner_tags": [1, 0]}', ["O", "B-PER"]
    assert tag("a.jsonl", numbers, "--label-list", *names)[0]["gold"] == ["B-PER", "O"]
    assert tag("a.jsonl", numbers, model=change_settings(model, label_names=names))[0]["gold"] == ["B-PER", "O"]


def test_gold_entities_that_cut_a_word_become_what_is_said(tag: Tag, capfd: Capture) -> None:
    rows = tag("a.jsonl", as_lines([CUT_ENTITY]), "--bad-spans", "widen")
    assert rows[0]["gold"] == ["B-PER", "I-PER", "O"]
    assert "entities that cut a word, widened: 1" in capfd.readouterr().err


def test_gold_tags_unknown_to_the_model_are_told_or_refused(model: Path, tag: Tag, capfd: Capture) -> None:
    rows = '{"tokens": ["EU"], "ner_tags": ["S-ORG"]}\n' * 3
    before = tag("a.jsonl", rows)
    warning = "The model knows nothing of these gold tags, and their scores may mean little: S-ORG (3)"
    assert warning in capfd.readouterr().err
    strict = change_settings(model, metric_options={"mode": "strict", "scheme": "IOB2"})
    with pytest.raises(SystemExit):
        tag("a.jsonl", rows, model=strict)
    assert "a.jsonl, line 1: the tag 'S-ORG' is none of the model's, B-LOC" in capfd.readouterr().err
    assert read_lines(Path("out.jsonl")) == before, "a mistake has emptied an older output"


def test_the_report_of_a_training_is_not_replaced(run: Path, tag: Tag) -> None:
    shutil.copytree(run / "report", "report")
    before = Path("report/report.json").read_bytes()
    tag(SAMPLE_DATA / "test.json")
    assert Path("report/report.json").read_bytes() == before
    assert json.loads(Path("out-report/report.json").read_text())["sentences"] == 200


def test_spans_below_a_score_are_left_out_as_the_report_says(tag: Tag) -> None:
    whole = tag(SAMPLE_DATA / "validation.json")
    thresholds = json.loads(Path("report/report.json").read_text())["thresholds"]
    kept = tag(SAMPLE_DATA / "validation.json", None, "--min-score", "0.7")
    for before, after in zip(whole, kept):
        left = [span for span in before["spans"] if span["score"] >= 0.7]
        inside = {i for span in left for i in range(span["first_word"], span["last_word"] + 1)}
        tags = [name if i in inside else "O" for i, name in enumerate(before["tags"])]
        assert after == {**before, "tags": tags, "spans": left}
    overall = json.loads(Path("report/report.json").read_text())["overall"]
    assert thresholds["0.7"].items() <= overall.items() and 0 < overall["predicted"] < thresholds["0.0"]["predicted"]


def test_text_that_begins_like_a_list_is_text(tag: Tag) -> None:
    texts = ["[sic] Ada", "[deleted]", "['a' list", "(a, b)", "# Ada", "[]", '["Ada", "slept"]']
    assert [row["text"] for row in tag("a.txt", "\n".join(texts))] == texts
    rows = tag("b.jsonl", as_lines([{"text": text} for text in texts]))
    assert [row.get("text") for row in rows] == [*texts[:5], None, None]  # csv and json write lists so, too
    assert [row["tokens"] for row in rows[5:]] == [[], ["Ada", "slept"]]


@settings(suppress_health_check=list(HealthCheck))
@given(
    sentences=st.lists(
        st.lists(st.tuples(words_of_columns, st.sampled_from(BIO), st.sampled_from(BIO)), min_size=1, max_size=4),
        min_size=1, max_size=4,
    ),
    with_gold=st.booleans(),
)  # fmt: skip
def test_columns_read_back_or_are_refused(sentences: list[Any], with_gold: bool, tmp_path: Path) -> None:
    file, output, kept = tmp_path / "columns.conll", io.BytesIO(), []
    for sentence in sentences:
        words, gold, tags = map(list, zip(*sentence))
        try:
            written = Sentence(words, gold=gold if with_gold else None, tags=tags)
            write_predictions([written], output, ErrorReport("IOB2"), as_columns=True)
            kept.append([words, *([gold] if with_gold else []), tags])
        except TrialError as error:
            assert any(re.search(r"[\t\r\n\0]|^$|^ +$|^\ufeff|^# |^-DOC", word) for word in words), error
    file.write_bytes(output.getvalue())
    kept = [columns for columns in kept if columns[0] != ["-DOCSTART-"]]  # which stands between documents
    records = ner.formats.read_records(file, ReadOptions())
    assert [list(record.cells.values()) for record in records] == kept


@pytest.mark.parametrize(
    ("name", "options"),
    [("text", ""), ("json, tagged", "--format json"), ("conll", "--format conll"), ("json, tagged", ""), ("conll", "")],
)
def test_standard_input_is_tagged(name: str, options: str, model: Path, command: Command, capfd: Capture) -> None:
    _, contents, has_text, tagged = FILES[name]
    Path("in").write_text(contents)
    own = os.dup(0)
    try:
        os.dup2(os.open("in", os.O_RDONLY), 0)
        command("--model", model, "--input", "-", "--output", "-", *options.split())
    finally:
        os.dup2(own, 0)
    out, err = capfd.readouterr()
    is_taken_for_text = name != "text" and not options
    assert ("looks like rows of words: --format says" in err) == is_taken_for_text
    if is_taken_for_text:
        return
    assert [json.loads(line) for line in out.splitlines()] == expected_rows(model, has_text, tagged)
    assert ("Entities by type" in err) == tagged
    assert not Path("report").exists()


def test_the_command_stops_with_its_reader(model: Path) -> None:
    command = [sys.executable, "predict.py", f"--model={model}", "--input=-", "--output=-", "--batch-size=1"]
    with subprocess.Popen(command, cwd=PROJECT, stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write("\n".join(TEXTS * 1000).encode())
        process.stdin.close()
        assert json.loads(process.stdout.readline())["text"] == TEXTS[0]
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 0 and "Traceback" not in errors, errors


def test_the_command_imports_what_it_needs_and_no_more(model: Path, tmp_path: Path) -> None:
    files = ("--input", SAMPLE_DATA / "validation.json", "--output", "out.jsonl")
    command = ("-X", "importtime", PROJECT / "predict.py", "--model", model, *files)
    shown, errors = run_python(*command, folder=tmp_path)
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", errors, re.MULTILINE))
    assert {"torch", "transformers"} < imported and "Entities by type" in shown
    unwanted = {"accelerate", "boto3", "determined", "scipy", "seqeval.metrics", "sklearn", "tensorboard"}
    assert imported.isdisjoint(unwanted)


def test_bf16_changes_few_tags_and_auto_is_bf16_where_the_machine_knows_it(tag: Tag, monkeypatch: Patch) -> None:
    full, low = (tag(SAMPLE_DATA / "validation.json", None, "--precision", p) for p in ("fp32", "bf16"))
    pairs = [(a, b) for one, other in zip(full, low) for a, b in zip(one["tags"], other["tags"])]
    assert full != low and sum(a != b for a, b in pairs) < 0.02 * len(pairs)
    for knows_bf16, expected in ((False, full), (True, low)):
        monkeypatch.setattr(predict_module, "knows_bf16", lambda device, knows_bf16=knows_bf16: knows_bf16)
        assert tag(SAMPLE_DATA / "validation.json", None, "--precision", "auto") == expected


def test_python_gets_what_the_command_writes_as_it_comes(model: Path, tag: Tag) -> None:
    written, ask = tag("texts.txt", "\n".join(TEXTS)), mock.Mock(side_effect=str)
    rows = predict(str(model), map(ask, itertools.cycle(TEXTS)), batch_size=2)
    assert [next(rows) for _ in TEXTS] == written
    assert ask.call_count == 2 * predict_module.CHUNK_BATCHES
    tagger, score = Tagger.load(model), written[0]["spans"][0]["score"] + 1e-6
    assert [*predict(tagger, TEXTS)] == written
    assert len(next(predict(tagger, TEXTS, min_score=score))["spans"]) < len(written[0]["spans"])


@pytest.mark.parametrize(
    ("sentences", "options", "said"),
    [
        ("Ada slept", {}, "sentences: found one text, 'Ada slept'; accepted is a list of them."),
        (["a", {"text": "Ada"}], {}, "sentence 2: found {'text': 'Ada'}; accepted are texts and lists of words."),
        ([["Ada", None]], {}, "sentence 1: found ['Ada', None]; accepted are texts and lists of words."),
        (["a"], {"precision": "fp16"}, "precision: found 'fp16'; accepted are auto, fp32, bf16."),
        (["a"], {"batch_size": 0}, "batch_size: found 0; accepted is at least 1."),
    ],
)
def test_what_python_cannot_give_is_told(sentences: Any, options: Any, said: str, model: Path) -> None:
    with refuses(said):
        list(predict(model, sentences, **options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "."}, r"--model: cannot load .*Accepted is a folder with a model"),
        ({"--model": "no_head"}, "no weights for classifier.bias, classifier.weight"),
        ({"--model": "no_tokenizer"}, "--model: cannot load .*no_tokenizer"),
        ({"--model": "of_texts"}, "it is a BertForSequenceClassification, which does not tag words"),
        ({"--model": "run"}, "it is the folder of a run, whose model is run/model"),
        ({"--model": "no_numbers"}, "The model's outputs are no numbers"),
        ({"--input": "gone.json"}, "--input: .*gone.json does not exist"),
        ({"--input": "a.bin"}, "a.bin: ends in '.bin'; accepted .* with --format"),
        ({"--input": "uneven.jsonl"}, "uneven.jsonl, line 2: found 2 words but 1 tags"),
        ({"--input": "words.csv"}, "every row is a single word.* the sentence's id with --sentence-column"),
        ({"--input": "cut.jsonl"}, "entity 1.* cuts the word .*by --bad-spans: widen"),
        ({"--output": "out.csv"}, r"found out.csv; accepted are json lines \(.jsonl\) and CoNLL columns"),
        ({"--input": "one.jsonl"}, "line 2: tag 1 is the number 1.* by --label-list"),
        ({"--input": "bare.csv"}, "line 1: found Ada slept, 1, none of them a usual .* write a first row of names"),
        ({"--label-list": "O"}, "'B-PER'; accepted are O. Correct it, or add it to --label-list"),
        ({"--sentence-column": "doc"}, "no column 'doc'.* Set --sentence-column to"),
        ({"--text-column": "words"}, "no column 'words'; found tokens.* Set --text-column to"),
        ({"--label-column": "gold"}, "no column 'gold'.* Set --label-column to"),
        ({"--output": "in.jsonl"}, "--output: .*in.jsonl is the input too"),
        ({"--input": "*n.jsonl", "--output": "in.jsonl"}, "is the input too"),
        ({"--output": "gone/out.jsonl"}, "--output: cannot write .*No such file or directory"),
        ({"--model": "no_head", "--output": "no_head/new.json"}, "lies in the model's folder"),
        ({"--output": "/dev/full"}, "--output: cannot write /dev/full: No space left"),
        ({"--output": "busy/out.jsonl"}, "--output: cannot write .*busy/report"),
        ({"--input": "tab.jsonl", "--output": "out.conll"}, r"'a\\tb' cannot stand in a column"),
    ],
)
def test_a_mistake_is_told(change: Any, message: str, model: Path, command: Command, capsys: Capture) -> None:
    transformers.AutoModel.from_pretrained(model).save_pretrained(shutil.copytree(model, "no_head"))
    transformers.AutoModelForSequenceClassification.from_pretrained(model).save_pretrained("of_texts")
    shutil.copytree(model, "run/model")
    broken = transformers.AutoModelForTokenClassification.from_pretrained(model)
    torch.nn.init.constant_(broken.classifier.bias, torch.nan)
    broken.save_pretrained(shutil.copytree(model, "no_numbers"))
    shutil.copytree(model, "no_tokenizer", ignore=shutil.ignore_patterns("*token*", "vocab*"))
    files = {
        "in.jsonl": GOOD, "one.jsonl": GOOD + GOOD.replace('"B-PER"', "1"), "tab.jsonl": GOOD.replace("Ada", r"a\tb"),
        "uneven.jsonl": GOOD + GOOD.replace('"Ada"', '"Ada", "x"'), "bare.csv": "Ada slept,1\nBob came,2\n",
        "words.csv": "word,tag\nAda,B-PER\nslept,O\n", "cut.jsonl": json.dumps(CUT_ENTITY),
    }  # fmt: skip
    for name, lines in files.items():
        Path(name).write_text(lines)
    Path("busy").mkdir()
    for name in ("a.bin", "busy/report"):
        Path(name).touch()
    arguments = {"--model": model, "--input": "in.jsonl", "--output": "out.jsonl"} | change
    with pytest.raises(SystemExit) as stopped:
        command(*(part for pair in arguments.items() for part in pair))
    assert stopped.value.code == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "LOAD REPORT" not in line]
    assert re.search(message, errors[-1]), errors
    assert Path("in.jsonl").read_text() == GOOD


@pytest.mark.parametrize("option", [*(f"batch-size={n}" for n in ("0", "-1", "x")), "min-score=1.1", "min-score=nan"])
def test_a_wrong_number_is_a_wrong_command(option: str, command: Command) -> None:
    with pytest.raises(SystemExit) as stopped:
        command("--model", "m", "--input", "i", "--output", "o", f"--{option}")
    assert stopped.value.code == 2


@pytest.fixture(scope="module")
def long_input(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """Arguments that read it, and the whole output."""
    folder = tmp_path_factory.mktemp("long")
    rows = ({"tokens": row["tokens"] * 3} for row in read_lines(SAMPLE_DATA / "train.json"))
    file = write_lines(rows, folder / "long.jsonl")
    arguments = ["--model", str(model), "--input", file, "--batch-size", "2"]
    predict_module.main([*arguments, "--output", str(folder / "whole.jsonl")])
    return arguments, (folder / "whole.jsonl").read_text()


def assert_first_lines(output: Path, whole: str, *, may_cut: bool = False) -> int:
    """Check that there are whole lines only, from the beginning; returns how many.

    Linux looks for SIGKILL between the pages that it copies to a file: one time in a thousand it meets one there, and
    the last line ends with the page.
    """
    text = output.read_text() if output.exists() else ""
    assert whole.startswith(text), "other lines, or in another order"
    assert text == "" or text.endswith("\n") or (may_cut and len(text) % 4096 == 0), "half a line"
    return text.count("\n")


@pytest.mark.parametrize(("kind", "num_kills"), [(signal.SIGKILL, 3), (signal.SIGINT, 2), slow(signal.SIGKILL, 10)])
def test_a_kill_leaves_whole_lines(kind: int, num_kills: int, long_input: Any, tmp_path: Path) -> None:
    arguments, whole = long_input
    chance, counts, num_cut = random.Random(int(kind)), list[int](), 0
    for number in range(5 * num_kills):  # on a busy machine, some come too late
        output, enough = tmp_path / f"{number}.jsonl", chance.random() * len(whole)
        process = start_tagging(
            arguments, output, functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        )
        while process.is_alive() and (not output.exists() or output.stat().st_size < enough):
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        os.kill(process.pid or 0, kind)
        process.join()
        counts.append(assert_first_lines(output, whole, may_cut=kind == signal.SIGKILL))
        num_cut += output.exists() and output.read_bytes()[-1:] not in (b"", b"\n")
        if kind == signal.SIGINT and counts[-1] < whole.count("\n"):
            assert process.exitcode == 130
            errors = output.with_suffix(".log").read_text()
            assert "Interrupted: the output holds whole lines" in errors and "Traceback" not in errors
        if sum(0 < count < whole.count("\n") for count in counts) == num_kills:
            break
    else:
        pytest.fail(f"of {len(counts)} kills, less than {num_kills} came in time: {counts}")
    assert num_cut <= 1


def test_a_full_disk_leaves_whole_lines(long_input: tuple[list[str], str], tmp_path: Path) -> None:
    arguments, whole = long_input
    full = functools.partial(setrlimit, RLIMIT_FSIZE, (100_000, 100_000))
    process = start_tagging(arguments, tmp_path / "out.jsonl", full)
    process.join()
    assert process.exitcode == 1 and assert_first_lines(tmp_path / "out.jsonl", whole) > 10
    errors = (tmp_path / "out.log").read_text()
    assert "--output: cannot write" in errors and "File too large" in errors and "Traceback" not in errors


def tell_peak() -> None:
    """Have this process print at its end the most memory that it held, in KiB."""
    multiprocessing.util.Finalize(None, lambda: print(getrusage(RUSAGE_SELF).ru_maxrss), exitpriority=0)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(model: Path, tmp_path: Path) -> None:
    words = [f"{letter}{'x' * 1000}" for letter in "abcdef"]
    peaks, sizes, output = [], [], tmp_path / "out.jsonl"
    for num_sentences in (500, 3_500):
        rows = ({"tokens": [f"{word}{i}" for word in words], "ner_tags": ["O"] * 6} for i in range(num_sentences))
        file = write_lines(rows, tmp_path / "in.jsonl")
        process = start_tagging(["--model", str(model), "--input", file, "--batch-size", "8"], output, tell_peak)
        process.join()
        assert process.exitcode == 0 and output.read_text().count("\n") == num_sentences
        peaks.append(int(output.with_suffix(".log").read_text().split()[-1]) * 1024)
        sizes.append(output.stat().st_size)
    assert sizes[1] - sizes[0] > 18_000_000
    assert peaks[1] - peaks[0] < 0.2 * (sizes[1] - sizes[0]), peaks
