"""The errors that a user's mistakes end in, and how a message shows a value: short, printable, without secrets."""

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

# Names of what is never repeated in a message, since Determined stores logs; and what shows itself to be a secret,
# whatever it is called: tokens of known services, keys, and the password of an address.
_NAME = (
    r"(?:(?<![a-z])|(?<=[a-z])(?=[A-Z]))(?<!(?:pad|eos|bos|sep|cls|unk)_)(?<!mask_)(?i:token|passw(?:or)?d|passphrase|pass|"
    r"pwd|pat|hf_tokens|bearer|cookies?|session|sas|secrets?|credentials?|auth|authorization|connection_?string|aws_\w+|"
    r"(?:\w+_)?(?:api|access|private|account|secret|openai|hf)_?key)(?![a-z])"
)
SECRET_NAME = re.compile(_NAME)
SECRET_ASSIGNMENT = re.compile(rf"([\w.-]*{_NAME}[\w.-]*['\"]?\s*[=:]\s*)(?!null|true|false)(\S.*|\S+)")
SECRET_VALUE = re.compile(
    r"\b(?:hf_|gh[opsru]_|github_pat_)\w{16,}|\bsk-[\w-]{16,}|\bAKIA[0-9A-Z]{12,}|\bxox[abp]-[\w-]{10,}|"
    r"(?i:\bbearer) +[\w.~+/-]{8,}=*|\beyJ[\w-]+\.[\w-]+\.[\w-]+|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*-----|$)"
)

MAX_VALUES = 100_000  # of a configuration; a few aliases of aliases make more than any memory holds

# Invisible letters that Persian, Indic scripts and emoji are spelled with; they reorder nothing.
JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """The text, with whatever is invisible, or acts on a terminal or on the order of letters, as its code point.

    Example:
        >>> printable("a\\x1b[1mb")
        'a⟨U+001B⟩[1mb'
    """
    return "".join(c if c.isprintable() or c in JOINERS else f"⟨U+{ord(c):04X}⟩" for c in text)


class PrintableFormatter(logging.Formatter):
    """Shows in a log what would act on a terminal, such as a name of a file, as its code point."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def set_up_log(level: int, text_format: str = "%(message)s") -> None:
    """Log to standard error, whatever encoding that has."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter(text_format))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class TrialError(ValueError):
    """A mistake in what the user gave, which its one-paragraph message explains without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(printable(line) for line in message.split("\n")))


class ConfigError(TrialError):
    """One or more mistakes in the experiment configuration, each on a line of its own."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  - ".join([f"The experiment configuration has {count}:", *problems]))


def reason_of(error: BaseException) -> str:
    """What an error of a library says, on one line and without its full stop; its kind, where it says nothing."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def format_value(key: str, value: Any) -> str:
    """`value` as a message repeats it: on one line, not at length, and without secrets."""
    text = repr(value)
    searched = f"{key} {text}" if isinstance(value, (Mapping, list)) else key
    is_secret = SECRET_NAME.search(searched) or SECRET_VALUE.search(text) or repr(redact(value)) != text
    if is_secret and not (value is None or isinstance(value, bool)):
        return "a value that is not repeated here (secrets belong in the environment, such as HF_TOKEN)"
    return text if len(text) <= 80 else text[:77] + "..."


def explain_value(key: str, value: Any, accepted: str, advice: str = "") -> str:
    """The problem that a key has a wrong value."""
    return f"{key}: found {format_value(key, value)}; accepted is {accepted}. {advice}".rstrip()


def redact(value: Any, *, is_secret: bool = False) -> Any:
    """A configuration without its secrets: what is called one, as a key or in NAME=VALUE, or shows itself to be one."""
    if isinstance(value, Mapping):
        return {k: redact(v, is_secret=is_secret or bool(SECRET_NAME.search(str(k)))) for k, v in value.items()}
    if isinstance(value, list):
        return [redact(item, is_secret=is_secret) for item in value]
    if is_secret and not (value is None or isinstance(value, bool)):
        return "REDACTED"
    if isinstance(value, str):
        return SECRET_VALUE.sub("REDACTED", SECRET_ASSIGNMENT.sub(r"\1REDACTED", value))
    return value


def count_values(value: Any, counts: dict[int, int]) -> int:
    """How many values a value of yaml holds where each alias stands for a copy; `counts` has those of ids counted."""
    if id(value) not in counts:
        counts[id(value)] = 1  # also where it contains itself
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
        counts[id(value)] += sum(count_values(item, counts) for item in items)
    return counts[id(value)]


def nearest(word: str, choices: Iterable[str], likeness: float = 0.6) -> str | None:
    """The choice that is most like `word`, whatever their case; None where none is as like as that, of 1."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=likeness)
    return by_lower[close[0]] if close else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    close = nearest(word, choices)
    return f"Did you mean {close}?" if close and close != word else ""
