"""Tagging a file of sentences: predict.py against transformers' `pipeline`, each in processes of its own.

prediction.py CONTENDER MODEL INPUT OUTPUT     is such a process; it prints the seconds of tagging, without start-up
"""

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OURS = {"predict.py": "fp32", "predict.py --precision auto": "auto"}
PIPELINES = {
    f"pipeline, batch {size}{how}": (size, bool(how))
    for size, how in itertools.product((1, 4, 16, 64), ("", ", sorted"))
}


def tag_by_ourselves(model: str, sentences: list[list[str]], precision: str) -> Callable[[], list[list[str]]]:
    from ner.sentences import Sentence
    from predict import Tagger
    from transformer_trial.machine import keep_freed_memory

    keep_freed_memory()
    tagger = Tagger.load(model, precision=precision)  # type: ignore[arg-type]
    return lambda: [sentence.tags or [] for sentence in tagger.tag(map(Sentence, sentences))]


def tag_by_pipeline(
    model: str, sentences: list[list[str]], batch_size: int, is_sorted: bool
) -> Callable[[], list[list[str]]]:
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = transformers.pipeline("token-classification", model=model, ignore_labels=[], device=device)
    order = list(range(len(sentences)))
    if is_sorted:
        order.sort(key=lambda i: -sum(map(len, sentences[i])))

    def tag() -> list[list[str]]:
        tags = [["O"] * len(words) for words in sentences]
        found = pipeline([sentences[i] for i in order], batch_size=batch_size, is_split_into_words=True)
        for i, pieces in zip(order, found):
            lengths = (len(word) + 1 for word in sentences[i][:-1])
            word_at = {start: word for word, start in enumerate(itertools.accumulate(lengths, initial=0))}
            for piece in pieces:
                if piece["start"] in word_at:  # the first one of a word
                    tags[i][word_at[piece["start"]]] = piece["entity"]
        return tags

    return tag


if __name__ == "__main__":
    name, model, file, output = sys.argv[1:]
    sentences = [json.loads(line)["tokens"] for line in Path(file).read_text(encoding="utf-8").splitlines()]
    options: Any = (OURS[name],) if name in OURS else PIPELINES[name]
    tag = (tag_by_ourselves if name in OURS else tag_by_pipeline)(model, sentences, *options)
    started = time.perf_counter()
    found = tag()
    print(time.perf_counter() - started)
    rows = ({"tokens": words, "tags": tags} for words, tags in zip(sentences, found))
    Path(output).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
