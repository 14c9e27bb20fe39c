"""NERTrial: fine-tune a transformer for named-entity recognition under Determined.

A port of the token-classification example of Determined's model-hub (Apache-2.0), which mirrors Hugging Face's
run_ner.py (Apache-2.0, https://github.com/huggingface/transformers/tree/main/examples/pytorch/token-classification).
"""

import logging
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from determined import pytorch
from torch.nn import functional

import ner_data
import ner_utils
from ner_utils import IGNORED_LABEL_ID, NO_POSITION
from transformer_trial.builders import build_using_auto
from transformer_trial.config import TrialConfig
from transformer_trial.data import local_chief_first, select_splits
from transformer_trial.experiment import searcher_metric
from transformer_trial.parsing import ConfigError
from transformer_trial.trial import BaseTransformerTrial

logger = logging.getLogger(__name__)


class WordPredictions(pytorch.MetricReducer):
    """Collects the gold and predicted label of every word, over batches and slots, and computes the metrics.

    Only ids and two sums of the loss leave the device; what is kept grows with the words, whatever the labels.

    Args:
        label_list: The tags in the order of their ids.
        metric_options: For `ner_utils.compute_metrics`.
    """

    def __init__(self, label_list: Sequence[str], metric_options: dict[str, Any]) -> None:
        self.tags = [ner_utils.entity_tag(label) for label in label_list]
        self.metric_options = metric_options
        self.reset()

    def reset(self) -> None:
        self.words: list[ner_utils.Array] = []  # each (4, words): sentence, place in it, gold and predicted label
        self.loss_sum = 0.0
        self.num_loss_words = 0

    def update(self, batch: dict[str, torch.Tensor], predicted: torch.Tensor, loss_sum: torch.Tensor) -> None:
        """Add a batch.

        Args:
            batch: As collated for evaluation; its word columns are (rows, words).
            predicted: Predicted label ids, (rows, words).
            loss_sum: Sum of the losses of all words that have a position, a scalar.
        """
        sentence_ids = batch["sentence_id"][:, None].expand_as(predicted)
        words = torch.stack([sentence_ids, batch["word_ids"], batch["word_labels"], predicted])
        words = words[:, batch["word_ids"] != NO_POSITION]
        self.words.append(words.to("cpu", torch.int32).numpy())
        self.loss_sum += float(loss_sum)
        self.num_loss_words += int((batch["word_positions"] != NO_POSITION).sum())

    def per_slot_reduce(self) -> tuple[ner_utils.Array, float, int]:
        return np.concatenate(self.words, axis=1), self.loss_sum, self.num_loss_words

    def cross_slot_reduce(self, per_slot_metrics: Sequence[tuple[ner_utils.Array, float, int]]) -> dict[str, float]:
        words, loss_sums, counts = zip(*per_slot_metrics)
        sentence_ids, word_ids, gold_ids, predicted_ids = np.concatenate(words, axis=1)
        gold, predicted = ner_utils.group_by_sentence(sentence_ids, word_ids, gold_ids, predicted_ids, self.tags)
        metrics = ner_utils.compute_metrics(gold, predicted, **self.metric_options)
        return {**metrics, "validation_loss": sum(loss_sums) / max(sum(counts), 1)}


class NERTrial(BaseTransformerTrial):
    """Tags words: overrides how data is loaded, what the head predicts, and how it is evaluated.

    To load data in your own way, override `load_datasets`: return a `datasets.DatasetDict` whose rows hold the words
    and the tags of one sentence each, in two columns that `data.text_column_name` and `data.label_column_name` name.
    """

    data_config_class = ner_data.NERDataConfig
    settings: TrialConfig[ner_data.NERDataConfig]

    def __init__(self, context: pytorch.PyTorchTrialContext) -> None:
        super().__init__(context)
        settings = self.settings
        if settings.model.model_mode != "token-classification":
            mode = settings.model.model_mode
            raise ConfigError([f"hyperparameters.model_mode: found {mode!r}; NERTrial accepts token-classification."])

        with local_chief_first(context.distributed):
            splits = self.load_datasets()
            columns = ner_data.find_columns(splits, settings.data, settings.model.finetuning_task or "ner")
            rows = ner_data.check_rows(splits, columns, settings.data)
            metadata = ner_utils.get_dataset_metadata(rows, columns.label_names)
            metric_options = self._check_against_labels(metadata)

            self.config, self.tokenizer, self.model = build_using_auto(settings.model, metadata.label_list)
            self.label_list = [self.config.id2label[i] for i in range(metadata.num_labels)]
            ner_utils.prepare_tokenizer(self.tokenizer)
            if self.config.pad_token_id is None:
                self.config.pad_token_id = self.tokenizer.pad_token_id
            self.tokenized_datasets = self.build_tokenized_datasets(select_splits(rows, settings.data))

        self.wrap(num_training_rows=self.tokenized_datasets["train"].num_rows)
        self.reducer = context.wrap_reducer(WordPredictions(self.label_list, metric_options), for_training=False)

    def _check_against_labels(self, metadata: ner_utils.DatasetMetadata) -> dict[str, Any]:
        """Check the settings that depend on the labels, and return the arguments of `ner_utils.compute_metrics`."""
        data, num_labels = self.settings.data, self.settings.model.num_labels
        if num_labels not in (None, metadata.num_labels):
            tags = f"{metadata.num_labels} tags: {', '.join(metadata.label_list)}"
            problem = f"hyperparameters.num_labels: found {num_labels}, but the data has {tags}. Remove the key."
            raise ConfigError([problem])
        types = ner_utils.find_entity_types(metadata.label_list) if data.return_entity_level_metrics else []
        self.searcher_metric = searcher_metric(self.experiment_config, ner_utils.metric_directions(types))
        scheme = None
        if data.metric_mode == "strict":
            scheme = ner_utils.choose_metric_scheme(metadata.label_list, data.metric_scheme)
        return {"mode": data.metric_mode, "scheme": scheme, "entity_types": types}

    def build_tokenized_datasets(self, rows: datasets.DatasetDict) -> datasets.DatasetDict:
        """One row for each window of each sentence; see `ner_utils.tokenize_and_align` for the columns."""
        data = self.settings.data
        self.max_seq_length = ner_utils.choose_max_seq_length(self.tokenizer, self.model, data.max_seq_length)
        doc_stride = ner_utils.choose_doc_stride(self.tokenizer, self.max_seq_length, data.doc_stride)
        return ner_utils.build_tokenized_datasets(
            rows,
            self.tokenizer,
            self.label_list,
            self.max_seq_length,
            doc_stride,
            label_all_tokens=data.label_all_tokens,
            num_workers=data.preprocessing_num_workers,
            overwrite_cache=data.overwrite_cache,
        )

    def build_training_data_loader(self) -> pytorch.DataLoader:
        return self._data_loader("train", [*self._input_names(), "labels"])

    def build_validation_data_loader(self) -> pytorch.DataLoader:
        return self._data_loader("validation", [*self._input_names(), *ner_utils.WORD_COLUMNS])

    def _input_names(self) -> list[str]:
        names = self.tokenized_datasets["train"].column_names
        return [name for name in names if name not in ("labels", *ner_utils.WORD_COLUMNS)]

    def _data_loader(self, split: str, column_names: list[str]) -> pytorch.DataLoader:
        mixed = self.settings.training.mixed_precision != "none"
        collate = ner_utils.WordCollator(
            self.tokenizer,
            column_names,
            max_length=self.max_seq_length if self.settings.data.pad_to_max_length else None,
            # The matrix units of GPUs like such lengths; the model may have no position beyond max_seq_length.
            pad_to_multiple_of=8 if mixed and self.max_seq_length % 8 == 0 else None,
        )
        rows = self.tokenized_datasets[split].select_columns(column_names)
        return self.data_loader(rows, collate, training=split == "train")

    def compute_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean loss of the batch's labelled sub-tokens, over all slots: a word weighs the same on each of them."""
        labels = batch["labels"]
        logits = self.model(**{name: value for name, value in batch.items() if name != "labels"})["logits"]
        loss_sum = functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL_ID, reduction="sum"
        )
        num_labels = (labels != IGNORED_LABEL_ID).sum()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(num_labels)
        # The gradients become the mean over the slots, hence the factor.
        return loss_sum * self.context.distributed.size / num_labels.clamp(min=1)

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        with self.autocast():
            logits = self.model(**{name: batch[name] for name in self._input_names()})["logits"]
        positions = batch["word_positions"]
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        word_logits = logits[rows, positions.clamp(min=0)].float()  # (row, sub-token, label) -> (row, word, label)
        has_position = positions != NO_POSITION
        labels = batch["word_labels"].where(has_position, IGNORED_LABEL_ID)
        loss_sum = functional.cross_entropy(
            word_logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL_ID, reduction="sum"
        )
        predicted = word_logits.argmax(-1).where(has_position, NO_POSITION)
        self.reducer.update(batch, predicted, loss_sum)
        return {}  # the metrics are the reducer's
