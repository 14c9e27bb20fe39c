"""The peer: what Hugging Face's run_ner.py does, as a script and as a `transformers.Trainer` to measure.

The behaviour is that of run_ner.py (Apache-2.0,
https://github.com/huggingface/transformers/tree/main/examples/pytorch/token-classification): its tokenization, labels,
collator, metrics and `TrainingArguments` defaults. The code is written anew. Left out are the hub, argument files and
the model card; seqeval is called directly, since `evaluate` would ask the hub for it. It prints one line of json.

    python3 tests/benchmarks/run_ner_reference.py --model DIR --data DIR --output-dir DIR [--seed N] [--max-steps N]
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from datasets import load_dataset
from seqeval import metrics as seqeval_metrics


def tokenize(tokenizer: Any, label_ids: dict[str, int], rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """A word's first piece has its label; the column `length` is what grouping by length may read."""
    encoded = tokenizer(rows["tokens"], truncation=True, is_split_into_words=True)
    labels = []
    for row, tags in enumerate(rows["ner_tags"]):
        words = encoded.word_ids(row)
        is_first = [word is not None and word != before for word, before in zip(words, [None, *words[:-1]])]
        labels.append([label_ids[tags[word]] if first else -100 for word, first in zip(words, is_first)])
    return {**encoded, "labels": labels, "length": [len(row) for row in labels]}


def compute_metrics(names: list[str], prediction: transformers.EvalPrediction) -> dict[str, float]:
    """The overall scores of seqeval's report on the labelled sub-tokens."""
    pairs = list(zip(np.argmax(prediction.predictions, axis=2), prediction.label_ids))
    predicted = [[names[p] for p, g in zip(*pair) if g != -100] for pair in pairs]
    gold = [[names[g] for _, g in zip(*pair) if g != -100] for pair in pairs]
    overall = seqeval_metrics.classification_report(gold, predicted, output_dict=True, zero_division=0)["micro avg"]
    scores = {"precision": overall["precision"], "recall": overall["recall"], "f1": overall["f1-score"]}
    scores["accuracy"] = seqeval_metrics.accuracy_score(gold, predicted)
    return {name: float(score) for name, score in scores.items()}


def build_trainer(
    model_dir: str, data_dir: str, output_dir: str, *, max_train_samples: int | None = None, **arguments: Any
) -> transformers.Trainer:
    """Load, tokenize and set up as run_ner.py does.

    `data_dir` has `train.json` and `validation.json`: JSON lines of `tokens` and `ner_tags`. `max_train_samples` is the
    number of sentences to train on, from the first; `arguments` are further `TrainingArguments`.
    """
    training_arguments = transformers.TrainingArguments(output_dir=output_dir, disable_tqdm=True, **arguments)
    transformers.set_seed(training_arguments.seed)
    files = {split: str(Path(data_dir) / f"{split}.json") for split in ("train", "validation")}
    rows = load_dataset("json", data_files=files)
    names = sorted({tag for tags in rows["train"]["ner_tags"] for tag in tags})
    config = transformers.AutoConfig.from_pretrained(model_dir, num_labels=len(names), finetuning_task="ner")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir, use_fast=True)
    model = transformers.AutoModelForTokenClassification.from_pretrained(model_dir, config=config)
    if sorted(model.config.label2id) == names:  # the model's order of the labels wins
        names = [model.config.id2label[i] for i in range(len(names))]
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    if max_train_samples is not None:
        rows["train"] = rows["train"].select(range(min(max_train_samples, len(rows["train"]))))
    tokenized = rows.map(functools.partial(tokenize, tokenizer, model.config.label2id), batched=True)
    return transformers.Trainer(
        model=model,
        args=training_arguments,
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["validation"],
        processing_class=tokenizer,
        data_collator=transformers.DataCollatorForTokenClassification(
            tokenizer, pad_to_multiple_of=8 if training_arguments.fp16 else None
        ),
        compute_metrics=functools.partial(compute_metrics, names),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model with a fast tokenizer")
    parser.add_argument("--data", required=True, help="folder with train.json and validation.json")
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--max-steps", type=int, default=-1, help="instead of three epochs")
    options = parser.parse_args()
    settings = {"seed": options.seed, "max_steps": options.max_steps}
    trainer = build_trainer(options.model, options.data, options.output_dir, **settings)
    trainer.train()
    trainer.save_model()
    print(json.dumps({"seed": options.seed, **trainer.evaluate()}))


if __name__ == "__main__":
    main()
