"""NERTrial: fine-tune a transformer for named-entity recognition under Determined.

Three files tell the whole story: this one, `ner_utils.py` (sentences to model inputs, outputs to tags and metrics) and
`transformer_trial/trial.py` (what any task needs: configuration, optimizer, training step). For another task, subclass
`BaseTransformerTrial` as NERTrial does, and change what this file overrides: how data is loaded, which head the model
has, and how it is evaluated.

A port of the token-classification example of Determined's model-hub (Apache-2.0), which mirrors Hugging Face's
run_ner.py (Apache-2.0, https://github.com/huggingface/transformers/tree/main/examples/pytorch/token-classification).
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from determined import pytorch

import ner.card
import ner.data
import ner.inspect
import ner.labels
import ner.windows
import ner_utils
from ner.config import NERDataConfig, TaggerSettings
from ner.labels import Array
from ner.report import metric_directions, write_report
from ner.sentences import Sentence, write_predictions
from ner.windows import IGNORED_LABEL_ID, NO_POSITION, WORD_COLUMNS, WordCollator
from transformer_trial.builders import build_using_auto
from transformer_trial.checkpoints import recipe, versions
from transformer_trial.config import TrialConfig
from transformer_trial.data import select_splits
from transformer_trial.errors import ConfigError
from transformer_trial.experiment import searcher_metric
from transformer_trial.files import replacing
from transformer_trial.processes import local_chief_first
from transformer_trial.trial import BaseTransformerTrial

logger = logging.getLogger(__name__)


class WordPredictions(pytorch.MetricReducer):
    """Collects the gold and the predicted label of every word, over batches and slots, and lets them be counted.

    Only label ids and two sums of the loss leave the device. What is kept grows with the words, not with the labels.

    Args:
        compute_metrics: Called on the first slot with the words of all slots, (4, words), see `BatchOfWords.words`.
    """

    def __init__(self, compute_metrics: Callable[[Array], dict[str, float]]) -> None:
        self.compute_metrics = compute_metrics
        self.reset()

    def reset(self) -> None:
        self.words: list[Array] = []
        self.loss_sums: list[torch.Tensor] = []  # scalars on the device: reading one would wait for it

    def update(self, words: Array, loss_sum: torch.Tensor) -> None:
        """Add a batch: its words, (4, words), and the sum of the losses of those that have a position."""
        self.words.append(words)
        self.loss_sums.append(loss_sum)

    def per_slot_reduce(self) -> tuple[Array, float, int]:
        words = np.concatenate(self.words, axis=1)
        self.words = [words]  # frees the pieces
        return words, sum(torch.stack(self.loss_sums).tolist()), int((words[2] != NO_POSITION).sum())

    def cross_slot_reduce(self, per_slot_metrics: Sequence[tuple[Array, float, int]]) -> dict[str, float]:
        words, loss_sums, counts = zip(*per_slot_metrics)
        metrics = self.compute_metrics(words[0] if len(words) == 1 else np.concatenate(words, axis=1))
        return {**metrics, "validation_loss": sum(loss_sums) / max(sum(counts), 1)}


class NERTrial(BaseTransformerTrial):
    """Tags words. It overrides how data is loaded, which head the model has, and how the model is evaluated.

    To load data in your own way, override `load_datasets`: return a `datasets.DatasetDict` whose rows hold the words
    and the tags of one sentence each, in two columns that `data.text_column_name` and `data.label_column_name` name.
    """

    data_config_class = NERDataConfig
    settings: TrialConfig[NERDataConfig]

    def __init__(self, context: pytorch.PyTorchTrialContext) -> None:
        super().__init__(context)
        mode = self.settings.model.model_mode
        if mode != "token-classification":
            raise ConfigError([f"hyperparameters.model_mode: found {mode!r}; NERTrial accepts token-classification."])
        if self.is_restored:
            self.restore_model()
            self.label_list = [self.config.id2label[i] for i in sorted(self.config.id2label)]
            self.tagger_settings = TaggerSettings.from_config(self.config)
            return
        with local_chief_first(context.distributed):
            self.read_data()
            self.build_model()
            self.tokenize()
        self.reports: dict[str, dict[str, Any]] = {}
        """Of the best model so far: the errors of each split that it was evaluated on."""
        self.reports_batches = -1
        """How long that model was trained."""
        self.wrap(num_training_rows=self.tokenized_datasets["train"].num_rows)
        self.reducer = context.wrap_reducer(WordPredictions(self.score_validation), for_training=False)

    def load_datasets(self) -> Any:
        """The splits of the data set or the files that `data` names; see the class for how to override it."""
        return ner.data.load_splits(self.settings.data)

    def read_data(self) -> None:
        """Read the sentences of all splits, learn their labels, and check the settings that depend on these."""
        data = self.settings.data
        task = self.settings.model.finetuning_task or "ner"
        rows, self.label_names = ner.data.read_splits(self.load_datasets(), data, task)
        self.metadata = ner_utils.get_dataset_metadata(rows, self.label_names, data.label_scheme)
        self._check_against_labels(self.metadata)
        self.rows = select_splits(rows, data)

    def _check_against_labels(self, metadata: ner_utils.DatasetMetadata) -> None:
        data, num_labels = self.settings.data, self.settings.model.num_labels
        if num_labels not in (None, metadata.num_labels):
            tags = f"{metadata.num_labels} tags: {', '.join(metadata.label_list)}"
            problem = f"hyperparameters.num_labels: found {num_labels}, but the data has {tags}. Remove the key."
            raise ConfigError([problem])
        labels = (metadata.label_list, metadata.label_scheme)
        self.entity_types = ner.labels.find_entity_types(*labels) if data.return_entity_level_metrics else []
        self.searcher_metric = searcher_metric(self.experiment_config, metric_directions(self.entity_types))
        strict = data.metric_mode == "strict"
        scheme = ner.labels.choose_metric_scheme(*labels, data.metric_scheme) if strict else None
        self.metric_options: dict[str, Any] = {"mode": data.metric_mode, "scheme": scheme}

    def build_model(self) -> None:
        """Build config, tokenizer and model, whose head has an output for each label."""
        self.config, self.tokenizer, self.model = build_using_auto(self.settings.model, self.metadata.label_list)
        self.label_list = [self.config.id2label[i] for i in range(self.metadata.num_labels)]
        ner.windows.prepare_tokenizer(self.tokenizer)
        if self.config.pad_token_id is None:
            self.config.pad_token_id = self.tokenizer.pad_token_id

    def tokenize(self) -> None:
        """Turn the sentences into model inputs, as long as the settings say and the model takes."""
        data = self.settings.data
        max_seq_length = ner.windows.choose_max_seq_length(self.tokenizer, self.model, data.max_seq_length)
        doc_stride = ner.windows.choose_doc_stride(self.tokenizer, max_seq_length, data.doc_stride)
        self.tokenized_datasets = ner_utils.build_tokenized_datasets(
            self.rows,
            self.tokenizer,
            self.label_list,
            max_seq_length,
            doc_stride,
            label_all_tokens=data.label_all_tokens,
            num_workers=data.preprocessing_num_workers,
            overwrite_cache=data.overwrite_cache,
        )
        self.tagger_settings = TaggerSettings(
            self.metadata.label_scheme,
            list(self.label_names) if self.label_names else None,
            max_seq_length,
            doc_stride,
            self.metric_options,
        )
        self.config.ner = dataclasses.asdict(self.tagger_settings)  # goes into checkpoints and exports
        if self.context.distributed.rank == 0:
            labels = (self.metadata.label_list, self.metadata.label_scheme)
            self.data_report = ner.inspect.describe_data(self.rows, self.tokenized_datasets, *labels)
            logger.info("%s", ner.inspect.format_data(self.data_report))

    def build_training_data_loader(self) -> pytorch.DataLoader:
        columns = [*self._input_names(), "labels"]
        return self._data_loader(self.tokenized_datasets["train"], columns, training=True)

    def build_validation_data_loader(self) -> pytorch.DataLoader:
        return self._data_loader(self.tokenized_datasets["validation"], [*self._input_names(), *WORD_COLUMNS])

    def _input_names(self) -> list[str]:
        names = self.tokenized_datasets["train"].column_names
        return [name for name in names if name not in ("labels", *WORD_COLUMNS)]

    def _data_loader(self, rows: datasets.Dataset, columns: list[str], *, training: bool = False) -> pytorch.DataLoader:
        mixed_on_gpu = self.settings.training.mixed_precision != "none" and self.context.device.type == "cuda"
        max_seq_length = self.tagger_settings.max_seq_length or 0
        collate = WordCollator(
            self.tokenizer,
            columns,
            max_length=max_seq_length if self.settings.data.pad_to_max_length else None,
            # The matrix units of GPUs like such lengths; the model may have no position beyond max_seq_length.
            pad_to_multiple_of=8 if mixed_on_gpu and max_seq_length % 8 == 0 else 1,
        )
        return self.data_loader(rows.select_columns(columns), collate, training=training)

    def compute_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean loss of the batch's labelled sub-tokens, over all slots: a word weighs the same on each of them."""
        labels = batch["labels"]
        logits = self.model(**{name: value for name, value in batch.items() if name != "labels"})["logits"]
        num_labels = (labels != IGNORED_LABEL_ID).sum()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(num_labels)
        # The gradients become the mean over the slots, hence the factor.
        return ner_utils.sum_losses(logits, labels) * self.context.distributed.size / num_labels.clamp(min=1)

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Predict the words of one batch and hand them to the reducer, whose metrics are the validation's."""
        self.begin_batch(batch_idx)
        with self.autocast():
            (prediction,) = ner_utils.predict_words(self.bare_model, [batch])
        labels = batch["word_labels"].where(prediction.label_ids != NO_POSITION, IGNORED_LABEL_ID)
        self.reducer.update(prediction.words(), ner_utils.sum_losses(prediction.logits, labels))
        return {}

    def score_validation(self, words: Array) -> dict[str, float]:
        """Count the words of a validation, (4, words), on the first slot."""
        rows, self.validation_report = self.rows["validation"], self.tagger_settings.build_report()

        def describe(number: int) -> tuple[list[str], str]:
            return rows[number]["tokens"], rows[number]["place"]

        sentences = (
            (gold, predicted, functools.partial(describe, number))
            for number, gold, predicted, _ in ner_utils.iterate_sentences(words, self.label_list)
        )
        return ner_utils.compute_metrics(sentences, self.validation_report, entity_types=self.entity_types)

    def evaluate_best(self, folder: Path, max_rows: int | None = None) -> dict[str, float]:
        """Write the reports of both splits and the test split's predictions; return the test metrics."""
        # All slots tag. Else the others would wait for the first one, in a collective that gives up after minutes.
        tagged = self._tag_test_split(max_rows) if "test" in self.rows else None
        if self.context.distributed.rank != 0:
            return {}
        title = f"{self.experiment_config.get('name')}, batch {self.batches_trained}"
        self.reports, self.reports_batches = {"validation": self.validation_report.as_dict()}, self.batches_trained
        write_report(self.reports["validation"], folder / "report", f"{title}: validation")
        if tagged is None:
            return {}
        report = self.tagger_settings.build_report()
        (folder / "test").mkdir(parents=True, exist_ok=True)
        with replacing(folder / "test" / "predictions.jsonl") as new, new.open("wb", buffering=0) as output:
            write_predictions(self._sentences("test", *tagged), output, report)
        self.reports["test"] = report.as_dict()
        write_report(self.reports["test"], folder / "test" / "report", f"{title}: test")
        return report.metrics(self.entity_types)

    def _tag_test_split(self, max_rows: int | None) -> tuple[Array, Array] | None:
        """Tag this slot's part of the test split, or of its first `max_rows` sentences.

        Returns:
            On the first slot all slots' words, (4, words), and their scores, (words,); None on the others.
        """
        rows, distributed = self.tokenized_datasets["test"], self.context.distributed
        if max_rows is not None:
            rows = rows.select(range(np.searchsorted(rows.with_format("numpy")["sentence_id"][:], max_rows)))
        loader = self._data_loader(rows, [*self._input_names(), *WORD_COLUMNS])
        batches = loader.get_data_loader(num_replicas=distributed.size, rank=distributed.rank)
        with self.autocast():
            parts = [(batch.words(), batch.scores()) for batch in ner_utils.predict_words(self.bare_model, batches)]
        gathered = distributed.gather(parts)
        if gathered is None:
            return None
        words, scores = zip(*itertools.chain(*gathered))
        return np.concatenate(words, axis=1), np.concatenate(scores)

    def _sentences(self, split: str, words: Array, scores: Array) -> Iterator[Sentence]:
        for number, gold, predicted, columns in ner_utils.iterate_sentences(words, self.label_list):
            row = self.rows[split][number]
            known = [None if math.isnan(score) else score for score in scores[columns].tolist()]
            yield Sentence(row["tokens"], gold=gold, place=row["place"], tags=predicted, scores=known)

    def model_card(self) -> str:
        return ner.card.model_card(
            str(self.experiment_config.get("name")),
            self.config.ner,
            self.data_report,
            self.reports if self.reports_batches == self.batches_trained else {},
            batches=self.batches_trained,
            recipe=recipe(self.settings),
            versions=versions(("determined", "torch", "transformers", "datasets", "seqeval")),
        )
