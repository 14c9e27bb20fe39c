"""What the configuration says of named-entity recognition, and what the config of an exported model keeps of it."""

from collections.abc import Iterator, Set
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator

from ner.context import DocumentContext
from ner.report import ErrorReport
from transformer_trial.config import DataConfig
from transformer_trial.errors import ConfigError, TrialError, explain_value
from transformer_trial.parsing import Section, parse_sections

FileFormat = Literal["json", "jsonl", "csv", "tsv", "parquet", "conll", "conllu", "webanno", "brat", "spacy", "text"]
FORMAT_NAMES: tuple[str, ...] = get_args(FileFormat)

LabelScheme = Literal["IOB1", "IOB2", "IOE1", "IOE2", "BIOES", "BILOU", "plain"]
MetricScheme = Literal["IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU"]


class ReadOptions(Section):
    """What the user says about files and columns. With null, the files' endings, names and contents decide."""

    file_format: FileFormat | None = None
    """Format of the files; by default each file's ending tells. `text` is a sentence a line, to predict on."""
    text_column_name: str | int | None = None
    """Column of the words, or of the text that `entities` mark; by default `tokens` or another usual name, else the
    first. Of CoNLL columns also the number, from 0, or from the end as -1."""
    label_column_name: str | int | None = None
    """Column of the tags, one a word, or of the spans; by default `{finetuning_task}_tags` or another usual name, else
    the second. Of CoNLL columns by default the last that holds tags."""
    sentence_column_name: str | None = None
    """Column of the sentence's id where a row is a word; by default `Sentence #` or another usual name."""
    document_column_name: str | None = None
    """Column of the document's id; by default `document_id` or another usual name. CoNLL columns mark documents."""
    outside_label: str | None = None
    """The tag that stands for `O`, such as `OTHER`."""
    bad_spans: Literal["error", "widen", "drop"] = "error"
    """What becomes of entities that cut a word, overlap or lie outside the text: `widen` takes whole words, and leaves
    out what that does not help, `drop` leaves out all of them. `--inspect` counts them."""
    encoding: str | None = None
    """Encoding of the files, such as `cp1252`; by default UTF-8, or what a mark at the beginning says."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """What separates the cells of a table; by default what parts its first row into usual names."""

    needs_tags: ClassVar[bool] = True  # whether there has to be a column of tags

    @staticmethod
    def setting(key: str) -> str:
        """What messages call a key."""
        return f"data.{key}"


class InputOptions(ReadOptions):
    """The same as options of `predict.py`, whose input may have no tags."""

    needs_tags = False

    @staticmethod
    def setting(key: str) -> str:
        return "--format" if key == "file_format" else f"--{key.removesuffix('_name').replace('_', '-')}"


class WindowConfig(Section):
    """What a model sees at once."""

    max_seq_length: int | None = Field(default=None, ge=3)
    """Sub-tokens of a model input, special tokens included; by default as many as tokenizer and model take."""
    doc_stride: int | None = Field(default=None, ge=0)
    """Sub-tokens that two windows of a longer sentence share; by default 128, or half a window if that is less."""
    document_context: DocumentContext = "none"
    """What a model sees of a sentence's document: `neighbours` are up to `context_tokens` sub-tokens before and after
    it, which are neither trained on nor scored; `merged` windows of `max_seq_length` hold as many sentences as fit."""
    context_tokens: int = Field(default=64, ge=1)
    """Sub-tokens on either side of a sentence under `document_context: neighbours`, at most."""

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.doc_stride is not None and self.max_seq_length is not None and self.doc_stride >= self.max_seq_length:
            # Said here without a model; `ner.windows.choose_doc_stride` knows of the special tokens, too.
            yield explain_value("doc_stride", self.doc_stride, f"below max_seq_length, {self.max_seq_length}")


SCHEMES_ELSEWHERE = {"BIO": "IOB2", "IO": "IOB1", "IOBES": "BIOES", "BMES": "BIOES", "BMEWO": "BIOES", "BIOLU": "BILOU"}


class NERDataConfig(WindowConfig, ReadOptions, DataConfig):
    """The `data` section for named-entity recognition."""

    label_list: list[str] | None = None
    """All tags there can be, in their order: the names of tags that are numbers, or a check on tags that are texts."""
    label_scheme: LabelScheme | None = None
    """How tags mark entities; by default what the tags look like. `plain` are types without a prefix; BIO is IOB2."""
    pad_to_max_length: bool = False
    """Pad every batch to `max_seq_length` instead of to its longest row."""
    label_all_tokens: bool = False
    """Train on every sub-token of a word, not on its first one only. Metrics stay word by word."""
    return_entity_level_metrics: bool = False
    """Report precision, recall, f1 and number of every entity type too."""
    metric_mode: Literal["default", "strict"] = "default"
    """How seqeval finds entities: `default` as conlleval does, `strict` only where the scheme's rules are kept."""
    metric_scheme: MetricScheme | None = None
    """The scheme whose rules metric_mode: strict goes by; by default the tags' own."""

    @field_validator("label_scheme", mode="before")
    @classmethod
    def _rename(cls, value: Any) -> Any:
        return SCHEMES_ELSEWHERE.get(str(value), value)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.metric_scheme is not None and self.metric_mode != "strict":
            effect = f"{self.metric_scheme} has an effect with metric_mode: strict only"
            yield f"metric_scheme: {effect}. Set that, or metric_scheme: null."
        if self.label_list is not None and len(set(self.label_list)) != len(self.label_list):
            twice = sorted({name for name in self.label_list if self.label_list.count(name) > 1})
            yield f"label_list: {', '.join(twice)} stands there twice; accepted is a list of different tags."
        if self.file_format is not None and self.dataset_name is not None:
            yield f"file_format: {self.file_format} has an effect on files only. Set file_format: null."
        if self.file_format == "text":
            yield "file_format: text has no tags to train on; predict.py takes it. Set another format, or null."


class TaggerSettings(WindowConfig):
    """How a model tags. The exported model's config keeps it as `ner`, for `predict.py`."""

    label_scheme: LabelScheme | None = None  # the scheme by which the model's labels mark entities; None is unknown
    label_names: list[str] | None = None  # what numbers among the tags of the training data stood for
    outside_label: str | None = None  # the tag that stood for O in the training data
    # How entities are counted, as in `ner.labels.find_entities`.
    metric_options: Any = {"mode": "default", "scheme": None}

    @classmethod
    def from_config(cls, config: Any) -> "TaggerSettings":
        """Read the settings from a model's config; a model of another origin has the defaults."""
        try:
            found: TaggerSettings = parse_sections({"ner": (getattr(config, "ner", None) or {}, [cls])})[cls]
        except ConfigError as error:
            problems = " ".join(error.problems)
            raise TrialError(f"The model's config.json was changed; export it again: {problems}") from None
        return found

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        schemes = (None, *get_args(MetricScheme))
        accepted = [{"mode": mode, "scheme": scheme} for mode in ("default", "strict") for scheme in schemes]
        if self.metric_options not in accepted:
            yield explain_value("metric_options", self.metric_options, f"such as {accepted[0]}")

    def build_report(self, training_entities: Set[int] | None = None) -> ErrorReport:
        """An empty report that counts entities as these settings say."""
        report = ErrorReport(self.label_scheme, self.metric_options["mode"], self.metric_options["scheme"])
        report.training_entities = training_entities
        return report
