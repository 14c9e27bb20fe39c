"""A look at the data before training: what there is in each split, and what is odd about it. Pure functions."""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.compute

from ner.labels import EncodedTags, EntityMarks, encode_tags, find_entity_types
from ner.windows import NO_POSITION
from ner_utils import DatasetMetadata
from transformer_trial.errors import printable

RARE_ENTITIES = 10
"""A type that training has fewer of is hard to learn."""

LONG_WORD = 100
"""Characters of a word that looks like lost blanks."""


def describe_data(
    rows: datasets.DatasetDict, tokenized: datasets.DatasetDict, metadata: DatasetMetadata
) -> dict[str, Any]:
    """Count what the splits hold.

    Args:
        rows: Checked rows, with the columns `tokens`, `tags` and `place`.
        tokenized: The same, tokenized.
        metadata: Of all rows, those included that are not trained on.

    Returns:
        `labels`, `label_scheme`, `warnings` (sentences), and `splits`: for each the numbers that `format_data` shows.
    """
    tags = {split: encode_tags(rows[split]) for split in rows}
    scheme = metadata.label_scheme
    entities = {split: tags[split].entities(scheme) for split in rows}
    splits = {split: _count(rows[split], tokenized[split], entities[split].counts) for split in rows}
    warnings: list[str] = []
    hashes = {split: _hash_sentences(rows[split]) for split in rows}
    for split, found in hashes.items():
        splits[split]["duplicate sentences"] = len(found) - len(np.unique(found))
        if split != "train":
            splits[split]["sentences that train has too"] = int(np.isin(found, hashes["train"]).sum())
    learned = splits["train"]["entities"]
    for split, counts in splits.items():
        if unlearned := sorted(set(tags[split].names) - set(tags["train"].names)):
            warnings.append(f"{split} has tags that train has none of, which cannot be learned: {_listed(unlearned)}.")
        if counts.get("sentences that train has too"):
            warnings.append(
                f"{counts['sentences that train has too']} of {counts['sentences']} sentences of {split} are in train "
                "too: scores on them say little about new text."
            )
        if counts["long words"]:
            warnings.append(f"{split} has {counts['long words']} words of more than {LONG_WORD} characters.")
        warnings += _odd_tags(split, tags[split], entities[split], scheme)
    if duplicates := splits["train"]["duplicate sentences"]:
        warnings.append(f"{duplicates} sentences of train are there more than once.")
    types = find_entity_types(metadata.label_list, scheme)  # those included that no split has an entity of
    if rare := [name for name in types if learned.get(name, 0) < RARE_ENTITIES]:
        warnings.append(f"train has fewer than {RARE_ENTITIES} entities of these types: {_listed(rare)}.")
    return {"label_scheme": scheme, "labels": metadata.label_list, "splits": splits, "warnings": warnings}


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _count(rows: datasets.Dataset, tokenized: datasets.Dataset, entities: dict[str, int]) -> dict[str, Any]:
    compute = pyarrow.compute
    tokens = rows.with_format("arrow")[:]["tokens"]
    lengths = compute.list_value_length(tokens)
    characters = compute.utf8_length(compute.list_flatten(tokens))
    windows = tokenized.with_format("arrow")[:]
    sentence_ids = windows["sentence_id"].to_numpy()
    positions = compute.list_flatten(windows["word_positions"])
    return {
        "sentences": rows.num_rows,
        "words": len(characters),
        "longest sentence (words)": compute.max(lengths).as_py(),
        "longest word (characters)": compute.max(characters).as_py(),
        "long words": compute.sum(compute.greater(characters, LONG_WORD)).as_py() or 0,
        "sentences in several windows": int((np.unique(sentence_ids, return_counts=True)[1] > 1).sum()),
        "words without sub-tokens": compute.sum(compute.equal(positions, NO_POSITION)).as_py() or 0,
        "entities": entities,
    }


def _hash_sentences(rows: datasets.Dataset) -> np.ndarray[Any, Any]:
    """A number for each sentence, the same for the same words."""
    batches = rows.with_format("arrow").iter(1000)
    return np.array([hash(tuple(words)) for batch in batches for words in batch["tokens"].to_pylist()])


def _odd_tags(split: str, tags: EncodedTags, entities: EntityMarks, label_scheme: str) -> list[str]:
    """What is said about tags that go on where nothing has begun, or stop where nothing has ended."""
    inside = np.isin(entities.prefixes, ["I", "E"])
    goes_on = inside & entities.continues & np.isin(entities.before, ["B", "I"])
    unended = np.isin(entities.prefixes, ["B", "I"]) & ~np.append(goes_on[1:], False)
    kinds = [
        ("IOB2", inside & ~goes_on, "go on with an entity that has not begun, as I- after O", "begin"),
        ("IOE2", unended, "leave an entity without its end, as I- before O", "end"),
    ]
    return [
        f"{split} has {odd.sum()} words whose tags {what}, first in {tags.place_of(odd)}; an entity is taken to {verb} "
        "there, but under metric_mode: strict it does not count."
        for scheme, odd, what, verb in kinds
        if label_scheme in (scheme, "BIOES", "BILOU") and odd.any()
    ]


def format_data(description: Mapping[str, Any]) -> str:
    """The description as a table with a column for each split, and the warnings below."""
    splits = description["splits"]
    names = [name for name in splits["train"] if name != "entities"]
    names += [name for name in next(reversed(splits.values())) if name not in (*names, "entities")]
    types = sorted({entity for counts in splits.values() for entity in counts["entities"]})
    table = [[name, *(counts.get(name, "") for counts in splits.values())] for name in names]
    table.append(["entities", *(sum(counts["entities"].values()) for counts in splits.values())])
    table += [[f"  {entity}", *(counts["entities"].get(entity, 0) for counts in splits.values())] for entity in types]
    cells = [["", *splits], *([row[0], *(f"{n:,}" if n != "" else "-" for n in row[1:])] for row in table)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [row[0].ljust(widths[0]) + "".join(f"  {c.rjust(w)}" for c, w in zip(row[1:], widths[1:])) for row in cells]
    lines.append(f"The labels' scheme is {description['label_scheme']}: {', '.join(description['labels'])}")
    lines += [f"Warning: {warning}" for warning in description["warnings"]]
    return "\n".join(map(printable, lines))
