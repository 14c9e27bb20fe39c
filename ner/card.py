"""The model card of an export: what the model does, how well, from what, and how to use it. Its text is card.md.j2."""

from collections.abc import Mapping
from typing import Any

from ner.report import render_template, summarize
from transformer_trial.errors import printable


def model_card(
    title: str, settings: Mapping[str, Any], data: Mapping[str, Any], reports: Mapping[str, Any], **texts: Any
) -> str:
    """The card as markdown, of the experiment `title`.

    `settings` are `config.ner` of the export, `data` comes from `ner.inspect.describe_data`, `reports` from
    `ErrorReport.as_dict`, for each split that was evaluated with these weights; `texts` are `batches`, `recipe` and
    `versions`.
    """
    texts |= {"title": title, "settings": settings, "data": data, "reports": reports, "summarize": summarize}
    types = sorted({name for counts in data["splits"].values() for name in counts["entities"]})
    return render_template("card.md.j2", escape_markdown, types=types, **texts)


def escape_markdown(text: str) -> str:
    """Text that is neither markdown nor html."""
    shown = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace("~", "&#126;")
    return "".join(f"\\{c}" if c in "\\|`*_[]#" else c for c in shown)
