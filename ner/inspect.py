"""A look at the data before training: what each split holds, and what is odd about it. No Determined here."""

import itertools
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.compute as compute

from ner.labels import OUTSIDE, EncodedTags, encode_tags, entity_tag, find_entity_types, is_invalid
from ner.report import format_table
from ner.windows import NO_POSITION
from transformer_trial.errors import printable

RARE_ENTITIES = 10  # a type that training has fewer of is hard to learn
LONG_SENTENCE = 1000  # words
LONG_WORD = 100  # characters of a word that looks like lost blanks
MANY_UNKNOWN = 0.2  # of the sub-tokens: such a tokenizer was made for other text
MAX_TYPES, MAX_NAMES = 50, 20  # that a table and a line show


def describe_data(
    rows: datasets.DatasetDict, tokenized: datasets.DatasetDict, tokenizer: Any, labels: list[str], label_scheme: str
) -> dict[str, Any]:
    """Count what the splits hold: `labels`, `label_scheme`, `warnings`, and the numbers of each of the `splits`.

    `rows` are checked, with the columns `tokens`, `tags` and `place`; `tokenized` are the same, by `tokenizer`.
    `labels` are all tags, in the order of their ids, also those of rows that are not trained on.
    """
    order = [split for split in dict.fromkeys(["train", "validation", "test", *rows]) if split in rows]
    tags = {split: encode_tags(rows[split]) for split in order}
    hashes = {split: _hash_sentences(rows[split]) for split in order}
    documents = {split: _count_texts(rows[split], "document") for split in order}
    splits: dict[str, dict[str, Any]] = {}
    warnings: list[str] = []
    for split, found in hashes.items():
        entities = tags[split].count_entities(label_scheme)
        splits[split] = counts = _count(tags[split], tokenized[split], entities)
        counts |= _count_texts(rows[split], "notes")
        counts["duplicate sentences"] = len(found) - len(np.unique(found))
        counts |= {"documents": len(documents[split])} if documents[split] else {}
        if unlearned := sorted(set(tags[split].names) - set(tags["train"].names)):
            warnings.append(f"{split} has tags that train has none of, which cannot be learned: {_listed(unlearned)}.")
        if split != "train":
            counts["sentences that train has too"] = shared = int(np.isin(found, hashes["train"]).sum())
            if shared:
                which = f"{shared} of {counts['sentences']} sentences of {split}"
                warnings.append(f"{which} are in train too: scores on them say little about new text.")
            if parted := documents[split].keys() & documents["train"]:
                which = f"{len(parted)} of {len(documents[split])} documents of {split}"
                warnings.append(f"{which} are in train too, by their names: {_listed(sorted(parted), 3)}.")
        if counts["long words"]:
            warnings.append(f"{split} has {counts['long words']} words of more than {LONG_WORD} characters.")
        warnings += _odd_tags(split, tags[split], label_scheme)
        warnings += _unknown_words(split, rows[split], tokenized[split], tokenizer)
    if duplicates := splits["train"]["duplicate sentences"]:
        warnings.append(f"{duplicates} sentences of train are there more than once.")
    number_of = np.bincount(tags["train"].ids)
    name, share = tags["train"].names[number_of.argmax()], number_of.max() / number_of.sum()
    if label_scheme == "plain" and name != OUTSIDE and share > 0.5:
        advice = f"If it stands for no entity, set data.outside_label: {name}."
        warnings.append(f"{share:.0%} of the words of train have the tag {name}, which counts as a type. {advice}")
    if splits["train"]["longest sentence (words)"] > LONG_SENTENCE:
        longest = splits["train"]["longest sentence (words)"]
        warnings.append(f"train has a sentence of {longest:,} words. Are the empty lines between sentences missing?")
    types = find_entity_types(labels, label_scheme)  # those included that no split has an entity of
    if rare := [name for name in types if splits["train"]["entities"].get(name, 0) < RARE_ENTITIES]:
        warnings.append(f"train has fewer than {RARE_ENTITIES} entities of these types: {_listed(rare)}.")
    spellings = [[*names] for _, names in itertools.groupby(sorted(types, key=str.lower), key=str.lower)]
    if alike := [", ".join(names) for names in spellings if len(names) > 1]:
        warnings.append(f"These types differ only in the case of letters: {_listed(alike)}.")
    if not types:
        warnings.append("There is no entity in any split.")
    return {"label_scheme": label_scheme, "labels": [*labels], "splits": splits, "warnings": warnings}


def _listed(names: list[str], most: int = MAX_NAMES) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _count_texts(rows: datasets.Dataset, column: str) -> dict[str, int]:
    """Count each text in a column of texts or of lists of these, if there is one, empty ones left out."""
    texts = rows.with_format("arrow")[:][column] if column in rows.column_names else pyarrow.array([], pyarrow.string())
    counts = compute.value_counts(texts if pyarrow.types.is_string(texts.type) else compute.list_flatten(texts))
    return {count["values"]: count["counts"] for count in counts.to_pylist() if count["values"]}


def _count(tags: EncodedTags, tokenized: datasets.Dataset, entities: dict[str, int]) -> dict[str, Any]:
    tokens = tags.rows.with_format("arrow")[:]["tokens"]
    characters = compute.utf8_length(compute.list_flatten(tokens))
    windows = tokenized.with_format("arrow")[:]
    window_of = np.empty(len(characters), np.int64)
    window_of[compute.list_flatten(windows["word_ids"])] = compute.list_parent_indices(windows["word_ids"])
    is_cut = np.maximum.reduceat(window_of, tags.starts) != np.minimum.reduceat(window_of, tags.starts)
    positions = compute.list_flatten(windows["word_positions"])
    return {
        "sentences": tags.rows.num_rows,
        "words": len(characters),
        "longest sentence (words)": compute.max(compute.list_value_length(tokens)).as_py(),
        "longest word (characters)": compute.max(characters).as_py(),
        "long words": compute.sum(compute.greater(characters, LONG_WORD)).as_py() or 0,
        "sentences in several windows": int(is_cut.sum()),
        "words without sub-tokens": compute.sum(compute.equal(positions, NO_POSITION)).as_py() or 0,
        "entities": entities,
    }


def _hash_sentences(rows: datasets.Dataset) -> np.ndarray[Any, Any]:
    """A number for each sentence, the same for the same words."""
    batches = rows.with_format("arrow").iter(1000)
    return np.array([hash(tuple(words)) for batch in batches for words in batch["tokens"].to_pylist()])


def _odd_tags(split: str, tags: EncodedTags, label_scheme: str) -> list[str]:
    """A warning where tags follow each other against the rules of their scheme."""

    def is_odd(tag: str, next_tag: str) -> bool:
        return is_invalid(entity_tag(tag, label_scheme), entity_tag(next_tag, label_scheme), label_scheme)

    odd = tags.mark_steps(is_odd)
    if not odd.any():
        return []
    (tag, next_tag), place = tags.locate_first(odd)
    found = f"{split} has {odd.sum()} tags that {label_scheme} forbids there, first {next_tag} after {tag} in {place}"
    return [f"{found}; an entity is taken to begin or end there, but under metric_mode: strict it does not count."]


def _unknown_words(split: str, rows: datasets.Dataset, tokenized: datasets.Dataset, tokenizer: Any) -> list[str]:
    """A warning with examples, where the tokenizer has no entry for many parts of the words."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.sep_token_id):  # it spells whatever there is
        return []
    sub_tokens = compute.list_flatten(tokenized.with_format("arrow")[:]["input_ids"])
    number = len(sub_tokens) - tokenized.num_rows * tokenizer.num_special_tokens_to_add()
    share = (compute.sum(compute.equal(sub_tokens, unknown)).as_py() or 0) / max(number, 1)
    if share <= MANY_UNKNOWN:
        return []
    words = compute.unique(compute.list_flatten(rows.with_format("arrow")[:]["tokens"]))[:20_000].to_pylist()
    tried = zip(words, tokenizer([[word] for word in words], is_split_into_words=True)["input_ids"])
    examples = ", ".join(itertools.islice((word for word, ids in tried if unknown in ids), 3))
    advice = "The model learns little of these words: take one whose tokenizer was made for such text"
    return [f"{share:.0%} of the sub-tokens of {split} are unknown to the tokenizer, as in: {examples}. {advice}."]


def format_data(description: Mapping[str, Any]) -> str:
    """The description as a table with a column for each split, and the warnings below."""
    splits = description["splits"]
    names = dict.fromkeys(name for counts in splits.values() for name in counts if name != "entities")
    found = [counts["entities"] for counts in splits.values()]
    rows = [["", *splits]]
    rows += [[name, *(f"{counts[name]:,}" if name in counts else "-" for counts in splits.values())] for name in names]
    rows.append(["entities", *(f"{sum(entities.values()):,}" for entities in found)])
    types = sorted(set().union(*found), key=lambda name: -sum(entities.get(name, 0) for entities in found))
    types, more = sorted(types[:MAX_TYPES]), types[MAX_TYPES:]
    rows += [[f"- {name}", *(f"{entities.get(name, 0):,}" for entities in found)] for name in types]
    if more:
        others = (sum(entities.get(name, 0) for name in more) for entities in found)
        rows.append([f"- and {len(more):,} more", *(f"{number:,}" for number in others)])
    lines = format_table([[printable(cell) for cell in row] for row in rows]).split("\n")
    lines.append(f"The labels' scheme is {description['label_scheme']}: {_listed(description['labels'])}")
    lines += [f"Warning: {warning}" for warning in description["warnings"]]
    return "\n".join(map(printable, lines))
