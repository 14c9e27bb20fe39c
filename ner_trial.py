"""NERTrial: fine-tune a transformer for named-entity recognition under Determined.

A port of the token-classification example of Determined's model-hub (Apache-2.0), which mirrors Hugging Face's
run_ner.py (Apache-2.0, https://github.com/huggingface/transformers/tree/main/examples/pytorch/token-classification).
"""

import functools
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from determined import pytorch
from torch.nn import functional

import ner.card
import ner.data
import ner.inspect
import ner.labels
import ner.report
import ner.windows
import ner_utils
import predict
from ner.windows import NO_POSITION
from ner_utils import IGNORED_LABEL_ID
from transformer_trial.builders import build_using_auto
from transformer_trial.config import TrialConfig
from transformer_trial.data import select_splits
from transformer_trial.errors import ConfigError
from transformer_trial.experiment import searcher_metric
from transformer_trial.export import recipe, versions
from transformer_trial.processes import local_chief_first
from transformer_trial.trial import BaseTransformerTrial

logger = logging.getLogger(__name__)


class WordPredictions(pytorch.MetricReducer):
    """Collects the gold and predicted label of every word, over batches and slots, and computes the metrics.

    Only ids and two sums of the loss leave the device; what is kept grows with the words, whatever the labels.

    Args:
        label_list: The tags in the order of their ids.
        label_scheme: The scheme by which they mark entities.
        metric_options: For `ner_utils.compute_metrics`.
    """

    def __init__(self, label_list: Sequence[str], label_scheme: str, metric_options: dict[str, Any]) -> None:
        self.tags = [ner.labels.entity_tag(label, label_scheme) for label in label_list]
        self.metric_options = metric_options
        self.reset()

    def reset(self) -> None:
        self.words: list[ner.labels.Array] = []  # each (4, words): sentence, place in it, gold and predicted label
        self.loss_sums: list[torch.Tensor] = []  # each a scalar on the device, which would be waited for to read it

    def update(self, batch: dict[str, torch.Tensor], predicted: torch.Tensor, loss_sum: torch.Tensor) -> None:
        """Add a batch.

        Args:
            batch: As collated for evaluation; its word columns are (rows, words).
            predicted: Predicted label ids, (rows, words); NO_POSITION for words that have no position.
            loss_sum: Sum of the losses of all words that have a position, a scalar.
        """
        sentence_ids = batch["sentence_id"][:, None].expand_as(predicted)
        words = torch.stack([sentence_ids, batch["word_ids"], batch["word_labels"], predicted])
        on_host = words.to(torch.int32).cpu().numpy()  # the one time that a batch waits for the device
        self.words.append(on_host[:, on_host[1] != NO_POSITION])
        self.loss_sums.append(loss_sum.detach())

    def per_slot_reduce(self) -> tuple[ner.labels.Array, float, int]:
        words = np.concatenate(self.words, axis=1)
        self.words = [words]  # instead of what it was put together from
        num_loss_words = int((words[3] != NO_POSITION).sum())
        return words, sum(torch.stack(self.loss_sums).tolist()), num_loss_words

    def cross_slot_reduce(self, per_slot_metrics: Sequence[tuple[ner.labels.Array, float, int]]) -> dict[str, float]:
        """The metrics. What they were computed from stays in `last_words`, (4, words), for a report."""
        words, loss_sums, counts = zip(*per_slot_metrics)
        self.last_words = words[0] if len(words) == 1 else np.concatenate(words, axis=1)
        sentences = ner_utils.iterate_sentences(self.last_words, self.tags)
        metrics = ner_utils.score_sentences(sentences, **self.metric_options)
        return {**metrics, "validation_loss": sum(loss_sums) / max(sum(counts), 1)}


class NERTrial(BaseTransformerTrial):
    """Tags words: overrides how data is loaded, what the head predicts, and how it is evaluated.

    To load data in your own way, override `load_datasets`: return a `datasets.DatasetDict` whose rows hold the words
    and the tags of one sentence each, in two columns that `data.text_column_name` and `data.label_column_name` name.
    """

    data_config_class = ner.data.NERDataConfig
    settings: TrialConfig[ner.data.NERDataConfig]

    def __init__(self, context: pytorch.PyTorchTrialContext) -> None:
        super().__init__(context)
        settings = self.settings
        if settings.model.model_mode != "token-classification":
            mode = settings.model.model_mode
            raise ConfigError([f"hyperparameters.model_mode: found {mode!r}; NERTrial accepts token-classification."])

        if self.is_restored:
            self.restore_model()
            self.label_list = [self.config.id2label[i] for i in sorted(self.config.id2label)]
            self.label_scheme = self.config.ner["label_scheme"]
            return
        data = settings.data
        with local_chief_first(context.distributed):
            rows, label_names = ner.data.read_splits(
                self.load_datasets(), data, settings.model.finetuning_task or "ner"
            )
            metadata = ner_utils.get_dataset_metadata(rows, label_names, data.label_scheme)
            self.metric_options = metric_options = self._check_against_labels(metadata)

            self.config, self.tokenizer, self.model = build_using_auto(settings.model, metadata.label_list)
            self.label_list = [self.config.id2label[i] for i in range(metadata.num_labels)]
            self.label_scheme = metadata.label_scheme
            ner.windows.prepare_tokenizer(self.tokenizer)
            if self.config.pad_token_id is None:
                self.config.pad_token_id = self.tokenizer.pad_token_id

            self.rows = rows = select_splits(rows, data)
            self.max_seq_length = ner.windows.choose_max_seq_length(self.tokenizer, self.model, data.max_seq_length)
            doc_stride = ner.windows.choose_doc_stride(self.tokenizer, self.max_seq_length, data.doc_stride)
            self.tokenized_datasets = ner_utils.build_tokenized_datasets(
                rows,
                self.tokenizer,
                self.label_list,
                self.max_seq_length,
                doc_stride,
                label_all_tokens=data.label_all_tokens,
                num_workers=data.preprocessing_num_workers,
                overwrite_cache=data.overwrite_cache,
            )
        self.config.ner = {  # what predict.py has to know of an export
            "label_scheme": self.label_scheme,
            "label_names": label_names and list(label_names),
            "max_seq_length": self.max_seq_length,
            "doc_stride": doc_stride,
            "metric_options": {"mode": metric_options["mode"], "scheme": metric_options["scheme"]},
        }
        if context.distributed.rank == 0:
            self.data_report = ner.inspect.describe_data(
                rows, self.tokenized_datasets, metadata.label_list, self.label_scheme
            )
            logger.info("%s", ner.inspect.format_data(self.data_report))

        self.reports: dict[str, dict[str, Any]] = {}  # of the best model so far
        self.reports_batches = -1
        self.wrap(num_training_rows=self.tokenized_datasets["train"].num_rows)
        words = WordPredictions(self.label_list, self.label_scheme, metric_options)
        self.reducer = context.wrap_reducer(words, for_training=False)

    def load_datasets(self) -> Any:
        """The splits of the data set or the files that `data` names; see the class for how to override it."""
        return ner.data.load_splits(self.settings.data)

    def _check_against_labels(self, metadata: ner_utils.DatasetMetadata) -> dict[str, Any]:
        """Check the settings that depend on the labels, and return the arguments of `ner_utils.compute_metrics`."""
        data, num_labels = self.settings.data, self.settings.model.num_labels
        if num_labels not in (None, metadata.num_labels):
            tags = f"{metadata.num_labels} tags: {', '.join(metadata.label_list)}"
            problem = f"hyperparameters.num_labels: found {num_labels}, but the data has {tags}. Remove the key."
            raise ConfigError([problem])
        labels = (metadata.label_list, metadata.label_scheme)
        types = ner.labels.find_entity_types(*labels) if data.return_entity_level_metrics else []
        self.searcher_metric = searcher_metric(self.experiment_config, ner_utils.metric_directions(types))
        strict = data.metric_mode == "strict"
        scheme = ner.labels.choose_metric_scheme(*labels, data.metric_scheme) if strict else None
        return {"mode": data.metric_mode, "scheme": scheme, "entity_types": types}

    def build_training_data_loader(self) -> pytorch.DataLoader:
        return self._data_loader("train", [*self._input_names(), "labels"])

    def build_validation_data_loader(self) -> pytorch.DataLoader:
        return self._data_loader("validation", [*self._input_names(), *ner_utils.WORD_COLUMNS])

    def _input_names(self) -> list[str]:
        names = self.tokenized_datasets["train"].column_names
        return [name for name in names if name not in ("labels", *ner_utils.WORD_COLUMNS)]

    def _data_loader(self, split: str, column_names: list[str]) -> pytorch.DataLoader:
        mixed_on_gpu = self.settings.training.mixed_precision != "none" and self.context.device.type == "cuda"
        collate = ner_utils.WordCollator(
            self.tokenizer,
            column_names,
            max_length=self.max_seq_length if self.settings.data.pad_to_max_length else None,
            # The matrix units of GPUs like such lengths; the model may have no position beyond max_seq_length.
            pad_to_multiple_of=8 if mixed_on_gpu and self.max_seq_length % 8 == 0 else None,
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
        self.end_if_asked(batch_idx)
        with self.autocast():
            logits = self.model(**{name: batch[name] for name in self._input_names()})["logits"]
        positions = batch["word_positions"]
        word_logits = ner_utils.select_words(logits, positions)  # (row, sub-token, label) -> (row, word, label)
        has_position = positions != NO_POSITION
        labels = batch["word_labels"].where(has_position, IGNORED_LABEL_ID)
        loss_sum = functional.cross_entropy(
            word_logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL_ID, reduction="sum"
        )
        predicted = word_logits.argmax(-1).where(has_position, NO_POSITION)
        self.reducer.update(batch, predicted, loss_sum)
        return {}  # the metrics are the reducer's

    def evaluate_best(self, folder: Path) -> dict[str, float]:
        """Write the validation's report, and the test split's predictions and report; return the test metrics."""
        validation = self._error_report()
        words = self.reducer.last_words
        tags = ner_utils.iterate_sentences(words, self.label_list)
        for sentence, (gold, predicted) in zip(np.unique(words[0]).tolist(), tags):
            validation.add(gold, predicted, functools.partial(self._describe, "validation", sentence))
        self.reports, self.reports_batches = {"validation": validation.as_dict()}, self.batches_trained
        title = f"{self.experiment_config.get('name')}, batch {self.batches_trained}"
        ner.report.write_report(self.reports["validation"], folder / "report", f"{title}: validation")
        if "test" not in self.rows:
            return {}
        report = self._error_report()
        self._predict_test(folder / "test", report)
        self.reports["test"] = report.as_dict()
        ner.report.write_report(self.reports["test"], folder / "test" / "report", f"{title}: test")
        return report.metrics(self.metric_options["entity_types"])

    def _error_report(self) -> ner.report.ErrorReport:
        return ner.report.ErrorReport(self.label_scheme, self.metric_options["mode"], self.metric_options["scheme"])

    def _describe(self, split: str, sentence: int) -> tuple[list[str], str]:
        row = self.rows[split][sentence]
        return row["tokens"], row["place"]

    def _predict_test(self, folder: Path, report: ner.report.ErrorReport) -> None:
        tagger = predict.Tagger(self.bare_model, self.tokenizer)  # alone: the other slots take no part
        rows = itertools.islice(self.rows["test"], self.settings.training.global_batch_size if self.test_mode else None)
        sentences = (predict.Sentence(row["tokens"], gold=row["tags"], place=row["place"]) for row in rows)
        folder.mkdir(parents=True, exist_ok=True)
        with self.autocast(), (folder / "predictions.new").open("wb", buffering=0) as output:
            predict.write_predictions(tagger.tag(sentences), tagger, output, report)
        (folder / "predictions.new").replace(folder / "predictions.jsonl")

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
