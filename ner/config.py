"""What the configuration says of named-entity recognition, and what the config of an exported model keeps of it."""

from dataclasses import dataclass, field
from typing import Any

from ner.data import NERDataConfig as NERDataConfig


@dataclass(frozen=True)
class TaggerSettings:
    """How a model tags. The exported model's config keeps it as `ner`, for `predict.py`."""

    label_scheme: str | None = None
    """The scheme by which the model's labels mark entities; None is unknown."""
    label_names: list[str] | None = None
    """What numbers among the tags of the training data stood for."""
    max_seq_length: int | None = None
    """Sub-tokens of a window, special tokens included; None is as many as tokenizer and model take."""
    doc_stride: int | None = None
    """Sub-tokens that two windows share."""
    metric_options: dict[str, Any] = field(default_factory=lambda: {"mode": "default", "scheme": None})
    """How entities are counted: `mode` and `scheme` as in `ner.labels.find_entities`."""

    @classmethod
    def from_config(cls, config: Any) -> "TaggerSettings":
        """Read the settings from a model's config; a model of another origin has the defaults."""
        return cls(**(getattr(config, "ner", None) or {}))
