"""How a section of the experiment configuration becomes a pydantic model, and how its mistakes are reported.

Values are read the same whether the yaml went through the `det` client (YAML 1.2: `no` is a string), through the master
(YAML 1.1: `no` is false) or through `train.py`. Every problem is reported at once, with the nearest valid key.
"""

import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import annotated_types
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from transformer_trial.errors import ConfigError, did_you_mean, format_value, nearest

# What YAML 1.1 reads as booleans, and YAML 1.2 as texts but for true and false.
BOOLEAN_WORDS = dict.fromkeys(("true", "yes", "on", "y"), True) | dict.fromkeys(("false", "no", "off", "n"), False)

SEARCH_RANGES = ("const", "categorical", "int", "double", "log")


class Section(BaseModel):
    """Base of the models that sections become. The text beneath a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    def conflicts(self) -> Iterable[str]:
        """The problems of values that are right only by themselves."""
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
    raise ValueError(f"Put {value} in quotes: YAML reads it as something else than a text.")


def read_optional_text(value: Any) -> str:
    """A text where null is accepted too, which some write as the text None."""
    text = read_text(value)
    if text.lower() == "none":
        raise ValueError("Did you mean null?")
    return text


def read_column(value: Any) -> str | int:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number else read_optional_text(value)


def read_texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return [read_text(item) for item in value]


def read_number(value: Any) -> float:
    """A finite number, as an int where it is whole: Determined's master writes 8.0 as 8, and 1e3 as 1000."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    try:
        number = float(value)  # YAML 1.1 reads 5e-5, which has no dot, as a text.
    except (ValueError, OverflowError):
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError
    return int(number) if number.is_integer() else number


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


def pick_from_range(value: Any) -> Any:
    """The value that stands for a hyperparameter's search range where nobody draws one: locally.

    Any other value is returned as it is.

    Example:
        >>> pick_from_range({"type": "log", "base": 10, "minval": -6, "maxval": -4})
        1e-05
    """
    if not isinstance(value, Mapping) or "type" not in value:
        return value
    kind, values = value["type"], value.get("vals")
    if kind not in SEARCH_RANGES:
        known = ", ".join(SEARCH_RANGES)
        raise ValueError(f"A search range has one of the types {known}. {did_you_mean(str(kind), SEARCH_RANGES)}")
    if kind == "const":
        return value.get("val")
    if kind == "categorical":
        if isinstance(values, list) and values:
            return values[0]
        raise ValueError("A categorical search range needs a list of vals.")
    try:
        low, high = (float(read_number(value.get(key))) for key in ("minval", "maxval"))
        base = float(read_number(value.get("base", 10)))
        if low > high or base <= 0:
            raise ValueError
        middle = (low + high) / 2
        return base**middle if kind == "log" else int(middle) if kind == "int" else middle
    except (ValueError, ArithmeticError):
        raise ValueError("A search range needs the numbers minval and maxval, the smaller first.") from None


# The types of fields.
Boolean = Annotated[bool, BeforeValidator(read_boolean)]
Text = Annotated[str, BeforeValidator(read_text)]
OptionalText = Annotated[str, BeforeValidator(read_optional_text)] | None
Texts = Annotated[list[str], BeforeValidator(read_texts)]
Column = Annotated[str | int, BeforeValidator(read_column)]
Number = Annotated[float, BeforeValidator(read_number)]
WholeNumber = Annotated[int, BeforeValidator(read_number)]
Arguments = Annotated[dict[str, Any], BeforeValidator(read_arguments)]
Choice = BeforeValidator(read_text)
"""For `Annotated[Literal[...], Choice]`."""
OptionalChoice = BeforeValidator(read_optional_text)


def parse_sections(sections: Mapping[str, tuple[Any, Sequence[type[Section]]]]) -> dict[type, Any]:
    """Check the sections of a configuration and return the models made of them, by class.

    Args:
        sections: For each section's name what the yaml gives for it, and the classes that share its keys.

    Raises:
        ConfigError: For any unknown key, wrong value, missing key or conflict; it names them all.
    """
    valid_keys = {s: [key for c in classes for key in c.model_fields] for s, (_, classes) in sections.items()}
    problems: list[str] = []
    parsed: dict[type, Any] = {}
    for section, (values, classes) in sections.items():
        if not isinstance(values, Mapping):
            found = format_value(section, values)
            problems.append(f"{section}: found {found}; accepted is a mapping of keys to values.")
            continue
        problems += [_unknown_key(section, k, values[k], valid_keys) for k in values if k not in valid_keys[section]]
        for config_class in classes:
            try:
                own = {key: values[key] for key in config_class.model_fields if key in values}
                parsed[config_class] = config_class.model_validate(own)
                problems += parsed[config_class].conflicts()
            except ValidationError as error:
                # One problem a key, although pydantic may report each member of a union.
                by_key = {str(e["loc"][0]): e for e in reversed(error.errors(include_url=False, include_input=False))}
                problems += [_explain(section, config_class, key, by_key[key], values) for key in reversed(by_key)]
    if problems:
        raise ConfigError(problems)
    return parsed


def read_known(section: str, experiment_config: Mapping[str, Any], config_class: type[SectionT]) -> SectionT:
    """The part of a section of Determined's own that `config_class` has fields for; null stands for a default.

    Args:
        section: Its name; "" reads the top level.
        experiment_config: The whole configuration.
        config_class: What to make of it.

    Raises:
        ConfigError: For any wrong value; it names them all.
    """
    values = (experiment_config.get(section) or {}) if section else experiment_config
    if isinstance(values, Mapping):
        values = {key: values[key] for key in config_class.model_fields if values.get(key) is not None}
    parsed: SectionT = parse_sections({section: (values, (config_class,))})[config_class]
    return parsed


def _unknown_key(section: str, key: Any, value: Any, valid_keys: Mapping[str, list[str]]) -> str:
    name = str(key) if str(key).isprintable() else repr(key)
    found = f"{section}.{name}: unknown key (found {format_value(name, value)})."
    homes = {valid: home for home in valid_keys for valid in valid_keys[home]}
    close = nearest(name, [*homes, *valid_keys[section]])
    if close and close not in valid_keys[section]:
        return f"{found} {close} belongs in the section {homes[close]}."
    advice = f"Did you mean {close}?" if close else "Remove it."
    return f"{found} {advice} Accepted: {', '.join(sorted(valid_keys[section]))}."


def _explain(section: str, config_class: type[Section], key: str, error: Any, values: Mapping[str, Any]) -> str:
    """What is wrong with the value of a key: what was found, what is accepted, and what to do."""
    field, name = config_class.model_fields[key], f"{section}.{key}".lstrip(".")
    if error["type"] == "missing":
        return f"{name}: missing. Accepted: {describe_type(field)}."
    value, advice = values[key], ""
    if value is None and not field.is_required():
        advice = f"Remove the key for its default, {field.default!r}."
    elif error["type"] == "literal_error":
        advice = did_you_mean(str(value), find_choices(field))
    elif error["type"] == "value_error":
        advice = str(error["ctx"]["error"])
    return f"{name}: found {format_value(key, value)}; accepted is {describe_type(field)}. {advice}".rstrip()


def _members(annotation: Any) -> list[Any]:
    """The plain types of a field: `Annotated[str, ...] | None` has str and NoneType."""
    if typing.get_origin(annotation) is Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return [member for part in typing.get_args(annotation) for member in _members(part)]
    return [annotation]


def find_choices(field: FieldInfo) -> list[str]:
    """The texts that a field accepts, if it accepts no others."""
    return [c for m in _members(field.annotation) if typing.get_origin(m) is Literal for c in typing.get_args(m)]


def describe_type(field: FieldInfo) -> str:
    """What a field accepts, in words."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list of texts",
             dict: "a mapping of names to numbers or texts", type(None): "null"}  # fmt: skip
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [
        f"{words[name]} {getattr(bound, name):g}"
        for bound in field.metadata
        if isinstance(bound, (annotated_types.Ge, annotated_types.Gt, annotated_types.Le, annotated_types.Lt))
        for name in words
        if hasattr(bound, name)
    ]
    choices, kinds = find_choices(field), []
    for member in _members(field.annotation):
        origin = typing.get_origin(member) or member
        kinds.append("one of " + ", ".join(choices) if origin is Literal else names.get(origin, "any value"))
    first, *others = kinds
    return " or ".join([f"{first} {' and '.join(bounds)}".strip(), *others])
