"""How a section of the experiment configuration becomes frozen dataclasses whose fields are the section's keys.

Values are read the same whether the yaml went through the `det` client (YAML 1.2: `no` is a string), through the master
(YAML 1.1: `no` is false) or through `train.py`; and every problem is reported at once, with the nearest valid key.
"""

import dataclasses
import difflib
import math
import operator
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from transformer_trial.errors import ConfigError, format_value

# What YAML 1.1 reads as booleans, and YAML 1.2 as texts but for true and false.
BOOLEAN_WORDS = dict.fromkeys(("true", "yes", "on", "y"), True) | dict.fromkeys(("false", "no", "off", "n"), False)

SEARCH_RANGES = ("const", "categorical", "int", "double", "log")

REQUIRED: Any = object()
"""Default of a key that the yaml has to give."""


# How a limit of a setting is called in a message, and what has to hold of a number and it.
LIMITS = {
    "minimum": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "maximum": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def setting(default: Any, *, choices: tuple[str, ...] = (), **limits: float) -> Any:
    """A dataclass field whose value must be one of `choices`, or a number within `limits`, named as in LIMITS."""
    arguments = {} if default is REQUIRED else {"default": default}
    return dataclasses.field(**arguments, metadata={"choices": choices, "limits": limits}, kw_only=True)


class Section:
    """Base of the dataclasses that sections become."""

    def conflicts(self) -> Iterable[str]:
        """The problems of values which are right only by themselves."""
        return ()


SectionT = TypeVar("SectionT", bound=Section)


def parse_sections(sections: Mapping[str, tuple[Any, Sequence[type]]]) -> dict[type, Any]:
    """Check the sections of a configuration and return the dataclasses made of them, by class.

    Args:
        sections: For each section's name what the yaml gives for it, and the dataclasses that share its keys.

    Raises:
        ConfigError: For any unknown key, wrong value, missing key or conflict; it names them all.
    """
    valid_keys = {s: [f.name for c in classes for f in dataclasses.fields(c)] for s, (_, classes) in sections.items()}
    problems: list[str] = []
    parsed: dict[type, Any] = {}
    for section, (values, classes) in sections.items():
        if not isinstance(values, Mapping):
            problems.append(
                f"{section}: found {format_value(section, values)}; accepted is a mapping of keys to values."
            )
            continue
        problems += [_unknown_key(section, k, values[k], valid_keys) for k in values if k not in valid_keys[section]]
        for config_class in classes:
            arguments, wrong = _parse_fields(section, config_class, values)
            problems += wrong
            if not wrong:
                parsed[config_class] = config_class(**arguments)
                problems += parsed[config_class].conflicts()
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
        known = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
        values = {key: value for key, value in values.items() if key in known and value is not None}
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


def _parse_fields(section: str, config_class: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The arguments for `config_class` that `values` give, and the problems found on the way."""
    hints = typing.get_type_hints(config_class)
    arguments, problems = {}, []
    for field in dataclasses.fields(config_class):
        key, accepted = f"{section}.{field.name}".lstrip("."), _accepted(hints[field.name], field.metadata)
        if field.name not in values:
            if field.default is dataclasses.MISSING:
                problems.append(f"{key}: missing. Accepted: {accepted}.")
            continue
        value = values[field.name]
        try:
            drawn = _drawn(value) if section == "hyperparameters" else value
            arguments[field.name] = _convert(drawn, hints[field.name], field)
        except ValueError as error:
            problems.append(f"{key}: found {format_value(field.name, value)}; accepted is {accepted}. {error}".rstrip())
    return arguments, problems


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that is most like `word`, whatever their case; None where none is."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[close[0]] if close else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    close = nearest(word, choices)
    return f"Did you mean {close}?" if close else ""


def _kind(hint: Any) -> tuple[Any, bool]:
    """Splits `str | None` into (str, True)."""
    optional = type(None) in typing.get_args(hint)
    return typing.get_args(hint)[0] if optional else hint, optional


def _accepted(hint: Any, metadata: Mapping[str, Any]) -> str:
    kind, optional = _kind(hint)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list of texts"}
    text = names.get(typing.get_origin(kind) or kind, "a mapping of names to numbers or texts")
    text += " or a whole number" if kind is str and int in typing.get_args(hint) else ""
    if metadata["choices"]:
        text = "one of " + ", ".join(metadata["choices"])
    bounds = [f"{LIMITS[name][0]} {limit:g}" for name, limit in metadata["limits"].items()]
    return f"{text} {' and '.join(bounds)}".strip() + (" or null" if optional else "")


def _convert(value: Any, hint: Any, field: "dataclasses.Field[Any]") -> Any:
    """`value` as the type of the field, whichever YAML parser read it; or a ValueError with a hint."""
    kind, optional = _kind(hint)
    choices, limits = field.metadata["choices"], field.metadata["limits"]
    if kind is Any or (value is None and optional):
        return value
    if value is None and field.default is not dataclasses.MISSING:
        raise ValueError(f"Remove the key for its default, {field.default!r}.")
    if kind is bool:
        return read_boolean(value)
    if kind is str:
        if int in typing.get_args(hint) and isinstance(value, int) and not isinstance(value, bool):
            return value
        text = read_text(value)
        if optional and text.lower() == "none":
            raise ValueError("Did you mean null?")
        if choices and text not in choices:
            raise ValueError(did_you_mean(text, choices))
        return text
    if kind in (int, float):
        number = read_number(value)
        in_range = all(LIMITS[name][1](number, limit) for name, limit in limits.items())
        if not in_range or (kind is int and isinstance(number, float)):
            raise ValueError
        return kind(number)
    if typing.get_origin(kind) is list and isinstance(value, list) and value:
        return [read_text(item) for item in value]
    if typing.get_origin(kind) is dict and isinstance(value, Mapping):
        return {str(name): _read_argument(_drawn(item)) for name, item in value.items()}
    raise ValueError


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


def _read_argument(value: Any) -> float | str:
    try:
        return read_number(value)
    except ValueError:
        return read_text(value)


def _drawn(value: Any) -> Any:
    return middle_of_range(value) if isinstance(value, Mapping) and "type" in value else value


def middle_of_range(search_range: Mapping[str, Any]) -> Any:
    """The value that stands for a hyperparameter's search range where nobody draws one: locally.

    Example:
        >>> middle_of_range({"type": "log", "base": 10, "minval": -6, "maxval": -4})
        1e-05
    """
    kind, values = search_range["type"], search_range.get("vals")
    if kind not in SEARCH_RANGES:
        known = ", ".join(SEARCH_RANGES)
        raise ValueError(f"A search range has one of the types {known}. {did_you_mean(str(kind), SEARCH_RANGES)}")
    if kind == "const":
        return search_range.get("val")
    if kind == "categorical":
        if isinstance(values, list) and values:
            return values[0]
        raise ValueError("A categorical search range needs a list of vals.")
    try:
        low, high = (float(read_number(search_range.get(key))) for key in ("minval", "maxval"))
        base = float(read_number(search_range.get("base", 10)))
        if low > high or base <= 0:
            raise ValueError
        middle = (low + high) / 2
        return base**middle if kind == "log" else int(middle) if kind == "int" else middle
    except (ValueError, ArithmeticError):
        raise ValueError("A search range needs the numbers minval and maxval, the smaller first.") from None
