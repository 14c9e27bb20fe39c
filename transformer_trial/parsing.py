"""How a section of the experiment configuration becomes frozen dataclasses whose fields are the section's keys.

Values are read the same whether the yaml went through the `det` client (YAML 1.2: `no` is a string), through the master
(YAML 1.1: `no` is false) or through `train.py`; and every problem is reported at once, with the nearest valid key.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

# What YAML 1.1 reads as booleans and YAML 1.2 leaves as strings.
BOOLEAN_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "y"), True),
    **dict.fromkeys(("false", "no", "off", "n"), False),
}

# A value under such a key is never repeated in a message: Determined stores logs.
SECRET_KEY = re.compile(r"token(?!iz)|password|secret|auth|credential|api_?key", re.IGNORECASE)

REQUIRED: Any = object()
"""Default of a key that the yaml has to give."""


class TrialError(ValueError):
    """A mistake in what the user gave, which its one-paragraph message explains without a traceback."""


class ConfigError(TrialError):
    """One or more mistakes in the experiment configuration, each on a line of its own."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"The experiment configuration has {count}:\n" + "\n".join(f"  - {p}" for p in problems))


def setting(
    default: Any, *, choices: tuple[str, ...] = (), minimum: float = -math.inf, above: float = -math.inf,
    maximum: float = math.inf, below: float = math.inf,
) -> Any:  # fmt: skip
    """A dataclass field whose value must be one of `choices` or lie in [minimum, maximum] and in (above, below)."""
    limits = {"choices": choices, "minimum": minimum, "above": above, "maximum": maximum, "below": below}
    if default is REQUIRED:
        return dataclasses.field(metadata=limits, kw_only=True)
    return dataclasses.field(default=default, metadata=limits, kw_only=True)


def parse_sections(sections: Mapping[str, tuple[Any, Sequence[type]]]) -> dict[type, Any]:
    """Check the sections of a configuration and return the dataclasses made of them, by class.

    Args:
        sections: For each section's name what the yaml gives for it, and the dataclasses that share its keys. A class
            may have a method `conflicts()` that yields the problems of values which are right only by themselves.

    Raises:
        ConfigError: For any unknown key, wrong value, missing key or conflict; it names them all.
    """
    valid_keys = {s: [f.name for c in classes for f in dataclasses.fields(c)] for s, (_, classes) in sections.items()}
    problems: list[str] = []
    parsed: dict[type, Any] = {}
    for section, (values, classes) in sections.items():
        if not isinstance(values, Mapping):
            problems.append(f"{section}: found {values!r}; accepted is a mapping of keys to values.")
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


def _unknown_key(section: str, key: Any, value: Any, valid_keys: Mapping[str, list[str]]) -> str:
    sections = {name: other for other, names in valid_keys.items() for name in names}
    found = f"{section}.{key}: unknown key (found {_shown(str(key), value)})."
    if key in sections:
        return f"{found} It belongs in the section {sections[key]}."
    nearest = difflib.get_close_matches(str(key), valid_keys[section], n=1, cutoff=0.6)
    advice = f"Did you mean {nearest[0]}?" if nearest else "Remove it."
    return f"{found} {advice} Accepted: {', '.join(sorted(valid_keys[section]))}."


def _parse_fields(section: str, config_class: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The arguments for `config_class` that `values` give, and the problems found on the way."""
    hints = typing.get_type_hints(config_class)
    arguments, problems = {}, []
    for field in dataclasses.fields(config_class):
        if field.name not in values:
            if field.default is dataclasses.MISSING:
                problems.append(f"{section}.{field.name}: missing. Accepted: {_accepted(hints[field.name], field)}.")
            continue
        value = values[field.name]
        try:
            if section == "hyperparameters" and _is_search_range(value):
                value = middle_of_range(value)
            arguments[field.name] = _convert(value, hints[field.name], field)
        except ValueError as error:
            hint = f" {error}" if str(error) else ""
            found, accepted = _shown(field.name, value), _accepted(hints[field.name], field)
            problems.append(f"{section}.{field.name}: found {found}; accepted is {accepted}.{hint}")
    return arguments, problems


def _shown(key: str, value: Any) -> str:
    if SECRET_KEY.search(key) and isinstance(value, str):
        return "a text that is not repeated here"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _kind(hint: Any) -> tuple[Any, bool]:
    """Splits `str | None` into (str, True)."""
    if isinstance(hint, types.UnionType):
        (kind,) = [part for part in typing.get_args(hint) if part is not type(None)]
        return kind, True
    return hint, False


def _accepted(hint: Any, field: "dataclasses.Field[Any]") -> str:
    kind, optional = _kind(hint)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    limits = field.metadata
    if limits["choices"]:
        text = "one of " + ", ".join(limits["choices"])
    else:
        text = names.get(kind) or ("a list of texts" if typing.get_origin(kind) is list else "a mapping")
        words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
        bounds = [f"{word} {limits[key]:g}" for key, word in words.items() if math.isfinite(limits[key])]
        text = " ".join([text, " and ".join(bounds)]).strip()
    return text + (" or null" if optional else "")


def _convert(value: Any, hint: Any, field: "dataclasses.Field[Any]") -> Any:
    """`value` as the type of the field, whichever YAML parser read it; or a ValueError with a hint."""
    kind, optional = _kind(hint)
    if value is None:
        if optional:
            return None
        required = field.default is dataclasses.MISSING
        raise ValueError("" if required else f"Remove the key for its default, {field.default!r}.")
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            raise ValueError("")
        return [_convert_text(item) for item in value]
    if typing.get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise ValueError("")
        return dict(value)
    if kind is bool:
        return _convert_boolean(value)
    if kind is str:
        value = _convert_text(value)
        if field.metadata["choices"] and value not in field.metadata["choices"]:
            nearest = difflib.get_close_matches(value, field.metadata["choices"], n=1)
            raise ValueError(f"Did you mean {nearest[0]}?" if nearest else "")
        return value
    return _convert_number(value, kind, field.metadata)


def _convert_boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in BOOLEAN_WORDS:
        return BOOLEAN_WORDS[value.lower()]
    raise ValueError("")


def _convert_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    # Which of no, No, off or false stood there is lost, and guessing would change a name in silence.
    raise ValueError("Put it in quotes: YAML reads it as something else than a text.")


def _convert_number(value: Any, kind: type, limits: Mapping[str, float]) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("")
    try:
        number = float(value)  # YAML 1.1 reads 5e-5, which has no dot, as a text.
    except ValueError:
        raise ValueError("") from None
    in_range = limits["minimum"] <= number <= limits["maximum"] and limits["above"] < number < limits["below"]
    if not (math.isfinite(number) and in_range) or (kind is int and not number.is_integer()):
        raise ValueError("")
    return int(number) if kind is int else number


def _is_search_range(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("type") in ("const", "int", "double", "log", "categorical")


def middle_of_range(search_range: Mapping[str, Any]) -> Any:
    """The value that stands for a hyperparameter's search range where nobody draws one: locally.

    Example:
        >>> middle_of_range({"type": "log", "base": 10, "minval": -6, "maxval": -4})
        1e-05
    """
    kind = search_range["type"]
    if kind == "const":
        return search_range.get("val")
    if kind == "categorical":
        if not search_range.get("vals"):
            raise ValueError("A categorical search range needs vals.")
        return search_range["vals"][0]
    low, high = search_range.get("minval"), search_range.get("maxval")
    if not (isinstance(low, (int, float)) and isinstance(high, (int, float))):
        raise ValueError("A search range needs minval and maxval.")
    middle = (low + high) / 2
    if kind == "log":
        return search_range.get("base", 10) ** middle
    return int(middle) if kind == "int" else middle
