"""Write the embedded default: invented sentences, a tokenizer trained on them, and a tiny model's configuration.

Run `python3 sample/generate.py` to write `data/` and `model/` beside this file again, with the same bytes each time.
The sentences come from `grammar.txt`. Names are put together from parts, so that the training file lacks nearly all
names of the validation and test files; it lacks some of their sentence templates as well.
"""

from __future__ import annotations

import csv
import json
import random
import re
import string
from pathlib import Path

import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FOLDER = Path(__file__).resolve().parent
SEED = 7
SIZES = {"train": 1000, "validation": 200, "test": 200}
"""Sentences in each file."""
PHRASE_SHARE = 0.15
"""Part of the sentences that open with a phrase such as `Meanwhile ,`; as many end with one such as `, she added .`."""
SEEN_SHARE = 0.08
"""Part of the names outside the training file that are taken from it."""

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY_SIZE = 900
"""Small enough that a name unknown to the model is cut into pieces that it knows."""
MAX_LENGTH = 128
"""Sub-tokens, special tokens included."""

Sentence = tuple[list[str], list[str]]
"""A sentence's words, and as many IOB2 tags."""


def read_grammar(path: Path) -> dict[str, list[str]]:
    """Return the alternatives of every symbol; those of `-` and `*` are the sentence templates."""
    grammar: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(("- ", "* ")):
            grammar.setdefault(line[0], []).append(line[2:])
        elif line and not line.startswith("#"):
            symbol, _, alternatives = line.partition(": ")
            grammar.setdefault(symbol, []).extend(alternatives.split(" | " if " | " in alternatives else None))
    return grammar


class Writer:
    """Writes sentences, and keeps the training file's names and some templates out of the other files."""

    def __init__(self, path: Path, seed: int) -> None:
        """Begin a sequence of sentences that depends on the grammar and the seed alone."""
        self.rng = random.Random(seed)
        self.grammar = read_grammar(path)
        self.deck: list[str] = []
        self.training_names: dict[str, list[str]] = {}
        self.written: set[str] = set()

    def expand(self, text: str) -> str:
        """Replace each `{symbol}` by one of its alternatives, until no slot is left."""
        while "{" in text:
            text = re.sub("{(.+?)}", lambda slot: self.rng.choice(self.grammar[slot[1]]), text, count=1)
        return text

    def draw_name(self, symbol: str, *, training: bool) -> str:
        """Return a name for an entity's symbol: outside training, nearly always one that the training file lacks."""
        if training:
            name = self.expand(f"{{{symbol}}}")
            self.training_names.setdefault(symbol, []).append(name)
            return name
        if self.rng.random() < SEEN_SHARE:
            return self.rng.choice(self.training_names[symbol])
        seen = {name.lower() for names in self.training_names.values() for name in names}
        while (name := self.expand(f"{{{symbol}}}")).lower() in seen:
            pass
        return name

    def draw_template(self, *, training: bool) -> str:
        """Return the next template of a shuffled deck, at times with an opening or a closing phrase."""
        if not self.deck:
            self.deck = self.grammar["-"] + ([] if training else self.grammar["*"])
            self.rng.shuffle(self.deck)
        template = self.deck.pop()
        if not re.fullmatch("[A-Z{].* [.]", template):
            return template
        if self.rng.random() < PHRASE_SHARE:
            template = f"{self.rng.choice(self.grammar['lead'])} {template[0].lower()}{template[1:]}"
        if self.rng.random() < PHRASE_SHARE:
            template = template.removesuffix(".") + self.rng.choice(self.grammar["tail"])
        return template

    def fill(self, template: str, *, training: bool) -> Sentence:
        """Return the sentence that a template makes: slots filled, every word tagged."""
        words: list[str] = []
        tags: list[str] = []
        for piece in template.split():
            if piece.startswith("{") and piece[1].isupper():
                symbol = piece.strip("{}")
                entity_type = symbol.split(".")[0]
                name = self.draw_name(symbol, training=training).split()
                words += name
                tags += [f"B-{entity_type}"] + [f"I-{entity_type}"] * (len(name) - 1)
            else:
                words.append(self.expand(piece))
                tags.append("O")
        return [word.lower() for word in words] if template[0].islower() else words, tags

    def write_sentences(self, number: int, *, training: bool) -> list[Sentence]:
        """Return that many sentences, each unlike all that were written before it."""
        sentences: list[Sentence] = []
        self.deck = []
        while len(sentences) < number:
            words, tags = self.fill(self.draw_template(training=training), training=training)
            if (text := " ".join(words)) not in self.written:
                self.written.add(text)
                sentences.append((words, tags))
        return sentences


def find_names(sentences: list[Sentence]) -> list[str]:
    """Return every entity of the sentences as text in small letters, repetitions included."""
    names: list[str] = []
    for words, tags in sentences:
        for word, tag in zip(words, tags, strict=True):
            if tag.startswith("B-"):
                names.append(word.lower())
            elif tag.startswith("I-"):
                names[-1] += f" {word.lower()}"
    return names


def save_sentences(sentences: list[Sentence], stem: Path) -> None:
    """Write the sentences as JSON lines, as CSV with the lists in Python's notation, and as Parquet."""
    rows = [{"tokens": words, "ner_tags": tags} for words, tags in sentences]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    stem.with_suffix(".json").write_text(lines, encoding="utf-8", newline="\n")
    with stem.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["tokens", "ner_tags"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stem.with_suffix(".parquet"))


def train_tokenizer(sentences: list[Sentence]) -> Tokenizer:
    """Return a WordPiece tokenizer, capitals and accents kept, trained on the sentences."""
    texts = [" ".join(words) for words, _ in sentences]
    characters = sorted(set(string.ascii_letters + string.digits + string.punctuation).union(*texts) - {" "})
    # Given in this order, because the trainer numbers pieces that it finds by itself in an order that varies.
    pieces = SPECIAL_TOKENS + characters + [f"##{character}" for character in characters if character.isalnum()]
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=False)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY_SIZE, special_tokens=pieces, show_progress=False)
    trained.train_from_iterator(texts, trainer)

    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    special_ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special_ids
    )
    return tokenizer


def save_model(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer and the configuration of a model to be made from scratch; there are no weights."""
    tokenizer_config = {
        "tokenizer_class": "BertTokenizer",  # the name that transformers 4 and 5 both know
        "do_lower_case": False,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": MAX_LENGTH,
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS},
    }
    model_config = {
        "architectures": ["RoFormerForTokenClassification"],
        "model_type": "roformer",  # BERT with rotary positions: BERT's own take far more data to learn
        "vocab_size": tokenizer.get_vocab_size(),
        "embedding_size": 128,
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "max_position_embeddings": MAX_LENGTH,
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.05,
        "pad_token_id": tokenizer.token_to_id("[PAD]"),
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in (("tokenizer_config.json", tokenizer_config), ("config.json", model_config)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


def main() -> None:
    """Write all files, and print how much of the validation and test files the training file does not have."""
    for name in ("data", "model"):
        (FOLDER / name).mkdir(exist_ok=True)
    writer = Writer(FOLDER / "grammar.txt", SEED)
    training_names: set[str] = set()
    for split, size in SIZES.items():
        sentences = writer.write_sentences(size, training=split == "train")
        save_sentences(sentences, FOLDER / "data" / split)
        names = find_names(sentences)
        if split == "train":
            save_model(train_tokenizer(sentences), FOLDER / "model")
            training_names.update(names)
        plain = sum(set(tags) == {"O"} for _, tags in sentences) / size
        unseen = sum(name not in training_names for name in names) / len(names)
        print(f"{split}: {size} sentences, {plain:.0%} without entity; {len(names)} entities, {unseen:.0%} unseen")


if __name__ == "__main__":
    main()
