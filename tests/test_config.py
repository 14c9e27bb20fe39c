"""The experiment configuration: what is accepted, what it becomes, and what is said about mistakes."""

import contextlib
import datetime
import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import yaml
from conftest import PROJECT
from determined.common import util
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.trainer_utils import SchedulerType

from ner.config import NERDataConfig
from transformer_trial import config as cfg
from transformer_trial import experiment
from transformer_trial.builders import AUTO_CLASSES
from transformer_trial.errors import ConfigError
from transformer_trial.experiment import Length, SearcherConfig, parse_length, searcher_metric, training_length
from transformer_trial.parsing import KEYS_ELSEWHERE

Values = Mapping[Any, Any]
CLASSES = (cfg.ModelConfig, cfg.OptimizerConfig, cfg.SchedulerConfig, cfg.TrainingConfig)
FIELDS = {"hyperparameters": {key: field for c in CLASSES for key, field in c.model_fields.items()}}
FIELDS["data"] = NERDataConfig.model_fields
KEYS = [(section, key) for section, fields in FIELDS.items() for key in fields]

HYPERPARAMETERS = {
    "pretrained_model_name_or_path": "bert-base-uncased", "model_mode": "token-classification", "global_batch_size": 8,
}  # fmt: skip
DATA = {"dataset_name": "lhoestq/conll2003"}
OWN_FILES = {"dataset_name": None, "train_file": "train.csv", "validation_file": "validation.csv"}
MISSING = ...
"""Stands for a key that is not there."""
ORIGINAL = "tests/fixtures/original_ner_config.yaml"

# The parser of the `det` client and of train.py, and PyYAML as a stand-in for the one of the master, which is written
# in Go. That one reads YAML 1.1 too, but takes y and n for booleans, and 5e-5 for a number.
YAML_PARSERS: dict[str, Callable[[str], Any]] = {"client": util.yaml_safe_load, "master": yaml.safe_load}


def parse(hyperparameters: Values = {}, data: Values = {}) -> cfg.TrialConfig[NERDataConfig]:  # noqa: B006
    """Parse a small valid configuration in which these keys have other values, or are MISSING."""
    sections = {**HYPERPARAMETERS, **hyperparameters}, {**DATA, **data}
    hparams, data = ({key: value for key, value in section.items() if value is not MISSING} for section in sections)
    return cfg.parse_trial_config(hparams, data, NERDataConfig)


def parsed_value(section: str, key: str, edits: Values) -> Any:
    """What the key becomes in a configuration with these edits to its section."""
    parts = [part for name, part in vars(parse(**{section: edits})).items() if (name == "data") == (section == "data")]
    return next(getattr(part, key) for part in parts if hasattr(part, key))


def problems_of(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> list[str]:
    """The problems that the call reports, each of which has a line of its own in the message."""
    with pytest.raises(ConfigError) as error:
        function(*arguments, **keywords)
    assert str(error.value).splitlines()[1:] == [f"  - {problem}" for problem in error.value.problems]
    return error.value.problems


NUMBER = "accepted is a number at least 0."
TEXT = "accepted is a text or null."
TEXT_OR_NUMBER = "accepted is a text or a whole number or null."
TEXTS = "accepted is a list of texts or null."
ARGUMENTS = "accepted is a mapping of names to numbers or texts or null."
MODES = f"accepted is one of {', '.join(cfg.MODEL_MODES)}."
SCHEDULES = f"accepted is one of {', '.join(cfg.LR_SCHEDULER_TYPES)}."
NOT_BOOLEAN = "YAML parsers disagree on which words are true or false: take another text than true, yes, on, y, false, "
TOKEN = "hf_abc"
HIDDEN = "found a value that is not repeated here (secrets belong in the environment, such as HF_TOKEN)"
RANGE = "A search range has the type const and a val; categorical and a list of vals; or int, double or log and the "

# By section: key, value, and what is said after the key: what was found, what is accepted, and what is nearest.
MISTAKES: dict[str, list[tuple[Any, Any, str]]] = {
    "hyperparameters": [
        ("learning_rat", 1e-3, "unknown key (found 0.001). Did you mean learning_rate? Accepted: adafactor, adam_"),
        ("Model_Mode", "base", "unknown key (found 'base'). Did you mean model_mode? Accepted: adafactor, adam_"),
        ("max_seq_lenght", 9, "unknown key (found 9). max_seq_length belongs in the section data."),
        ("model_mode", MISSING, f"missing. Accepted: one of {', '.join(cfg.MODEL_MODES)}."),
        ("pretrained_model_name_or_path", MISSING, "missing. Give a hub name such as bert-base-uncased or a "),
        *(("learning_rate", x, f"found {x!r}; {NUMBER}") for x in ("fast", True, [1e-5, 3e-5], math.nan, -1e-5)),
        ("learning_rate", None, f"found None; {NUMBER} Remove the key for its default, 5e-05."),
        ("max_grad_norm", 10**400, f"found 1{'0' * 76}...; {NUMBER}"),
        ("adam_beta2", 1, "found 1; accepted is a number at least 0 and below 1."),
        ("warmup_ratio", 6, "found 6; accepted is a number at least 0 and at most 1."),
        *(("global_batch_size", x, f"found {x}; accepted is a whole number at least 1.") for x in (None, 8.5, 0)),
        ("use_pretrained_weights", 1, "found 1; accepted is true or false."),
        ("adafactor", "ja", "found 'ja'; accepted is true or false."),
        ("revision", 2021, "found 2021; accepted is a text. Put it in quotes: YAML reads it as something else"),
        ("revision", None, "found None; accepted is a text. Remove the key for its default, 'main'."),
        ("finetuning_task", ["ner"], f"found ['ner']; {TEXT}"),
        *(("lr_scheduler_kwargs", x, f"found {x}; {ARGUMENTS}") for x in (0.5, {"power": None})),
        ("model_mode", "causal_lm", f"found 'causal_lm'; {MODES} Did you mean causal-lm?"),
        ("lr_scheduler_type", "zigzag", f"found 'zigzag'; {SCHEDULES}"),
        ("mixed_precision", "BF16", "found 'BF16'; accepted is one of none, auto, bf16, fp16. Did you mean bf16?"),
        ("mixed_precision", False, f"found False; accepted is one of none, auto, bf16, fp16. {NOT_BOOLEAN}"),
        *(("learning_rate", {"type": x}, f"found {{'type': {x!r}}}; {NUMBER} {RANGE}") for x in ("logg", "double")),
        *(("weight_decay", x, "found {'type': ") for x in (
            {"type": "double", "minval": 0}, {"type": "double", "minval": 1, "maxval": 0}, {"type": ["double"]},
            {"type": "double", "minval": "a", "maxval": "b"}, {"type": "double", "minval": False, "maxval": True},
            {"type": "int", "minval": 0, "maxval": math.inf}, {"type": "int", "minval": 0, "maxval": 10**400},
            {"type": "log", "minval": 1, "maxval": 2, "base": "x"}, {"type": "log", "minval": 999, "maxval": 999},
            {"type": "log", "minval": -1, "maxval": -1, "base": 0}, {"type": "categorical"}, {"type": None},
            {"type": "categorical", "vals": []}, {"type": "categorical", "vals": "1"}, {"type": "const", "value": 1},
        )),
        *((key, x, f"unknown key ({HIDDEN}") for key, x in (
            ("hf_tokens", TOKEN), ("auth", TOKEN), ("hub_secert_token", TOKEN), ("hf_tokn", TOKEN + "defghijklmnopqr"),
            ("HUB_API_KEY", TOKEN), ("token", [TOKEN]), ("hub", {"user": "me", "auth": [{"password": TOKEN}]}),
            ("hub_password", 1234567), ("hub", ["hf_token", TOKEN]),
        )),
        *((key, x, HIDDEN) for key, x in (
            ("use_auth_token", TOKEN), ("learning_rate", {"token": TOKEN}), ("revision", {TOKEN + "defghijklmnopqrst"}),
            ("revision", TOKEN.encode() + b"defghijklmnopqrst"),
            ("lr_scheduler_kwargs", {"auth_token": datetime.date(1234, 5, 6)}),
        )),
    ],
    "data": [
        (8, "eight", "unknown key (found 'eight'). Remove it. Accepted: bad_spans, cache_dir, context_tokens"),
        ("dataset_name", False, f"found False; {TEXT} {NOT_BOOLEAN}"),
        ("text_column_name", True, f"found True; {TEXT_OR_NUMBER} {NOT_BOOLEAN}"),
        ("text_column_name", [0], f"found [0]; {TEXT_OR_NUMBER}"),
        ("label_column_name", 1.5, f"found 1.5; {TEXT_OR_NUMBER} Put it in quotes: YAML reads it as something else"),
        ("label_column_name", "None", f"found 'None'; {TEXT_OR_NUMBER} Did you mean null?"),
        ("sentence_column_name", 0, f"found 0; {TEXT} Put it in quotes: YAML reads it as something else than a text."),
        ("file_format", "CoNLL", "found 'CoNLL'; accepted is one of json, jsonl, csv, tsv, parquet, conll, conllu, "),
        ("cache_dir", "", f"found ''; {TEXT}"),
        ("label_list", "O", f"found 'O'; {TEXTS}"),
        ("label_list", [], f"found []; {TEXTS}"),
        ("label_list", ["O", 1], f"found ['O', 1]; {TEXTS} Put it in quotes: YAML reads it as something "),
        ("validation_split_percentage", 100, "found 100; accepted is a number above 0 and below 100 or null."),
        ("max_seq_length", 2, "found 2; accepted is a whole number at least 3 or null."),
        ("max_seq_length", {"type": "const", "val": 8}, "found {'type': 'const', 'val': 8}; accepted is a whole "),
    ],
}  # fmt: skip

# By section: the keys at odds, and what is said.
CONTRADICTIONS: dict[str, list[tuple[Values, str]]] = {
    "hyperparameters": [
        ({"relative_step": True}, "relative_step: true has an effect with adafactor: true only. Set that, or remove"),
        ({"num_warmup_steps": 9, "warmup_ratio": 0.1}, "warmup_ratio: 0.1 beside num_warmup_steps: 9. Both say how lo"),
        ({"use_apex_amp": True, "mixed_precision": "fp16"}, "mixed_precision: fp16 beside use_apex_amp: true. Both lo"),
        ({"pretrained_model_name_or_path": None, "model_name": "m"}, "pretrained_model_name_or_path: missing. Give a "),
    ],
    "data": [
        ({"train_file": "a.csv"}, "dataset_name: 'lhoestq/conll2003' beside train_file. Set dataset_name: null to "),
        ({**OWN_FILES, "dataset_config_name": "c"}, "dataset_config_name: 'c' without a dataset_name. Set that, or da"),
        ({**OWN_FILES, "dataset_revision": "main"}, "dataset_revision: 'main' without a dataset_name. Set that, or da"),
        ({"max_seq_length": 64, "doc_stride": 64}, "doc_stride: found 64; accepted is below max_seq_length, 64."),
        ({"metric_scheme": "IOB2"}, "metric_scheme: IOB2 has an effect with metric_mode: strict only. Set that, or m"),
        ({"file_format": "conll"}, "file_format: conll has an effect on files only. Set file_format: null."),
        ({"dataset_name": None, "train_file": "a", "file_format": "text"}, "file_format: text has no tags"),
        ({"label_list": ["O", "B-X", "O"]}, "label_list: O stands there twice; accepted is a list of different tags."),
    ],
}  # fmt: skip

EXPLAINED = [(s, edits, said) for s, cases in CONTRADICTIONS.items() for edits, said in cases]
EXPLAINED += [(s, {key: value}, f"{key}: {said}") for s, cases in MISTAKES.items() for key, value, said in cases]


@pytest.mark.parametrize(("section", "edits", "said"), EXPLAINED, ids=lambda part: str(part)[:60])
def test_a_mistake_is_explained_with_what_is_accepted(section: str, edits: Values, said: str) -> None:
    (problem,) = problems_of(parse, **{section: edits})
    assert problem.startswith(f"{section}.{said}")
    assert len(problem) - len(said) < 1000 and not re.search(f"{TOKEN}|1234567|1234-05", problem)


def test_all_problems_of_both_sections_are_reported_at_once() -> None:
    problems = problems_of(
        parse,
        {"model_mode": MISSING, "learning_rat": 1, "adam_beta1": "x", "use_apex_amp": 3, "relative_step": True},
        {"dataset_name": None, "two\nlines": 1, "max_seq_length": "long", "metric_mode": None},
    )
    assert [problem.partition(": ")[0] for problem in problems] == [
        "hyperparameters.learning_rat", "hyperparameters.model_mode", "hyperparameters.adam_beta1",
        "hyperparameters.use_apex_amp", r"data.'two\nlines'", "data.max_seq_length", "data.metric_mode",
    ]  # fmt: skip


@pytest.mark.parametrize(("value", "warned"), [(True, True), (False, False), (None, False)])
def test_use_auth_token_is_accepted_and_explained(value: Any, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        parse({"use_auth_token": value})
    assert ("the hub's token is read from HF_TOKEN" in caplog.text) is warned


# For each key a sensible value that is not its default. The defaults are those of docs/configuration.md.
VALUES: list[tuple[Any, str]] = [
    ("x", "pretrained_model_name_or_path config_name tokenizer_name model_name finetuning_task revision cache_dir "
          "dataset_name dataset_config_name dataset_revision train_file validation_file test_file text_column_name "
          "sentence_column_name document_column_name outside_label encoding delimiter"),
    (9, "num_labels global_batch_size early_stopping_patience num_warmup_steps num_training_steps max_seq_length "
        "doc_stride context_tokens preprocessing_num_workers dataloader_num_workers max_train_samples "
        "max_eval_samples"),
    (0.5, "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm warmup_ratio "
          "validation_split_percentage"),
    (True, "do_lower_case trust_remote_code use_auth_token ignore_mismatched_sizes use_apex_amp adafactor "
           "overwrite_cache scale_parameter relative_step pad_to_max_length label_all_tokens group_by_length "
           "return_entity_level_metrics"),
    (False, "use_fast use_pretrained_weights export_model"), ("token-classification", "model_mode"),
    ("cosine_with_restarts", "lr_scheduler_type"), ({"num_cycles": 2}, "lr_scheduler_kwargs"), ("conll", "file_format"),
    (-1, "label_column_name"), (["O", "B-PER"], "label_list"), ("bf16", "mixed_precision"), ("widen", "bad_spans"),
    ("strict", "metric_mode"), ("BILOU", "metric_scheme"), ("plain", "label_scheme"), ("merged", "document_context"),
]  # fmt: skip
COMPANIONS: dict[str, Values] = {
    **{key: {"adafactor": True} for key in ("scale_parameter", "relative_step")},
    **{key: OWN_FILES for key in ("train_file", "validation_file", "test_file", "file_format")},
    "metric_scheme": {"metric_mode": "strict"},
}
"""What a key needs beside it."""


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_a_key_takes_a_value_other_than_its_default(section: str, key: str) -> None:
    (other,) = (value for value, keys in VALUES if key in keys.split())
    value = parsed_value(section, key, {**COMPANIONS.get(key, {}), key: other})
    assert (value, type(value)) == (other, type(other))
    assert other != FIELDS[section][key].default


def test_every_key_is_documented() -> None:
    fields = {**FIELDS["hyperparameters"], **FIELDS["data"], **SearcherConfig.model_fields}
    assert [key for key, field in fields.items() if not field.description] == []


def test_choices_are_what_transformers_and_the_trial_know() -> None:
    assert set(cfg.MODEL_MODES) == set(AUTO_CLASSES)
    assert set(cfg.LR_SCHEDULER_TYPES) < {schedule.value for schedule in SchedulerType}


@pytest.mark.parametrize("parser", YAML_PARSERS)
@pytest.mark.parametrize("file", ["ner_config.yaml", "ner_search.yaml", "distributed.yaml", ORIGINAL])
def test_shipped_and_original_configurations_are_accepted(file: str, parser: str) -> None:
    config = YAML_PARSERS[parser]((PROJECT / file).read_text())
    parsed = cfg.parse_trial_config(config["hyperparameters"], config["data"], NERDataConfig)
    assert parsed.training.global_batch_size == 8 * config["resources"]["slots_per_trial"]
    assert parsed.optimizer.adam_epsilon == 1e-8
    assert training_length(config).amount in (3, 5120)


TEXTS_OR_NUMBERS = ("text_column_name", "label_column_name")
REFUSED = object()
# By section.key: texts in a yaml, and the value that all of them stand for.
READINGS: list[tuple[str, list[str], Any]] = [
    ("hyperparameters.adafactor", ["true", "True", "yes", "Yes", "ON", "on", "y", "'yes'"], True),
    ("hyperparameters.use_fast", ["false", "FALSE", "no", "No", "OFF", "off", "n", "'no'"], False),
    ("hyperparameters.use_fast", ["0", "1", "null", "''", "none", "[no]"], REFUSED),
    ("hyperparameters.learning_rate", ["5e-5", "5.0e-5", "'5e-5'", "0.00005", "+5E-05"], 5e-5),
    ("hyperparameters.weight_decay", ["0", "0.0", "'0'", "0e0"], 0.0),
    ("hyperparameters.global_batch_size", ["8", "'8'", "8.0", "8e0", "+8", "0x8", "0b1000"], 8),
    ("hyperparameters.num_warmup_steps", ["1e3", "1_000", "1000."], 1000),
    ("hyperparameters.lr_scheduler_kwargs", ["{lr_end: 1e-7, power: 2}", "{lr_end: '1e-7', power: 2.0}"],
     {"lr_end": 1e-7, "power": 2}),
    ("hyperparameters.lr_scheduler_kwargs", ["{num_cycles: {type: int, minval: 1, maxval: 3}}"], {"num_cycles": 2}),
    ("hyperparameters.mixed_precision", ["no", "off", "null", "16"], REFUSED),
    # A search range stands for its middle.
    ("hyperparameters.lr_scheduler_type", ["{type: const, val: cosine}", "{type: categorical, vals: [cosine, linear]}"],
     "cosine"),
    ("hyperparameters.num_warmup_steps", ["{type: int, minval: 8, maxval: 33}"], 20),
    ("hyperparameters.weight_decay", ["{type: double, minval: 0, maxval: 0.25}"], 0.125),
    ("hyperparameters.learning_rate", ["{type: double, minval: 1e-5, maxval: 3e-5}"], 2e-5),
    ("hyperparameters.learning_rate", ["{type: log, minval: -5.0, maxval: -3.0}"], 1e-4),
    ("hyperparameters.learning_rate", ["{type: log, base: 2, minval: 2, maxval: 4}"], 8.0),
    ("data.max_seq_length", ["null", "~", "", "NULL"], None),
    ("data.max_seq_length", ["yes", "no", "None", ".inf", ".nan", "1e400", "true", "12a"], REFUSED),
    ("data.cache_dir", ["null", "~", "", "Null"], None),
    ("data.dataset_revision", ["'2021'", '"2021"', "!!str 2021"], "2021"),
    ("data.dataset_revision", ["2021", "1.0", "2021-01-01", "no", "'no'", "Off", "None"], REFUSED),
    ("data.text_column_name", ["1", "+1", "!!int '1'"], 1),
    ("data.text_column_name", ["-1", "!!int -1"], -1),
    ("data.text_column_name", ["'1'", '"1"', "!!str 1"], "1"),
    ("data.label_column_name", ["null", "~", ""], None),
    ("data.text_column_name", ["1.5", "no", "'no'", "None", "2021-01-01"], REFUSED),
    ("data.label_scheme", ["BIO", "IOB2"], "IOB2"), ("data.label_scheme", ["IOBES", "BMES", "BIOES"], "BIOES"),
    ("data.label_list", ["[O, B-ON, 'I-ON']", "['O', B-ON, I-ON]"], ["O", "B-ON", "I-ON"]),
    ("data.label_list", ["[O, no]", "[O, 1]", "[O, Y]", "O", "no", "[O, null]"], REFUSED),
]  # fmt: skip


@pytest.mark.parametrize("parser", YAML_PARSERS)
@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [pytest.param(path, text, value, id=f"{path}: {text}") for path, texts, value in READINGS for text in texts],
)
def test_a_value_means_the_same_to_every_yaml_parser(path: str, text: str, expected: Any, parser: str) -> None:
    section, key = path.split(".")
    edits = YAML_PARSERS[parser](f"{key}: {text}")
    if expected is REFUSED:
        (problem,) = problems_of(parse, **{section: edits})
        assert problem.startswith(f"{path}: found ")
    else:
        value = parsed_value(section, key, edits)
        assert (value, type(value)) == (expected, type(expected))


def outcome(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """What the call returns, or the exception that explains why not. Any other exception ends the test."""
    with contextlib.suppress(ConfigError):
        return function(*arguments, **keywords)
    return ConfigError


PLAIN = st.lists(st.sampled_from([*"0189eE.+-_xoab~:", "no", "off", "true", "null"]), min_size=1).map("".join)


@given(st.sampled_from(KEYS), PLAIN.filter(lambda text: not text.lstrip("+-").startswith("0")))
def test_a_plain_scalar_never_means_two_things(path: tuple[str, str], text: str) -> None:
    """Where parsers disagree, one of them gets an error; but for octals such as 010, of which nothing can be seen.

    1:20 is the number 80 in YAML 1.1, and as a column no more likely than its name.
    """
    section, key = path
    assume(key not in TEXTS_OR_NUMBERS or not re.search(r"\d_*:\d", text))
    try:
        readings = [read(f"{key}: {text}") for read in YAML_PARSERS.values()]
    except Exception:  # not yaml
        return
    if all(isinstance(reading, dict) for reading in readings):
        outcomes = [outcome(parse, **{section: reading}) for reading in readings]
        accepted = [reading for reading in outcomes if reading is not ConfigError]
        assert len(accepted) < 2 or accepted[0] == accepted[1]


NUMBERS = st.integers() | st.floats() | st.just(10**400)
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=9),
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.text(max_size=5), items, max_size=3),
    max_leaves=5,
)
SEARCH_RANGES = st.fixed_dictionaries(
    {"type": st.sampled_from(["const", "categorical", "int", "double", "log", "logg"])},
    optional={key: NUMBERS | JSON_LIKE for key in ("val", "vals", "minval", "maxval", "base")},
)


def sections(*keys: str) -> st.SearchStrategy[dict[Any, Any]]:
    names = st.sampled_from(keys) | st.text(max_size=9) | st.integers() | st.none()
    return st.dictionaries(names, JSON_LIKE | SEARCH_RANGES, max_size=4)


@given(JSON_LIKE | sections(*FIELDS["hyperparameters"]), JSON_LIKE | sections(*FIELDS["data"]))
def test_whatever_stands_in_the_sections_a_mistake_is_a_config_error(hparams: Any, data: Any) -> None:
    if isinstance(hparams, dict) and isinstance(data, dict):
        hparams, data = {**HYPERPARAMETERS, **hparams}, {**DATA, **data}
    if outcome(cfg.parse_trial_config, hparams, data, NERDataConfig) is ConfigError:
        assert problems_of(cfg.parse_trial_config, hparams, data, NERDataConfig)


@given(JSON_LIKE | sections("metric", "smaller_is_better", "max_length", "max_time", "time_metric"))
def test_whatever_stands_in_the_searcher_a_mistake_is_a_config_error(searcher: Any) -> None:
    length = outcome(training_length, {"searcher": searcher})
    assert length is ConfigError or length.amount >= 1
    metric = outcome(searcher_metric, {"searcher": searcher}, {"f1": True, "loss": False})
    assert metric is ConfigError or metric in [("f1", False), ("loss", True)]


def test_a_length_is_counted_in_batches_of_which_records_make_one_at_least() -> None:
    lengths = [Length("batches", 7), Length("epochs", 3), Length("records", 33), Length("records", 7)]
    assert [length.in_batches(batches_per_epoch=10, global_batch_size=8) for length in lengths] == [7, 30, 4, 1]
    assert parse_length("min_validation_period", {"batches": 0}) == Length("batches", 0)
    (problem,) = problems_of(parse_length, "min_validation_period", {"epochs": -1})
    assert problem.startswith("min_validation_period: found {'epochs': -1}; accepted is one of {batches: N}, ")


METRICS = {"f1": True, "accuracy_score": True, "validation_loss": False}
UNITS = "accepted is one of {batches: N}, {epochs: N} and {records: N}, with a whole number N of at least 1."
KNOWN = "accepted is f1, accuracy_score, validation_loss."
WORST = "(the default is true), which would keep the worst model by f1; accepted is false."
# By function: what the section `searcher` holds, and what that means, or what is said after its name.
SEARCHERS: dict[Callable[[Any], Any], list[tuple[Any, Any]]] = {
    training_length: [
        ({"max_length": {"batches": 9}}, Length("batches", 9)), ({"max_length": {"epochs": "3"}}, Length("epochs", 3)),
        ({"max_length": {"records": 1e3}}, Length("records", 1000)), ({"max_length": 50}, Length("batches", 50)),
        ({"max_time": 5120, "time_metric": "batches"}, Length("batches", 5120)),
        ({"max_time": "3", "time_metric": "epochs"}, Length("epochs", 3)),
        ({"max_time": None, "max_length": {"epochs": 1}}, Length("epochs", 1)),
        (None, ".max_length: missing, and there is no max_time; give max_length, such as {epochs: 3}, or "),
        ("single", ": found 'single'; accepted is a mapping of keys to values."),
        ({"max_length": {"epoch": 3}}, f".max_length: found {{'epoch': 3}}; {UNITS} Did you mean epochs?"),
        *(
            ({"max_length": length}, f".max_length: found {length}; {UNITS}")
            for length in ({}, {"epochs": 0}, {"epochs": 1.5}, {"epochs": True}, {"epochs": 1, "batches": 1})
        ),
        ({"max_time": 3}, ".time_metric: missing beside max_time. Accepted: one of batches, epochs."),
        ({"max_time": 3, "time_metric": "epoch"}, ".time_metric: found 'epoch'; accepted is one of batches, epochs "),
        ({"max_time": 0, "time_metric": "epochs"}, ".max_time: found 0; accepted is a whole number at least 1"),
    ],
    lambda config: searcher_metric(config, {}): [
        ({"metric": "f1", "smaller_is_better": False}, ("f1", False)), ({"metric": "f1"}, ("f1", True)),
    ],
    lambda config: searcher_metric(config, METRICS): [
        ({"metric": "f1", "smaller_is_better": False}, ("f1", False)),
        ({"metric": "f1", "smaller_is_better": "no"}, ("f1", False)),
        ({"metric": "validation_loss"}, ("validation_loss", True)),
        *(({"metric": "validation_loss", "smaller_is_better": x}, ("validation_loss", True)) for x in (None, True)),
        ({}, f".metric: found None; {KNOWN}"),
        ({"metric": "F-1"}, f".metric: found 'F-1'; {KNOWN} Did you mean f1?"),
        ({"metric": 1}, ".metric: found 1; accepted is a text or null. Put it in quotes: YAML reads it as something "),
        ({"metric": "f1"}, f".smaller_is_better: found true {WORST}"),
        ({"metric": "validation_loss", "smaller_is_better": "no"}, ".smaller_is_better: found false (the "),
        ({"metric": "f1", "smaller_is_better": 0}, ".smaller_is_better: found 0; accepted is true or false."),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("function", "searcher", "expected"),
    [pytest.param(f, *case, id=str(case[0])) for f, cases in SEARCHERS.items() for case in cases],
)
def test_the_searcher_is_read_or_explained(function: Callable[..., Any], searcher: Any, expected: Any) -> None:
    if isinstance(expected, str):
        (problem,) = problems_of(function, {"searcher": searcher})
        assert problem.startswith(f"searcher{expected}")
    else:
        assert function({"searcher": searcher}) == expected


def test_what_others_call_a_key_is_told_by_keys_that_there_are() -> None:
    known = {
        f"{section}.{key}".lstrip(".") for section, keys in experiment.DETERMINED_KEYS.items() for key in keys.split()
    }
    known |= {f"hyperparameters.{key}" for c in cfg.HYPERPARAMETER_CLASSES for key in c.model_fields}
    known |= {f"data.{key}" for key in NERDataConfig.model_fields}
    told = {text.replace(",", ":").partition(":")[0] for text in KEYS_ELSEWHERE.values()}
    assert told - known == {"--output-dir", "the environment variable HF_TOKEN"}
    assert {f"{section}.{key}" for section in ("hyperparameters", "data") for key in KEYS_ELSEWHERE}.isdisjoint(known)
