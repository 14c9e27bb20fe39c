"""Tag files or new text with an exported model. Nothing here imports Determined.

    python3 predict.py --model DIR/model --input FILE --output FILE [--batch-size N] [--help]

In Python: `from predict import predict`, or `Tagger` to tag more than once with one model; see `predict` below. To read
next: `ner/data.py` reads the input, as for a training, and `ner/sentences.py` writes the output.
"""

import gc
import sys
from typing import Any, Literal, TextIO, get_args

if __name__ == "__main__":  # a third of the start goes into these
    gc.disable()  # what is imported stays: there is no garbage to look for
    # transformers imports these wherever it finds them, and tagging needs none.
    hidden: Any = dict.fromkeys(("accelerate", "scipy", "sklearn"))
    sys.modules.update(hidden)

import argparse
import dataclasses
import functools
import itertools
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import tqdm
import transformers

import ner.data
import ner.formats
import ner.report
import ner.sources
import ner.windows
import ner_utils
from ner.cells import join_names
from ner.columns import find_columns
from ner.config import InputOptions, TaggerSettings
from ner.context import group_documents, name_paragraphs
from ner.formats.text import STANDARD_INPUT, is_plain_text
from ner.labels import OUTSIDE
from ner.sentences import Sentence, write_predictions
from transformer_trial import builders, registry
from transformer_trial.data import choose_evaluation_tokens, group_by_tokens
from transformer_trial.errors import TrialError, format_value, reason_of, set_up_log
from transformer_trial.files import refuse_unwritable, resolve
from transformer_trial.machine import keep_freed_memory, knows_bf16
from transformer_trial.parsing import find_choices, import_named

if __name__ == "__main__":
    for name in hidden:
        del sys.modules[name]
    gc.freeze()
    gc.enable()

logger = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16"]

# Sentences of 32 batches are read, sorted by length, tagged and written before the next ones are read.
CHUNK_BATCHES, USUAL_BATCH_SIZE = 32, 32

COLUMN_FORMATS = ("conll", "")  # of the endings, see `FILE_FORMATS`, whose output is CoNLL columns; "" is .tsv


class Tagger:
    """A model with its tokenizer and the settings that it was trained with, ready to tag.

    The model is one of transformers for token classification, the tokenizer a fast one. `batch_size` is how many
    windows the model sees at once, at most; by default as many as the device has use for.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int | None = None) -> None:
        if batch_size is not None and batch_size < 1:
            raise TrialError(f"batch_size: found {batch_size}; accepted is at least 1.")
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
        self.settings = settings = TaggerSettings.from_config(model.config)
        ner.windows.prepare_tokenizer(tokenizer)
        self.window_options = ner.windows.choose_window_options(tokenizer, model, settings)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        batch_size: int | None = None,
        *,
        trust_remote_code: bool = False,
        precision: Precision = "fp32",
    ) -> "Tagger":
        """Load the model in an exported folder, on a GPU if there is one. Raise a TrialError if it is not whole.

        `trust_remote_code` runs the code that an export takes along whose model is none of transformers' own. The
        `precision` bf16 rounds the weights, and a few tags are others; auto takes it where the machine is faster in it.
        """
        auto_class = transformers.AutoModelForTokenClassification
        has_mps = torch.backends.mps.is_available()
        device = torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
        if precision not in get_args(Precision):
            raise TrialError(f"precision: found {precision!r}; accepted are {', '.join(get_args(Precision))}.")
        if precision == "auto":
            precision = "bf16" if knows_bf16(device) else "fp32"
            logger.info("--precision auto is %s on this machine.", precision)
        try:
            if not Path(folder).is_dir():
                raise ValueError(f"there is no such folder (looked for {Path(folder).absolute()})")
            remote: dict[str, Any] = {"trust_remote_code": trust_remote_code}
            dtype: dict[str, Any] = {"dtype": torch.bfloat16} if precision == "bf16" else {}
            if Path(folder, "model", "config.json").exists() and not Path(folder, "config.json").exists():
                raise ValueError(f"it is the folder of a run, whose model is {Path(folder, 'model')}")
            config = builders.check_layers(transformers.AutoConfig.from_pretrained(folder, **remote))
            own_code, names = getattr(config, "auto_map", None), " ".join(config.architectures or [])
            if not own_code and re.search("For(?!TokenClassification)[A-Z]", names):
                raise ValueError(f"it is a {names}, which does not tag words")
            how: dict[str, Any] = {"config": config, "output_loading_info": True, **remote, **dtype}
            model, loaded = auto_class.from_pretrained(folder, **how)
            if missing := sorted(loaded["missing_keys"]):
                raise ValueError(f"it has no weights for {', '.join(missing[:4])}, {_why_missing(model, loaded)}")
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **remote)
            if builders.is_made_up(tokenizer):
                raise ValueError("it has no tokenizer")
            model.to(device)
            builders.check_vocabulary(model, tokenizer)
            builders.try_model(model, tokenizer)
        except Exception as error:
            reason = builders.why_code_was_not_run(error, auto_class, "give --trust-remote-code") or reason_of(error)
            accepted = "a folder with a model that tags words and its tokenizer, such as DIR/model of a training"
            raise TrialError(f"--model: cannot load {folder}: {reason}. Accepted is {accepted}.") from error
        return cls(model, tokenizer, batch_size)

    def tag(self, sentences: Iterable[Sentence]) -> Iterator[Sentence]:
        """Fill in tags and scores, chunk by chunk, in the order of the sentences. Each word gets exactly one tag.

        A model that was trained with its documents as context sees those that the sentences name.
        """
        for chunk in self.chunks(sentences):
            self._tag_chunk(chunk)
            yield from chunk

    def chunks(self, sentences: Iterable[Sentence]) -> Iterator[list[Sentence]]:
        """Cut sentences into what is tagged at once: of the sentences in it alone does a chunk's outcome depend."""
        return group_documents(sentences, CHUNK_BATCHES * (self.batch_size or USUAL_BATCH_SIZE))

    def _tag_chunk(self, chunk: list[Sentence]) -> None:
        starts = np.cumsum([0, *(len(sentence.words) for sentence in chunk)])
        label_ids, scores = np.full(starts[-1], ner.windows.NO_POSITION), np.full(starts[-1], np.nan)
        rows: dict[str, list[Any]] = {"tokens": [s.words for s in chunk], "document": [s.document for s in chunk]}
        columns = ner_utils.tokenize_and_align_labels(rows, 0, self.tokenizer, self.labels, **self.window_options)
        windows = [dict(zip(columns, values)) for values in zip(*columns.values())]
        lengths = [len(window["input_ids"]) for window in windows]
        collate = ner.windows.WordCollator(self.tokenizer, list(columns))
        groups = group_by_tokens(lengths, choose_evaluation_tokens(self.model.device), self.batch_size)
        for batch in ner_utils.predict_words(self.model, (collate([windows[i] for i in group]) for group in groups)):
            numbers, label_ids_of_batch = batch.words()
            label_ids[numbers], scores[numbers] = label_ids_of_batch, batch.scores()
        tags = [[*self.labels, OUTSIDE][i] for i in label_ids.tolist()]  # NO_POSITION, -1, finds the last one
        known = [None if math.isnan(score) else score for score in scores.tolist()]
        for sentence, start, end in zip(chunk, starts, starts[1:]):
            sentence.tags, sentence.scores = tags[start:end], known[start:end]


def _why_missing(model: Any, loaded: Any) -> str:
    if not (odd := sorted(name for name in loaded["unexpected_keys"] if "pooler" not in name)):
        return "so it was not trained to tag words"
    if getattr(model.config, "auto_map", None):
        return "as it has a head of its own, and brings the code for it. Read that; to run it: --trust-remote-code"
    advice = "Load it by the class that it was trained with, and give it to `predict.Tagger`"
    return f"but for {', '.join(odd[:4])}, of a head that transformers does not have. {advice}"


def predict(
    model: str | Path | Tagger,
    sentences: Iterable[str | Sequence[str]],
    batch_size: int | None = None,
    precision: Precision = "fp32",
    min_score: float = 0,
) -> Iterator[dict[str, Any]]:
    """Tag sentences. Each is a text, which is split into words, or a list of words.

    `model` is the folder of an exported one, or, to load it once for several calls, a `Tagger`, which has a batch size
    and a precision of its own. Spans that score below `min_score` are left out.

    Yields:
        For each sentence, in their order, what a line of `predict.py`'s output holds: `tokens`, `tags`, `scores`
        and `spans`, and `text` if it was one.

    Example:
        for row in predict("outputs/run/model", ["Ada Lovelace lived in London."]):
            print(row["spans"])
    """
    tagger = model if isinstance(model, Tagger) else Tagger.load(model, batch_size, precision=precision)
    if isinstance(sentences, str):
        raise TrialError(f"sentences: found one text, {format_value('', sentences)}; accepted is a list of them.")

    def rows() -> Iterator[dict[str, Any]]:
        for sentence in tagger.tag(itertools.starmap(_as_sentence, enumerate(sentences, start=1))):
            sentence.leave_out(tagger.settings.label_scheme, min_score)
            yield sentence.as_json(tagger.settings.label_scheme)

    return rows()


def _as_sentence(number: int, given: Any) -> Sentence:
    if isinstance(given, str):
        return Sentence.of_text(given)
    if not isinstance(given, (list, tuple)) or not all(isinstance(word, str) for word in given):
        found = format_value("", given)
        raise TrialError(f"sentence {number}: found {found}; accepted are texts and lists of words.")
    return Sentence([*given])


def open_source(options: argparse.Namespace) -> ner.sources.Source:
    """Open what `--input` names: files as in training, lines of text, a data set of the hub, or standard input."""
    output = resolve("--output", options.output)
    if ner.formats.FILE_FORMATS.get(output.suffix.lower(), "json") not in ("json", *COLUMN_FORMATS):
        raise TrialError(f"--output: found {output.name}; accepted are json lines (.jsonl) and CoNLL columns (.conll).")
    is_model = options.output != "-" and os.path.exists(os.path.join(options.model, "config.json"))
    if is_model and Path(options.model).resolve() in output.parents:
        raise TrialError(f"--output: {output} lies in the model's folder. Name a file elsewhere.")
    how = InputOptions.model_construct(**{key: getattr(options, key, None) for key in InputOptions.model_fields})
    if options.loader is not None:
        rows = functools.partial(import_named("--loader", options.loader), options.input)
        return ner.sources.source_of_rows(options.input, rows, how)
    if options.input.startswith(ner.sources.HUB):
        return ner.sources.source_of_hub("--input", options.input, how)
    as_text = how if how.file_format else how.model_copy(update={"file_format": "text"})
    if options.input != "-":
        paths = ner.sources.find_files("--input", options.input)
        if options.output != "-" and os.path.exists(output) and any(map(output.samefile, paths)):
            raise TrialError(f"--output: {output} is the input too. Name another file.")
        is_text = how.file_format is None and is_plain_text(paths[0], how, ner.sources.NUM_FIRST)
        return ner.sources.source_of_files("--input", options.input, as_text if is_text else how)
    records = ner.formats.read_records(STANDARD_INPUT, as_text)
    first = list(itertools.islice(records, ner.sources.NUM_FIRST))  # which the source begins with each time
    if how.file_format is None and first and re.match(r"[\[{].*[\]}]$|[^ ]+\t", first[0].cells["text"]):
        logger.warning("Standard input is read as text, but looks like rows of words: --format says what it is.")
    return ner.sources.Source(str(STANDARD_INPUT), as_text, lambda: itertools.chain(first, records))


def check_gold(tagged: Iterable[Sentence], tagger: Tagger) -> Iterator[Sentence]:
    """Pass sentences on, and say at the end what was changed in reading them, and which tags the model cannot predict.

    In strict mode such a gold tag is a TrialError.
    """
    odd, notes = Counter[str](), Counter[str]()
    for sentence in tagged:
        notes.update(sentence.notes)
        for tag in sentence.gold or []:
            if tag not in tagger.labels:
                odd[tag] += 1
                if tagger.settings.metric_options["mode"] == "strict":
                    advice = "its scores go strictly by their scheme. Convert the tags, or leave them out"
                    found = f"the tag {tag!r} is none of the model's, {join_names(tagger.labels)}"
                    raise TrialError(f"{sentence.place}: {found}; {advice}.")
        yield sentence
    for note, count in notes.items():
        logger.warning("%s: %d", note, count)
    if odd:
        tags = ", ".join(f"{tag} ({count:,})" for tag, count in odd.most_common(10))
        logger.warning("The model knows nothing of these gold tags, and their scores may mean little: %s", tags)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tag files or new text with an exported model.")
    what = "Folder of an exported model; or det://NAME[:VERSION] or a checkpoint's uuid, of a Determined cluster."
    parser.add_argument("--model", required=True, metavar="MODEL", help=what)
    what = "File, folder, glob in quotes, hf://NAME[:SPLIT] of the Hugging Face hub, or - for standard input."
    parser.add_argument("--input", required=True, metavar="FILE", help=what)
    how = "Json lines, or CoNLL columns by its ending; - for json lines."
    parser.add_argument("--output", required=True, metavar="FILE", help=how)
    loader = "Function of your own that yields the rows of the input, as in docs/extending.md."
    parser.add_argument("--loader", metavar="MODULE:NAME", help=loader)
    for key, field in InputOptions.model_fields.items():
        choices, option = find_choices(field) or None, InputOptions.setting(key)
        parser.add_argument(option, dest=key, choices=choices, default=field.default, help=field.description)
    numbers = "What numbers among the gold tags stand for, from 0; by default what they stood for in training."
    parser.add_argument("--label-list", nargs="+", metavar="TAG", help=numbers)
    code = "Run the Python code that the model's folder brings, with your rights."
    parser.add_argument("--trust-remote-code", action="store_true", help=code)
    parser.add_argument("--batch-size", type=int, metavar="N", help="Sentences to tag at once, at most; same tags.")
    precision = "Arithmetic, by default fp32; auto is bf16 where the machine has instructions for it."
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help=precision)
    parser.add_argument("--min-score", type=float, default=0, metavar="X", help="Leave out spans that score below X.")
    options = parser.parse_args(arguments)
    if not 0 <= options.min_score <= 1:
        parser.error(f"--min-score: found {options.min_score}; accepted is a number from 0 to 1")
    if options.batch_size is not None and options.batch_size < 1:
        parser.error(f"--batch-size: found {options.batch_size}; accepted is at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    set_up_log(logging.INFO)
    keep_freed_memory()
    builders.silence_progress_bars()
    options = parse_arguments(arguments)
    try:
        tagger, source, sentences = open_input(options)
        tagged = tqdm.tqdm(check_gold(tagger.tag(sentences), tagger), unit=" sentences", disable=None)
        write_tagged(options, tagger, source.name, tagged)
    except TrialError as error:
        logger.error("%s", error)
        sys.exit(1)
    except KeyboardInterrupt:
        logger.error("Interrupted: the output holds whole lines, for the first sentences only.")
        sys.exit(130)
    except BrokenPipeError:  # whoever reads the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_scores(text: str, stream: TextIO) -> None:
    """Print a text, with what the stream's encoding does not have as its code points."""
    encoding = stream.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python tries once more at its end
        raise OSError(error.errno, error.strerror, "the scores") from None


def open_input(options: argparse.Namespace) -> tuple[Tagger, ner.sources.Source, Iterator[Sentence]]:
    """Open the input and load the model, by whose settings the sentences are read."""
    source = open_source(options)
    model = registry.find_model("--model", options.model)
    how_to_load = {"trust_remote_code": options.trust_remote_code, "precision": options.precision}
    tagger = Tagger.load(model, options.batch_size, **how_to_load)
    task = getattr(tagger.model.config, "finetuning_task", None) or "ner"
    outside = source.options.outside_label or tagger.settings.outside_label
    how = source.options.model_copy(update={"outside_label": outside})
    source = dataclasses.replace(source, options=how)
    columns = find_columns(source.first_records(), how, task)
    logger.info("%s: %s", source.name, ner.data.describe_columns(columns))
    in_source = source.label_names(columns.label) if columns.label is not None else ()
    sentences = ner.data.read_sentences(source, columns, in_source or options.label_list or tagger.settings.label_names)
    if (context := tagger.settings.document_context) != "none":
        if is_text := how.file_format == "text":
            sentences = name_paragraphs(sentences)
        is_marked = is_text or columns.document or any(record.document for record in source.first_records())
        alone = "marks none: each sentence is tagged alone. Mark them as in training, or by --document-column"
        marks = "has the paragraphs of a text, which empty lines end" if is_text else "has some" if is_marked else alone
        logger.info("The model was trained on documents (%s); %s %s.", context, source.name, marks)
    return tagger, source, sentences


def write_tagged(
    options: argparse.Namespace, tagger: Tagger, source: str, tagged: Iterable[Sentence]
) -> ner.report.ErrorReport:
    """Write tagged sentences to the output; with gold tags, print scores and write `report/` beside it."""
    tagged = iter(tagged)
    first = list(itertools.islice(tagged, 1))  # before an older output is emptied for nothing
    report = tagger.settings.build_report()
    to_stdout, path = options.output == "-", Path(options.output).expanduser()
    as_columns = not to_stdout and ner.formats.FILE_FORMATS.get(path.suffix.lower()) in COLUMN_FORMATS
    with refuse_unwritable("--output", path):
        target: Any = sys.stdout.fileno() if to_stdout else path
        with open(target, "wb", buffering=0, closefd=not to_stdout) as output:
            whole = itertools.chain(first, tagged)
            write_predictions(whole, output, report, as_columns=as_columns, min_score=options.min_score)
        if report.num_sentences:
            found = report.as_dict()
            print_scores(ner.report.report_text(found), sys.stderr if to_stdout else sys.stdout)
            if not to_stdout:
                of_training = (path.parent / "report" / "data.json").exists()
                folder = path.parent / (f"{path.stem}-report" if of_training else "report")
                ner.report.write_report(found, folder, f"{source} by {options.model}")
                logger.info("The report is %s", folder / "report.html")
    return report


if __name__ == "__main__":
    main()
