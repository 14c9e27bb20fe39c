"""The model card of an export: what the model does, how well, from what, and how to use it. Pure functions."""

from collections.abc import Mapping
from typing import Any

import ner.report
from transformer_trial.errors import printable

TEMPLATE = """---
library_name: transformers
pipeline_tag: token-classification
tags:
- token-classification
- named-entity-recognition
---

# {title}

Tags words with {num_types} types of entities: {types}. Labels follow the scheme {scheme}.

## Use

```python
from transformers import pipeline

tagger = pipeline("token-classification", model="FOLDER", aggregation_strategy="first")
print(tagger("Ada Lovelace lived in London."))
```

`python3 predict.py --model FOLDER --input FILE --output FILE`, of the project that trained it, tags files: exactly
one tag for each word, as in training, also in texts longer than the {max_seq_length} sub-tokens of the model's input.

{scores}## Data

{data}

## Training

Fine-tuned for {batches} batches. Settings that are not defaults:

{recipe}

Made with {versions}.
"""


def model_card(
    title: str, settings: Mapping[str, Any], data: Mapping[str, Any], reports: Mapping[str, Any], **texts: Any
) -> str:
    """The card as markdown.

    Args:
        title: The experiment's name.
        settings: `config.ner` of the export.
        data: From `ner.inspect.describe_data`.
        reports: For each split that was evaluated with these weights, from `ner.report.ErrorReport`.
        texts: `batches`, `recipe` and `versions` to fill in.
    """
    types = sorted({name for counts in data["splits"].values() for name in counts["entities"]})
    rows = [
        f"| {split} | {counts['sentences']:,} | {counts['words']:,} | {sum(counts['entities'].values()):,} |"
        for split, counts in data["splits"].items()
    ]
    return TEMPLATE.format(
        title=_cell(title),
        num_types=len(types),
        types=", ".join(_cell(name) for name in types),
        scheme=settings["label_scheme"],
        max_seq_length=settings["max_seq_length"],
        scores="".join(_scores(split, report) for split, report in reports.items()),
        data="\n".join(["| split | sentences | words | entities |", "| --- | --- | --- | --- |", *rows]),
        **texts,
    )


def _scores(split: str, report: Mapping[str, Any]) -> str:
    lines = [f"## Scores on the {split} split", "", ner.report.summarize(report), ""]
    lines += ["| type | precision | recall | F1 | entities |", "| --- | --- | --- | --- | --- |"]
    for name, scores in [*report["types"].items(), ("all types", report["overall"])]:
        numbers = " | ".join(f"{scores[key]:.3f}" for key in ner.report.SCORES)
        lines.append(f"| {_cell(name)} | {numbers} | {scores['support']:,} |")
    return "\n".join([*lines, "", ""])


def _cell(text: str) -> str:
    """Text that is neither markdown nor html."""
    shown = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace("~", "&#126;")
    return "".join(f"\\{c}" if c in "\\|`*_[]#" else c for c in shown)
