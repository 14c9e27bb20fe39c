"""Tag files or new text with an exported model. Nothing here imports Determined.

python3 predict.py --model DIR/model --input FILE --output FILE [--batch-size N] [--help]
"""

import argparse
import contextlib
import glob
import itertools
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tqdm
import transformers

import ner.cells
import ner.data
import ner.formats
import ner.report
import ner.windows
import ner_utils
from ner.labels import OUTSIDE, entity_tag, find_entities
from transformer_trial.data import choose_evaluation_tokens, group_by_tokens
from transformer_trial.errors import TrialError

logger = logging.getLogger(__name__)

CHUNK_BATCHES, USUAL_BATCH_SIZE = 32, 32
"""Sentences of so many batches are read, sorted by length, tagged and written before the next ones are read."""

LIST_TEXT = re.compile(r"""[ \t\r\n]*\[\s*(['"].*)?\]\s*$""", re.DOTALL)
"""A cell that writes down a list of words, as csv does; "[sic]" is text."""

NO_CELL = re.compile(r"[\t\r\n\0]|^(\ufeff|-DOCSTART-|# \S+ = | *$)")
"""What a word of CoNLL columns does not hold or begin with: readers would take it for something else."""

OPTION_NAMES = {
    "data.text_column_name": "--text-column",
    "data.label_column_name": "--label-column",
    "data.sentence_column_name": "--sentence-column",
    "data.file_format": "--format",
    "data.label_list, such as [O, B-PER, I-PER]": "--label-list, such as O B-PER I-PER",
    "data.label_list": "--label-list",
}
"""What the settings of a training are called here."""


@dataclass
class Sentence:
    """A sentence, and what is known and said of it."""

    words: list[str]
    text: str | None = None
    """What the words were split from, if they were."""
    offsets: list[tuple[int, int]] | None = None
    """Start and end of each word in the text, in characters."""
    gold: list[str] | None = None
    place: str = ""
    tags: list[str] | None = None
    """One for each word, from the model."""
    scores: list[float | None] | None = None
    """The probability of each tag; None for a word that the tokenizer has no sub-token for, which is O."""

    def describe(self) -> tuple[list[str], str]:
        return self.words, self.place

    @classmethod
    def of_text(cls, text: str, place: str = "") -> "Sentence":
        pieces = ner.cells.split_text(text)
        return cls([word for word, *_ in pieces], text, [(start, end) for _, start, end in pieces], place=place)


class Tagger:
    """A model with its tokenizer and the settings that it was trained with, ready to tag.

    Args:
        model: Of transformers, for token classification. Its config says how long windows are (`ner`), where NERTrial
            has trained it; otherwise they are as long as the model takes.
        tokenizer: A fast one.
        batch_size: Windows that the model sees at once, at most; by default as many as the device has use for.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int | None = None) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        config = model.config
        self.labels = [config.id2label[i] for i in range(config.num_labels)]
        settings = getattr(config, "ner", None) or {}
        self.label_names = settings.get("label_names")  # what numbers among the tags of the training data stood for
        self.label_scheme = settings.get("label_scheme")
        self.metric_options = settings.get("metric_options", {"mode": "default", "scheme": None})
        ner.windows.prepare_tokenizer(tokenizer)
        self.max_seq_length = ner.windows.choose_max_seq_length(tokenizer, model, settings.get("max_seq_length"))
        self.doc_stride = ner.windows.choose_doc_stride(tokenizer, self.max_seq_length, settings.get("doc_stride"))
        self.collate = ner.windows.WordCollator(tokenizer, tokenizer.model_input_names)

    @classmethod
    def load(cls, folder: str | Path, batch_size: int | None = None) -> "Tagger":
        """The tagger of an exported model's folder, on a GPU if there is one.

        Raises:
            TrialError: If the folder does not hold a whole model.
        """
        try:
            if not Path(folder).is_dir():
                raise ValueError(f"there is no such folder (looked for {Path(folder).absolute()})")
            auto_class = transformers.AutoModelForTokenClassification
            model, loaded = auto_class.from_pretrained(folder, output_loading_info=True)
            if missing := sorted(loaded["missing_keys"]):
                raise ValueError(f"it has no weights for {', '.join(missing[:4])}, so it was not trained to tag words")
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers 5 makes one up
                raise ValueError("it has no tokenizer")
        except Exception as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise TrialError(
                f"--model: cannot load {folder}: {reason}. Accepted is a folder with a model for token classification "
                "and its tokenizer, such as DIR/model of a training."
            ) from error
        has_mps = torch.backends.mps.is_available()
        model.to("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
        return cls(model, tokenizer, batch_size)

    def tag(self, sentences: Iterable[Sentence]) -> Iterator[Sentence]:
        """Fill in tags and scores, chunk by chunk, in the order of the sentences; each word gets exactly one."""
        sentences = iter(sentences)
        while chunk := list(itertools.islice(sentences, CHUNK_BATCHES * (self.batch_size or USUAL_BATCH_SIZE))):
            self._tag_chunk(chunk)
            yield from chunk

    @torch.inference_mode()
    def _tag_chunk(self, chunk: list[Sentence]) -> None:
        for sentence in chunk:
            sentence.tags, sentence.scores = [OUTSIDE] * len(sentence.words), [None] * len(sentence.words)
        words = [sentence.words for sentence in chunk]
        windows = list(ner.windows.cut_windows(words, self.tokenizer, self.max_seq_length, self.doc_stride))
        windows = [window for window in windows if any(p != ner.windows.NO_POSITION for _, p in window.scored)]
        lengths = [len(window.inputs["input_ids"]) for window in windows]
        was_training = self.model.training
        self.model.eval()
        for numbers in group_by_tokens(lengths, choose_evaluation_tokens(self.model.device), self.batch_size):
            batch = [windows[i] for i in numbers]
            rows = [
                {**window.inputs, "word_positions": [position for _, position in window.scored]} for window in batch
            ]
            tensors = {name: tensor.to(self.model.device) for name, tensor in self.collate(rows).items()}
            positions = tensors.pop("word_positions")
            logits = ner_utils.select_words(self.model(**tensors).logits, positions)
            scores, label_ids = logits.softmax(-1).amax(-1).tolist(), logits.argmax(-1).tolist()
            for window, of_words, of_scores in zip(batch, label_ids, scores):
                sentence = chunk[window.sentence]
                for (word, position), label_id, score in zip(window.scored, of_words, of_scores):
                    if position != ner.windows.NO_POSITION:
                        sentence.tags[word], sentence.scores[word] = self.labels[label_id], score  # type: ignore[index]
        self.model.train(was_training)

    def spans(self, sentence: Sentence) -> list[dict[str, Any]]:
        """The entities that the tags of a tagged sentence mark, as seqeval's default mode reads them."""
        tags = [entity_tag(tag, self.label_scheme) for tag in sentence.tags or []]
        spans = []
        for entity_type, first, last in find_entities(tags):
            scores = [score for score in (sentence.scores or [])[first : last + 1] if score is not None]
            span: dict[str, Any] = {"type": entity_type, "first_word": first, "last_word": last}
            if sentence.text is None or sentence.offsets is None:
                span["text"] = " ".join(sentence.words[first : last + 1])
            else:
                span["start"], span["end"] = sentence.offsets[first][0], sentence.offsets[last][1]
                span["text"] = sentence.text[span["start"] : span["end"]]
            spans.append({**span, "score": round(sum(scores) / len(scores), 6) if scores else None})
        return spans

    def as_json(self, sentence: Sentence) -> dict[str, Any]:
        """What is written of a tagged sentence as a line of json."""
        scores = [None if score is None else round(score, 6) for score in sentence.scores or []]
        row: dict[str, Any] = {} if sentence.text is None else {"text": sentence.text}
        row |= {"tokens": sentence.words, "tags": sentence.tags, "scores": scores, "spans": self.spans(sentence)}
        return row if sentence.gold is None else {**row, "gold": sentence.gold}


def predict(
    model: str | Path, sentences: Iterable[str | Sequence[str]], batch_size: int | None = None
) -> Iterator[dict[str, Any]]:
    """Tag sentences with an exported model.

    Args:
        model: Its folder.
        sentences: Each a text, which is split into words, or a list of words.
        batch_size: Windows that the model sees at once, at most; by default as many as the device has use for.

    Yields:
        For each sentence, in their order, what a line of `predict.py`'s output holds: `tokens`, `tags`, `scores`
        and `spans`, and `text` if it was one.

    Example:
        for row in predict("outputs/run/model", ["Ada Lovelace lived in London."]):
            print(row["spans"])
    """
    tagger = Tagger.load(model, batch_size)
    as_sentences = (Sentence.of_text(s) if isinstance(s, str) else Sentence(list(s)) for s in sentences)
    return (tagger.as_json(sentence) for sentence in tagger.tag(as_sentences))


def read_sentences(
    source: ner.data.Source, config: ner.data.NERDataConfig, task: str, label_names: Sequence[str] | None
) -> Iterator[Sentence]:
    """The sentences of a source, with gold tags where it has them; `label_names` are what numbers stand for there.

    Raises:
        TrialError: If there is none, or at the first one that is not right.
    """
    records = source.records()
    first = list(itertools.islice(records, ner.data.NUM_FIRST))
    if not first:
        raise TrialError(f"{source.name}: has no rows. Give at least one.")
    columns = ner.data.find_columns(first[0], config, task, needs_tags=False, following=first[1:])
    label_names = (source.label_names(columns.label) if columns.label is not None else None) or label_names
    records = itertools.chain(first, records)
    if columns.sentence is not None:
        records = ner.data.join_words(records, columns)
    for record in records:
        if columns.num_unnamed not in (0, len(record.cells)):
            raise TrialError(
                f"{record.place}: found {len(record.cells)} columns, but {columns.num_unnamed} in the first sentence. "
                "Give all files the same columns."
            )
        text: Any = record.cells.get(columns.text)
        label = record.cells.get(columns.label) if columns.label is not None else None
        is_plain = config.file_format == "text" or columns.has_spans
        is_text = isinstance(text, str) and (is_plain or not LIST_TEXT.match(text))
        try:
            sentence = Sentence.of_text(text) if is_text else Sentence([])
            if label is not None:
                words, gold = ner.cells.parse_cells(text, label, label_names, has_spans=columns.has_spans)
                if sentence.words != words:  # a text with blanks between words is split there only
                    sentence = Sentence(words)
                sentence.gold = gold
                "".join(gold).encode()
            elif not is_text and text not in ([], "[]"):
                sentence.words = ner.cells.read_words(text)
        except ValueError as error:
            problem = "found half of a character." if isinstance(error, UnicodeError) else error
            raise TrialError(f"{record.place_of(error)}: {problem} (Read from the column {columns.text!r}.)") from None
        sentence.place = record.place
        yield sentence


def open_source(options: argparse.Namespace, config: ner.data.NERDataConfig) -> ner.data.Source:
    """What `--input` names: files as of a training, lines of text, or standard input."""
    if options.input != "-":
        return ner.data.source_of_files("--input", options.input, config, min_columns=1)
    stdin = ner.formats.STANDARD_INPUT
    records = ner.formats.read_records(stdin, config.file_format, ner.data.names_columns, min_columns=1)
    return ner.data.Source(str(stdin), lambda: records, str, lambda column: ())


def is_plain_text(path: Path) -> bool:
    """Whether a .txt file is text rather than CoNLL columns, which have a TAB in each line, or tags in most."""
    if not path.name.lower().removesuffix(".gz").endswith(".txt"):
        return False
    lines = (line.rstrip() for line in ner.formats.read_lines(path))
    words = (line for line in lines if line and not line.startswith(("#", "-DOCSTART-")))
    first = list(itertools.islice(words, ner.data.NUM_FIRST))
    has_tabs = bool(first) and all("\t" in line for line in first)
    is_text = not has_tabs and 2 * sum(bool(ner.cells.TAGGED_LINE.search(line)) for line in first) <= len(first)
    kind = "text, a sentence a line" if is_text else "CoNLL columns"
    logger.info("%s looks like %s; --format says otherwise.", path, kind)
    return is_text


def check_gold(tagged: Iterable[Sentence], tagger: Tagger) -> Iterator[Sentence]:
    """Let sentences pass, and tell of gold tags that the model cannot predict.

    Raises:
        TrialError: At the first one, where scores go strictly by the scheme of the model's tags.
    """
    odd: Counter[str] = Counter()
    for sentence in tagged:
        for tag in sentence.gold or []:
            if tag not in tagger.labels:
                odd[tag] += 1
                if tagger.metric_options["mode"] == "strict":
                    raise TrialError(
                        f"{sentence.place}: the tag {tag!r} is none of the model's, {', '.join(tagger.labels)}; its "
                        "scores go strictly by their scheme. Convert the tags, or leave them out."
                    )
        yield sentence
    if odd:
        tags = ", ".join(f"{tag} ({count:,})" for tag, count in odd.most_common(10))
        logger.warning("The model knows nothing of these gold tags, and their scores may mean little: %s", tags)


def as_columns(sentence: Sentence) -> str:
    """A sentence as CoNLL columns, TAB between them: word, gold tag if there is one, predicted tag.

    Raises:
        TrialError: If a word cannot stand in a column.
    """
    columns = [sentence.words, *([sentence.gold] if sentence.gold is not None else []), sentence.tags or []]
    for word in sentence.words:
        if NO_CELL.search(word) and sentence.words != ["-DOCSTART-"]:
            raise TrialError(
                f"{sentence.place}: the word {word!r} cannot stand in a column. Write json lines: --output FILE.jsonl"
            )
    return "".join("\t".join(cells) + "\n" for cells in zip(*columns))


def write_predictions(
    tagged: Iterable[Sentence], tagger: Tagger, output: Any, report: ner.report.ErrorReport, *, columns: bool = False
) -> None:
    """Write tagged sentences, and add those with gold tags to a report.

    Args:
        tagged: From `tagger`.
        tagger: What tagged them.
        output: An unbuffered binary file. It gets each sentence in a call of its own, so that an interruption leaves
            whole lines. (Linux itself may cut one, at the end of a page, if SIGKILL comes while it copies the line.)
        report: Of the errors.
        columns: Write CoNLL columns instead of json lines.
    """
    for sentence in tagged:
        if sentence.gold is not None:
            report.add(sentence.gold, sentence.tags or [], sentence.describe)
        # A terminal would act on what some words hold.
        text = as_columns(sentence) if columns else json.dumps(tagger.as_json(sentence), ensure_ascii=output.isatty())
        line, written = f"{text}\n".encode(), 0
        try:
            while written < len(line):
                written += output.write(line[written:])
        except OSError:  # the disk is full, say
            with contextlib.suppress(OSError):  # of what is no file, such as a pipe
                output.truncate(output.tell() - written)
            raise


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tag files or new text with an exported model.")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of an exported model")
    parser.add_argument("--input", required=True, metavar="FILE", help="file, glob in quotes, or - for standard input")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="json lines, or CoNLL columns by its ending; - for json lines"
    )
    formats = ("text", *ner.formats.FORMAT_NAMES)
    parser.add_argument("--format", choices=formats, help="format of the input; by default its ending tells")
    parser.add_argument("--text-column", metavar="NAME", help="column of the words or the text")
    parser.add_argument("--label-column", metavar="NAME", help="column of the gold tags or entities")
    parser.add_argument("--sentence-column", metavar="NAME", help="column of the sentence's id, if a row is a word")
    parser.add_argument(
        "--label-list",
        nargs="+",
        metavar="TAG",
        help="what numbers among the gold tags stand for, from 0; by default what they stood for in training",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="tag so many sentences at once, at most; the tags are the same"
    )
    options = parser.parse_args(arguments)
    if options.batch_size is not None and options.batch_size < 1:
        parser.error(f"--batch-size: found {options.batch_size}; accepted is at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    options = parse_arguments(arguments)
    try:
        tag_file(options)
    except TrialError as error:
        message = str(error)
        for key, option in OPTION_NAMES.items():
            message = message.replace(key, option)
        logger.error("%s", message)
        sys.exit(1)
    except KeyboardInterrupt:
        logger.error("Interrupted: the output holds whole lines, for the first sentences only.")
        sys.exit(130)
    except BrokenPipeError:  # whoever reads the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tag_file(options: argparse.Namespace) -> None:
    """What the command line asks for; with gold tags, print the metrics too, and write `report/` beside the output."""
    to_stdout, path = options.output == "-", Path(options.output).expanduser()
    pattern = os.path.expanduser(options.input)
    inputs = [Path(name) for name in (pattern, *sorted(glob.glob(pattern, recursive=True))) if os.path.isfile(name)]
    if not to_stdout and path.exists() and any(path.samefile(name) for name in inputs):
        raise TrialError(f"--output: {path} is the input too. Name another file.")
    is_text = options.input == "-" or (options.format is None and any(map(is_plain_text, inputs[:1])))
    config = ner.data.NERDataConfig(
        train_file=options.input,
        file_format=options.format or ("text" if is_text else None),
        text_column_name=options.text_column,
        label_column_name=options.label_column,
        sentence_column_name=options.sentence_column,
    )
    source = open_source(options, config)
    tagger = Tagger.load(options.model, options.batch_size)
    task = getattr(tagger.model.config, "finetuning_task", None) or "ner"
    mode = tagger.metric_options
    report = ner.report.ErrorReport(tagger.label_scheme, mode["mode"], mode["scheme"])
    columns = not to_stdout and ner.formats.FILE_FORMATS.get(path.suffix.lower()) in ("conll", "")
    sentences = read_sentences(source, config, task, options.label_list or tagger.label_names)
    tagged = iter(tqdm.tqdm(check_gold(tagger.tag(sentences), tagger), unit=" sentences", disable=None))
    first = list(itertools.islice(tagged, 1))  # before an older output is emptied for nothing
    try:
        target: Any = sys.stdout.fileno() if to_stdout else path
        with open(target, "wb", buffering=0, closefd=not to_stdout) as output:
            write_predictions(itertools.chain(first, tagged), tagger, output, report, columns=columns)
        if report.num_sentences:
            found = report.as_dict()
            print(ner.report.report_text(found), file=sys.stderr if to_stdout else sys.stdout)
            if not to_stdout:
                of_training = (path.parent / "report" / "data.json").exists()
                folder = path.parent / (f"{path.stem}-report" if of_training else "report")
                ner.report.write_report(found, folder, f"{source.name} by {options.model}")
                logger.info("The report is %s", folder / "report.html")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TrialError(
            f"--output: cannot write {error.filename or path}: {error.strerror or error}. Name a file in a "
            "folder that exists, is yours to write in and has room."
        ) from None


if __name__ == "__main__":
    main()
