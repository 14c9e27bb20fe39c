"""Labels, and the schemes by which they mark entities: recognised and checked. Nothing here imports Determined."""

import logging
import re
from collections.abc import Mapping, Sequence, Set
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


def find_entities(tags: list[str], mode: str = "default", scheme: str | None = None) -> list[Entity]:
    """Find the entities of a sentence, as seqeval does, in tags that `entity_tag` wrote.

    "default" finds them as conlleval does: an I-X after O begins one. "strict" finds only those that keep the rules of
    the scheme, a class of `seqeval.scheme`.

    Example:
        >>> find_entities(["B-PER", "I-PER", "O", "I-LOC"]), find_entities(["O", "I-LOC"], "strict", "IOB2")
        ([('PER', 0, 1), ('LOC', 3, 3)], [])
    """
    if tags.count(OUTSIDE) == len(tags):  # as in many sentences
        return []
    if mode != "strict":
        return _find_as_conlleval(tags)
    (found,) = seqeval_schemes.Entities([tags], getattr(seqeval_schemes, str(scheme))).entities
    return [(entity.tag, entity.start, entity.end - 1) for entity in found]


def _find_as_conlleval(tags: list[str]) -> list[Entity]:
    """What `seqeval.metrics.sequence_labeling.get_entities` finds, whose module imports scikit-learn for a second."""
    found = list[Entity]()
    before, type_before, start = OUTSIDE, "", 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        mark, entity_type = tag[0], tag[1:].split("-", maxsplit=1)[-1] or "_"
        has_changed = entity_type != type_before
        if before in "ES" or (before in "BI" and mark in "BSO") or (before != OUTSIDE and has_changed):
            found.append((type_before, start, place - 1))
        if mark in "BS" or (before in "ESO" and mark in "EI") or (mark != OUTSIDE and has_changed):
            start = place
        before, type_before = mark, entity_type
    return found


@dataclass(frozen=True)
class EncodedTags:
    """The tags of all words of a split, one sentence after the other, as numbers: a word takes a few bytes."""

    names: list[str]  # the different tags
    ids: Array  # for each word the index of its tag in `names`, (words,)
    starts: Array  # for each sentence the index of its first word in `ids`, (sentences,)
    rows: datasets.Dataset  # the split itself, for the places of sentences

    def entities(self, label_scheme: str | None) -> "EntityMarks":
        """Find the entities as seqeval's default mode does, for all words at once."""
        tags = [entity_tag(name, label_scheme) for name in self.names]
        types = find_entity_types(self.names, label_scheme)
        # The ids of types begin with 1; 0 is outside, as is what stands before a sentence.
        type_ids = np.array([types.index(tag[2:]) + 1 if tag != OUTSIDE else 0 for tag in tags])[self.ids]
        prefixes = np.array([tag[0] for tag in tags])[self.ids]
        before_type, before = np.roll(type_ids, 1), np.roll(prefixes, 1)
        before_type[self.starts], before[self.starts] = 0, OUTSIDE
        continues = (type_ids > 0) & (type_ids == before_type)
        begins = (type_ids > 0) & (~continues | np.isin(prefixes, ["B", "S"]) | np.isin(before, ["E", "S"]))
        counts = np.bincount(type_ids[begins], minlength=len(types) + 1)[1:]
        return EntityMarks(dict(zip(types, counts.tolist())), prefixes, before, continues, type_ids, begins)

    def entity_keys(self, label_scheme: str | None) -> set[int]:
        """The keys of the entities that `entities` finds, see `entity_key`."""
        marks = self.entities(label_scheme)
        types, inside = [*marks.counts], marks.type_ids > 0
        tokens = pyarrow.compute.list_flatten(self.rows.with_format("arrow")[:]["tokens"])
        words = tokens.filter(pyarrow.array(inside)).to_pylist()
        starts = np.flatnonzero(marks.begins[inside]).tolist()
        type_ids = marks.type_ids[marks.begins].tolist()
        ends = [*starts[1:], len(words)]
        return {entity_key(words, (types[i - 1], start, end - 1)) for i, start, end in zip(type_ids, starts, ends)}

    def place_of(self, words: Array) -> str:
        """The place of the sentence that holds the first of these words, a mask of (words,)."""
        sentence = int(np.searchsorted(self.starts, np.flatnonzero(words)[0], side="right")) - 1
        return str(self.rows[sentence]["place"])


@dataclass(frozen=True)
class EntityMarks:
    """What the tags of a split say of its entities, in the letters that seqeval reads."""

    counts: dict[str, int]  # number of entities by type
    prefixes: Array  # the first letter of each word's tag, (words,)
    before: Array  # the first letter of the tag before each word; O at the beginning of a sentence, (words,)
    continues: Array  # whether the word before has a tag of the same type, (words,)
    type_ids: Array  # the place of each word's type in `counts`, from 1; 0 outside of entities, (words,)
    begins: Array  # whether an entity begins with the word, (words,)


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
        words = np.isin(tags.ids, [i for i, name in enumerate(tags.names) if name in names])
        if words.any():
            return tags.names[tags.ids[words][0]], tags.place_of(words)
    raise LookupError(names)


def guess_scheme(tags: EncodedTags, schemes: Sequence[str]) -> str | None:
    """Which of the schemes a split looks like, of those that have the letters of all splits; None without an entity."""
    entities = tags.entities(None)
    if not entities.counts:
        return None
    continues, border, kind = entities.continues, "B", "IOB"
    if "IOB2" not in schemes and "IOE2" not in schemes:
        if np.isin(["B", "S"], entities.prefixes).any() and np.isin(["E", "S"], entities.prefixes).any():
            return schemes[0]
        return "IOE" if "E" in entities.prefixes else "IOB"  # no entity of it begins, or none ends
    if "IOB2" not in schemes:  # the same, from the other end
        continues, border, kind = np.append(continues[1:], False), "E", "IOE"
    border_alone = ((entities.prefixes == border) & ~continues).any()  # where no neighbour has its type
    return f"{kind}{2 if border_alone else 1}"


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
