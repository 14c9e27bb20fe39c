"""What run_ner.py does, without its command line: the peer that NERTrial is compared with.

`transformers.Trainer` with `TrainingArguments` defaults (batch 8, rate 5e-5, linear schedule, fused AdamW), dynamic
padding, a word's first piece carrying its label, seqeval in default mode: the behaviour of Hugging Face's run_ner.py
(Apache-2.0, https://github.com/huggingface/transformers/tree/main/examples/pytorch/token-classification), written
anew. One run prints one line of json.

    python3 tests/benchmarks/run_ner_reference.py --model DIR --data DIR --seed 1
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from datasets import load_dataset
from seqeval import metrics as seqeval_metrics


def tokenize(tokenizer: Any, label_ids: dict[str, int], rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    encoded = tokenizer(rows["tokens"], truncation=True, is_split_into_words=True)
    labels = []
    for row, tags in enumerate(rows["ner_tags"]):
        word_ids = encoded.word_ids(row)
        labels.append(
            [
                -100 if word is None or word == previous else label_ids[tags[word]]
                for word, previous in zip(word_ids, [None, *word_ids[:-1]])
            ]
        )
    return {**encoded, "labels": labels}


def train_reference(model_dir: str, data_dir: Path, seed: int, epochs: int) -> dict[str, float]:
    """Fine-tune with `transformers.Trainer` and return the validation metrics after the last epoch."""
    transformers.set_seed(seed)
    files = {split: str(data_dir / f"{split}.json") for split in ("train", "validation")}
    data = load_dataset("json", data_files=files)
    names = sorted({tag for tags in data["train"]["ner_tags"] for tag in tags})
    label_ids = {name: index for index, name in enumerate(names)}
    config = transformers.AutoConfig.from_pretrained(
        model_dir, num_labels=len(names), id2label=dict(enumerate(names)), label2id=label_ids
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    model = transformers.AutoModelForTokenClassification.from_pretrained(model_dir, config=config)
    tokenized = data.map(
        lambda rows: tokenize(tokenizer, label_ids, rows), batched=True, remove_columns=data["train"].column_names
    )

    def compute_metrics(prediction: transformers.EvalPrediction) -> dict[str, float]:
        predicted_ids = np.argmax(prediction.predictions, axis=-1)
        gold = [[names[g] for g in row if g != -100] for row in prediction.label_ids]
        predicted = [
            [names[p] for p, g in zip(p_row, g_row) if g != -100]
            for p_row, g_row in zip(predicted_ids, prediction.label_ids)
        ]
        return {
            "accuracy_score": seqeval_metrics.accuracy_score(gold, predicted),
            "precision": seqeval_metrics.precision_score(gold, predicted),
            "recall": seqeval_metrics.recall_score(gold, predicted),
            "f1": seqeval_metrics.f1_score(gold, predicted),
        }

    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=folder,
                num_train_epochs=epochs,
                seed=seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=tokenized["train"],
            eval_dataset=tokenized["validation"],
            data_collator=transformers.DataCollatorForTokenClassification(tokenizer),
            compute_metrics=compute_metrics,
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        metrics = trainer.evaluate()
    names_kept = ("accuracy_score", "precision", "recall", "f1")
    return {name: float(metrics[f"eval_{name}"]) for name in names_kept} | {"train_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a pretrained model with a fast tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.json and validation.json")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    metrics = train_reference(arguments.model, arguments.data, arguments.seed, arguments.epochs)
    print(json.dumps({"seed": arguments.seed, "epochs": arguments.epochs, **metrics}))


if __name__ == "__main__":
    main()
