"""spaCy's binary training data, where spaCy is installed."""

from collections.abc import Iterator
from pathlib import Path

from ner.columns import ReadOptions, Record
from transformer_trial.errors import TrialError


def read_spacy(path: Path, lines: Iterator[str], options: ReadOptions) -> Iterator[Record]:
    """Read the sentences of each document, or the whole document where it has no marks of sentences."""
    try:
        import spacy  # type: ignore[import-not-found]
        from spacy.tokens import DocBin  # type: ignore[import-not-found]
    except ImportError:
        advice = "Install it (pip install spacy), or write json rows of words and tags"
        raise TrialError(f"{path}: a .spacy file needs spaCy to be read. {advice}.") from None
    for number, doc in enumerate(DocBin().from_disk(path).get_docs(spacy.blank("xx").vocab), start=1):
        for sentence in doc.sents if doc.has_annotation("SENT_START") else [doc]:
            words = [token for token in sentence if not token.is_space]
            tags = [t.ent_iob_ if t.ent_iob_ in ("", "O") else f"{t.ent_iob_}-{t.ent_type_}" for t in words]
            cells = {"tokens": [token.text for token in words], "tags": [tag or "O" for tag in tags]}
            if words:
                yield Record(f"{path}, document {number}", cells, (), f"{path}, document {number}")
