"""How a section of the experiment configuration becomes a pydantic model, and how its mistakes are reported.

Values are read the same whether the yaml went through the `det` client (YAML 1.2: `no` is a string), through the master
(YAML 1.1: `no` is false) or through `train.py`. Every problem is reported at once, with the nearest valid key.
"""

import os
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from transformer_trial.errors import ConfigError, TrialError, did_you_mean, explain_value, format_value, nearest

# What YAML 1.1 reads as booleans, and YAML 1.2 as texts but for true and false.
BOOLEAN_WORDS = dict.fromkeys(("true", "yes", "on", "y"), True) | dict.fromkeys(("false", "no", "off", "n"), False)


# What TrainingArguments, run_ner.py and others call a key, and what it is here.
KEYS_ELSEWHERE = {
    "seed": "reproducibility.experiment_seed", "hf_token": "the environment variable HF_TOKEN",
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs"), "searcher.max_length: {epochs: N}"),
    **dict.fromkeys(("steps", "max_steps"), "searcher.max_length: {batches: N}"),
    **dict.fromkeys(("lr", "rate"), "hyperparameters.learning_rate"),
    **dict.fromkeys(("batch_size", "per_device_train_batch_size"), "hyperparameters.global_batch_size, of all slots"),
    **{name: f"hyperparameters.mixed_precision: {name}" for name in ("fp16", "bf16")},
    **dict.fromkeys(("model", "model_name_or_path"), "hyperparameters.pretrained_model_name_or_path"),
    **dict.fromkeys(("gradient_accumulation", "gradient_accumulation_steps"), "optimizations.aggregation_frequency"),
    "warmup_steps": "hyperparameters.num_warmup_steps", "labels": "data.label_list", "output_dir": "--output-dir",
    "eval_steps": "min_validation_period: {batches: N}", "save_steps": "min_checkpoint_period: {batches: N}",
}  # fmt: skip


class Section(BaseModel):
    """Base of the models that sections become. The text beneath a field is its documentation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), hide_input_in_errors=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _members(cls.model_fields[str(info.field_name)])
        if Any in kinds or (value is None and type(None) in kinds) or ({int, str} <= {*kinds} and type(value) is int):
            return value
        if type(None) in kinds and str(value).lower() == "none":
            raise ValueError("Did you mean null?")
        reader: Callable[[Any], Any] = READERS.get(typing.get_origin(kinds[0]) or kinds[0], read_text)
        return reader(value)

    def conflicts(self) -> Iterable[str]:
        """The problems of values that are right only by themselves; each starts with a key."""
        return ()


SectionT = TypeVar("SectionT", bound=Section)


def read_boolean(value: Any) -> bool:
    word = str(value).lower()
    if word not in BOOLEAN_WORDS:
        raise ValueError
    return BOOLEAN_WORDS[word]


def read_text(value: Any) -> str:
    if str(value).lower() in BOOLEAN_WORDS:
        # Quotes do not help: `det --config` drops them, and what stood there is lost once it was read as a boolean.
        words = ", ".join(BOOLEAN_WORDS)
        raise ValueError(f"YAML parsers disagree on which words are true or false: take another text than {words}.")
    if isinstance(value, str) and value.strip():
        return value
    if value is None or isinstance(value, (str, list, Mapping)):
        raise ValueError
    # The value is not repeated: it may be a secret in a list or a mapping.
    raise ValueError("Put it in quotes: YAML reads it as something else than a text.")


def read_texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return [read_text(item) for item in value]


def read_number(value: Any) -> float:
    """A finite number, as an int where it is whole: Determined's master writes 8.0 as 8, and 1e3 as 1000."""
    if isinstance(value, (bool, bytes)):
        raise ValueError
    try:
        number = float(value)  # YAML 1.1 reads 5e-5, which has no dot, as a text.
        return int(number) if int(number) == number else number
    except (TypeError, ValueError, OverflowError):
        raise ValueError from None


def read_arguments(value: Any) -> dict[str, float | str]:
    """Arguments of a function: numbers or texts, each of which may be a search range."""
    if not isinstance(value, Mapping):
        raise ValueError
    arguments: dict[str, float | str] = {}
    for name, item in value.items():
        item = pick_from_range(item)
        try:
            arguments[str(name)] = read_number(item)
        except ValueError:
            arguments[str(name)] = read_text(item)
    return arguments


# By the type of a field; a text or one of several texts has none here.
READERS: dict[Any, Callable[[Any], Any]] = {
    bool: read_boolean, int: read_number, float: read_number, list: read_texts, dict: read_arguments,
}  # fmt: skip


def pick_from_range(value: Any) -> Any:
    """The value that stands for a hyperparameter's search range where nobody draws one, locally; or `value` itself.

    Example:
        >>> pick_from_range({"type": "log", "base": 10, "minval": -6, "maxval": -4})
        1e-05
    """
    if not isinstance(value, Mapping) or "type" not in value:
        return value
    try:
        match value:
            case {"type": "const"}:
                return value.get("val")
            case {"type": "categorical", "vals": [first, *_]}:
                return first
            case {"type": "int" | "double" | "log" as kind, "minval": minimum, "maxval": maximum}:
                low, high, base = read_number(minimum), read_number(maximum), read_number(value.get("base", 10))
                if low <= high and base > 0:
                    middle = (low + high) / 2
                    return base**middle if kind == "log" else int(middle) if kind == "int" else middle
    except (ValueError, ArithmeticError):
        pass
    raise ValueError(
        "A search range has the type const and a val; categorical and a list of vals; or int, double or log and the "
        "numbers minval and maxval, the smaller first. "
        + did_you_mean(str(value["type"]), ("const", "categorical", "int", "double", "log"))
    )


def parse_sections(sections: Mapping[str, tuple[Any, Sequence[type[Section]]]]) -> dict[type, Any]:
    """Check sections, each by name its values and the classes that share its keys, and return the models by class."""
    valid_keys = {s: [key for c in classes for key in c.model_fields] for s, (_, classes) in sections.items()}
    problems: list[str] = []
    parsed: dict[type, Any] = {}
    for section, (values, classes) in sections.items():
        if not isinstance(values, Mapping):
            problems.append(explain_value(section, values, "a mapping of keys to values"))
            continue
        problems += [unknown_key(section, k, values[k], valid_keys) for k in values if k not in valid_keys[section]]
        for config_class in classes:
            try:
                parsed[config_class] = config_class(**{k: values[k] for k in config_class.model_fields if k in values})
                problems += [f"{section}.{problem}" for problem in parsed[config_class].conflicts()]
            except ValidationError as error:
                problems += [_explain(section, config_class, e, values) for e in error.errors(include_url=False)]
    if problems:
        raise ConfigError(problems)
    return parsed


def read_known(section: str, experiment_config: Mapping[str, Any], config_class: type[SectionT]) -> SectionT:
    """The part of a section of Determined's that `config_class` has fields for; null is a default, "" the top level."""
    values = (experiment_config.get(section) or {}) if section else experiment_config
    if isinstance(values, Mapping):
        values = {key: values[key] for key in config_class.model_fields if values.get(key) is not None}
    parsed: SectionT = parse_sections({section: (values, (config_class,))})[config_class]
    return parsed


def import_named(key: str, name: str) -> Any:
    """What `module:name` names; the module is looked for where Python looks and in the working directory."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return pkgutil.resolve_name(name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        where = f"MODULE:NAME, of a module beside train.py or in {os.getcwd()}"
        raise TrialError(f"{key}: found {name}, but {error}; accepted is {where}.") from None


def unknown_key(section: str, key: Any, value: Any, valid_keys: Mapping[str, Sequence[str]]) -> str:
    """The problem that nobody reads a key; `valid_keys` are those of each section, "" is the top level."""
    name = str(key) if str(key).isprintable() else repr(key)
    found = f"{section}.{name}: unknown key (found {format_value(name, value)}).".lstrip(".")
    if name in KEYS_ELSEWHERE:
        return f"{found} Here that is {KEYS_ELSEWHERE[name]}."
    close = nearest(name, [valid for keys in valid_keys.values() for valid in keys])
    if close and close not in valid_keys[section]:
        home = next(other for other in valid_keys if close in valid_keys[other])
        return f"{found} {close} belongs {f'in the section {home}' if home else 'at the top level'}."
    advice = f"Did you mean {close}?" if close else "Remove it."
    return f"{found} {advice} Accepted: {', '.join(sorted(valid_keys[section]))}."


def _explain(section: str, config_class: type[Section], error: Any, values: Mapping[str, Any]) -> str:
    """What is wrong with the value of a key: what was found, what is accepted, and what to do."""
    key = error["loc"][0]
    field, name = config_class.model_fields[key], f"{section}.{key}".lstrip(".")
    if error["type"] == "missing":
        return f"{name}: missing. Accepted: {describe_type(field)}."
    if error["type"] == "value_error":
        advice = str(error["ctx"]["error"])
    else:
        advice = did_you_mean(str(values[key]), find_choices(field))
    if values[key] is None and not field.is_required():
        advice = f"Remove the key for its default, {field.default!r}."
    return explain_value(name, values[key], describe_type(field), advice)


def _members(field: FieldInfo) -> Sequence[Any]:
    """The types that a field accepts: `str | None` has str and NoneType."""
    is_union = typing.get_origin(field.annotation) in (types.UnionType, typing.Union)
    return typing.get_args(field.annotation) if is_union else (field.annotation,)


def find_choices(field: FieldInfo) -> list[str]:
    """The texts that a field accepts, if it accepts no others."""
    return [c for member in _members(field) if typing.get_origin(member) is Literal for c in typing.get_args(member)]


def describe_type(field: FieldInfo) -> str:
    """What a field accepts, in words."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list of texts",
             dict: "a mapping of names to numbers or texts", type(None): "null",
             Literal: f"one of {', '.join(find_choices(field))}"}  # fmt: skip
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [
        f"{word} {getattr(b, key):.10g}" for b in field.metadata for key, word in words.items() if hasattr(b, key)
    ]
    first, *others = (names[typing.get_origin(member) or member] for member in _members(field))
    return " or ".join([f"{first} {' and '.join(bounds)}".strip(), *others])
