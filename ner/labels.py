"""Labels, and the schemes by which they mark entities: recognised and checked. Nothing here imports Determined."""

import functools
import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow.compute
from seqeval import scheme as seqeval_schemes

from ner.cells import join_names
from transformer_trial.errors import ConfigError, TrialError

logger = logging.getLogger(__name__)

OUTSIDE = "O"  # the tag of a word outside of any entity, and the prediction for a word without sub-tokens

Array = np.ndarray[Any, Any]
Entity = tuple[str, int, int]  # type, first and last word

# The letters that a tag of each scheme may begin with. BIOES takes M and W for I and S, as BMES and BMEWO write them.
PREFIXES = dict(IOB2="BI", IOB1="BI", IOE2="IE", IOE1="IE", BIOES="BIESMW", BILOU="BILU", plain="")
PREFIXED = re.compile(r"[BIESLUMW]-.")

# For each scheme, in the prefixes that `entity_tag` writes: those that must follow B or I of their type, and those that
# I or E of their type must follow.
TRANSITION_RULES: dict[str | None, tuple[str, str]] = {
    "IOB1": ("B", ""), "IOB2": ("I", ""), "IOE1": ("", "E"), "IOE2": ("", "I"),
    "BIOES": ("IE", "BI"), "BILOU": ("IE", "BI"),
}  # fmt: skip

# seqeval's default mode knows the letters of BIOES only: these are others for them. And it calls some schemes
# otherwise, or `entity_tag` converts them to another.
SEQEVAL_PREFIXES = {"M": "I", "W": "S", "L": "E", "U": "S"}
SEQEVAL_SCHEMES = {"BIOES": "IOBES", "BILOU": "IOBES", "plain": "IOB1"}


def entity_tag(label: str, label_scheme: str | None = None) -> str:
    """The label as both modes of seqeval can read it; a type without a prefix becomes I- and the type.

    Example:
        >>> [entity_tag(label) for label in ("B-PER", "L-PER", "PER", "O")]
        ['B-PER', 'E-PER', 'I-PER', 'O']
    """
    if label == OUTSIDE:
        return label
    if label_scheme == "plain" or not PREFIXED.match(label):
        return f"I-{label}"
    return SEQEVAL_PREFIXES.get(label[0], label[0]) + label[1:]


def entity_key(words: Sequence[str], entity: Entity) -> int:
    """What the same type and words have in common, in this process."""
    entity_type, first, last = entity
    return hash((entity_type, *words[first : last + 1]))


def find_entity_types(label_list: Sequence[str], label_scheme: str | None = None) -> list[str]:
    return sorted({entity_tag(label, label_scheme)[2:] for label in label_list if label != OUTSIDE})


@functools.cache
def begins_entity(before: str, tag: str) -> bool:
    """Whether an entity begins with a tag after another, as conlleval has it, both as `entity_tag` writes them.

    An I-X after O begins one, and O stands before the first tag of a sentence.
    """
    return tag != OUTSIDE and (tag[1:] != before[1:] or tag[0] in "BS" or before[0] in "ES")


@functools.cache
def is_invalid(tag: str, next_tag: str, scheme: str | None) -> bool:
    """Whether the scheme forbids that one tag follows another, both as `entity_tag` writes them.

    Example:
        >>> is_invalid("O", "I-PER", "IOB2"), is_invalid("B-PER", "I-PER", "IOB2")
        (True, False)
    """
    must_follow, must_be_followed = TRANSITION_RULES.get(scheme, ("", ""))
    same_type = tag[1:] == next_tag[1:]
    follows, is_followed = same_type and tag[0] in "BI", same_type and next_tag[0] in "IE"
    return (next_tag[0] in must_follow and not follows) or (tag[0] in must_be_followed and not is_followed)


def find_entities(tags: list[str], mode: str = "default", scheme: str | None = None) -> list[Entity]:
    """Find the entities of a sentence, as seqeval does, in tags that `entity_tag` wrote.

    "default" finds them as conlleval does, see `begins_entity`: seqeval's own function takes a second to import.
    "strict" finds only those that keep the rules of the scheme, a class of `seqeval.scheme`.

    Example:
        >>> find_entities(["B-PER", "I-PER", "O", "I-LOC"]), find_entities(["O", "I-LOC"], "strict", "IOB2")
        ([('PER', 0, 1), ('LOC', 3, 3)], [])
    """
    found = list[Entity]()
    if tags.count(OUTSIDE) == len(tags):  # as in many sentences
        return found
    if mode == "strict":
        (strict,) = seqeval_schemes.Entities([tags], getattr(seqeval_schemes, str(scheme))).entities
        return [(entity.tag, entity.start, entity.end - 1) for entity in strict]
    start = 0
    for place, (before, tag) in enumerate(itertools.pairwise([OUTSIDE, *tags, OUTSIDE])):
        begins = begins_entity(before, tag)
        if before != OUTSIDE and (begins or tag == OUTSIDE):
            found.append((before[2:], start, place - 1))
        if begins:
            start = place
    return found


@dataclass(frozen=True)
class EncodedTags:
    """The tags of all words of a split, one sentence after the other, as numbers: a word takes a few bytes."""

    names: list[str]  # the different tags
    ids: Array  # for each word the index of its tag in `names`, (words,)
    starts: Array  # for each sentence the index of its first word in `ids`, (sentences,)
    rows: datasets.Dataset  # the split itself, for the places of sentences

    @functools.cached_property
    def steps(self) -> tuple[list[tuple[str, str]], Array]:
        """The different steps from a tag to the next, and the index of each that is made, (words + sentences,).

        They are in the order of the words. O stands before the first tag of a sentence, and after its last one.
        """
        names, end = [*self.names, OUTSIDE], len(self.names)
        ids = np.insert(self.ids.astype(np.int64), np.append(self.starts[1:], len(self.ids)), end)
        encoded = pyarrow.array(np.roll(ids, 1) * len(names) + ids).dictionary_encode()
        steps = [divmod(code, len(names)) for code in encoded.dictionary.to_pylist()]
        return [(names[before], names[tag]) for before, tag in steps], encoded.indices.to_numpy()

    def mark_steps(self, rule: Callable[[str, str], bool]) -> Array:
        """Whether the rule holds for each step that is made, (words + sentences,)."""
        steps, made = self.steps
        return np.array([rule(*step) for step in steps])[made]

    def locate_first(self, marks: Array) -> tuple[tuple[str, str], str]:
        """The first marked step, and the place of its sentence."""
        steps, made = self.steps
        sentence = np.searchsorted(self.starts + np.arange(len(self.starts)), marks.argmax(), side="right") - 1
        return steps[made[marks.argmax()]], self.rows[int(sentence)]["place"]

    def count_entities(self, label_scheme: str | None) -> dict[str, int]:
        """How many entities there are of each type, as seqeval's default mode finds them."""
        counts, (steps, made) = Counter[str](), self.steps
        for step, number in zip(steps, np.bincount(made).tolist()):
            before, tag = (entity_tag(name, label_scheme) for name in step)
            counts[tag[2:]] += number * begins_entity(before, tag)
        return {name: counts[name] for name in find_entity_types(self.names, label_scheme)}

    def entity_keys(self, label_scheme: str | None) -> set[int]:
        """The keys of the entities that `count_entities` counts, see `entity_key`."""
        tags = {name: entity_tag(name, label_scheme) for name in [*self.names, OUTSIDE]}
        inside = np.array([name != OUTSIDE for name in self.names])[self.ids]
        begins = self.mark_steps(lambda before, tag: begins_entity(tags[before], tags[tag]))
        starts = np.flatnonzero(begins[self.mark_steps(lambda _, tag: tag != OUTSIDE)]).tolist()
        types = [tags[self.names[i]][2:] for i in self.ids[inside][starts]]
        tokens = pyarrow.compute.list_flatten(self.rows.with_format("arrow")[:]["tokens"])
        words = tokens.filter(pyarrow.array(inside)).to_pylist()
        ends = [*starts[1:], len(words)]
        return {entity_key(words, (name, start, end - 1)) for name, start, end in zip(types, starts, ends)}


def count_words(rows: datasets.Dataset) -> Array:
    """For each sentence the number of words before it, and at the end that of all words, (sentences + 1,)."""
    lengths = pyarrow.compute.list_value_length(rows.with_format("arrow")[:]["tags"]).to_numpy()
    return np.append(0, np.cumsum(lengths, dtype=np.int64))


def encode_tags(rows: datasets.Dataset) -> EncodedTags:
    """Encode the column `tags` of checked rows."""
    encoded = pyarrow.compute.list_flatten(rows.with_format("arrow")[:]["tags"]).dictionary_encode().combine_chunks()
    return EncodedTags(encoded.dictionary.to_pylist(), encoded.indices.to_numpy(), count_words(rows)[:-1], rows)


def choose_best_by(metric: tuple[str, bool], rows: Mapping[str, datasets.Dataset]) -> tuple[str, bool]:
    """The metric that chooses the best model: the searcher's, or, where validation has no entity, the loss."""
    has_none = "validation" in rows and {*encode_tags(rows["validation"]).names} <= {OUTSIDE}
    if metric[0] in ("validation_loss", "accuracy_score") or not has_none:
        return metric
    effect = "is always 0, and validation_loss chooses the model"
    logger.warning("The validation split has no entity: %s %s.", metric[0], effect)
    return "validation_loss", True


def find_label_scheme(splits: Mapping[str, EncodedTags], requested: str | None) -> str:
    """Find the scheme that the tags of all splits follow: the requested one, or the one that they look like.

    Tags without any prefix are plain. Otherwise their letters tell the scheme. B- and I- alone are IOB1 if every B-
    stands right after a word of its own type, else IOB2. Tags that mix schemes are a TrialError.
    """
    names = {name for tags in splits.values() for name in tags.names if name != OUTSIDE}
    plain = {name for name in names if not PREFIXED.match(name)}
    if requested is None and {"B", "I"} <= plain:
        tag, place = _find_first(splits, set("BI"))
        advice = "Write a type after each, as B-PER and I-PER, or set data.label_scheme: plain if they are types."
        raise TrialError(f"{place}: the tag {tag} names no type; found are {join_names(sorted(names))}. {advice}")
    types = {name[2:] for name in names - plain}
    prefixed = {name for name in types if PREFIXED.match(name)}
    both = {f"B-{name[2:]}" for name in prefixed if name[0] == "I"} & prefixed
    if requested is None and (both or (len(types) > 1 and types == prefixed)):
        tag, place = _find_first(splits, {name for name in names if name[2:] in prefixed})
        found = f"the entity's type {tag[2:]} begins with a prefix; found are {join_names(sorted(types))}"
        advice = "Write types alone, such as PER, for whole entities; or name the scheme with data.label_scheme."
        raise TrialError(f"{place}: {found}. {advice}")
    if requested == "plain" or (plain and requested is None and plain == names):
        return "plain"
    letters = {name[0] for name in names - plain}
    schemes = [scheme for scheme, allowed in PREFIXES.items() if letters <= set(allowed)]
    if plain or not schemes or requested not in (None, *schemes):
        odd = plain or {name for name in names if name[0] not in PREFIXES[requested or "IOB2"]}
        tag, place = _find_first(splits, odd)
        found = f"the tag {tag} does not go with {requested or 'the others'}; found are {join_names(sorted(names))}"
        advice = "or name the scheme with data.label_scheme; plain takes tags as types, whatever they begin with"
        accepted = f"Accepted are tags of one scheme ({', '.join(PREFIXES)}). Write them alike, {advice}."
        raise TrialError(f"{place}: {found}. {accepted}")
    if requested is not None:
        return requested
    looks = {split: look for split, tags in splits.items() if (look := guess_scheme(tags, schemes))}
    if len(set(looks.values())) > 1:
        different = ", ".join(f"{split} like {look}" for split, look in looks.items())
        advice = "Convert one of them, or name one scheme with data.label_scheme."
        rule = "In IOB2 each entity begins with B-, in IOB1 only one right after another of its type."
        raise TrialError(f"The splits mark entities in different schemes: {different}. {rule} {advice}")
    return next((look for look in looks.values() if look in schemes), schemes[0])


def _find_first(splits: Mapping[str, EncodedTags], names: Set[str]) -> tuple[str, str]:
    """The tag and the place of the first word that has one of these tags."""
    for tags in splits.values():
        marks = tags.mark_steps(lambda _, tag: tag in names)
        if marks.any():
            (_, tag), place = tags.locate_first(marks)
            return tag, place
    raise LookupError(names)


def guess_scheme(tags: EncodedTags, schemes: Sequence[str]) -> str | None:
    """Which of the schemes a split looks like, of those that have the letters of all splits; None without an entity."""
    steps = [(entity_tag(before), entity_tag(tag)) for before, tag in tags.steps[0]]
    letters = {tag[0] for _, tag in steps} - {OUTSIDE}
    if not letters:
        return None
    changes = [(before[0], tag[0]) for before, tag in steps if before[1:] != tag[1:]]
    if "IOB2" in schemes:
        return "IOB2" if any(letter == "B" for _, letter in changes) else "IOB1"
    if "IOE2" in schemes:
        return "IOE2" if any(letter == "E" for letter, _ in changes) else "IOE1"
    if letters & {"B", "S"} and letters & {"E", "S"}:
        return schemes[0]
    return "IOE" if "E" in letters else "IOB"  # no entity of it begins, or none ends


def choose_metric_scheme(label_list: Sequence[str], label_scheme: str, requested: str | None) -> str:
    """Choose the scheme that mode "strict" goes by, by seqeval's name: the requested one, or that of the tags."""
    own, scheme = (SEQEVAL_SCHEMES.get(name, name) for name in (label_scheme, requested or label_scheme))
    try:
        if scheme != own and (label_scheme == "plain" or PREFIXES.get(scheme) != PREFIXES.get(own)):
            raise ValueError(f"they are {label_scheme}")  # seqeval might read them, and find no entity in any
        find_entities([entity_tag(label, label_scheme) for label in label_list], "strict", scheme)
    except (ValueError, KeyError) as error:
        what = f"{requested or 'null'} does not suit the tags {join_names(label_list)} ({error})"
        advice = "Name the scheme that they follow, or set metric_mode: default."
        raise ConfigError([f"data.metric_scheme: {what}. {advice}"]) from None
    return scheme
