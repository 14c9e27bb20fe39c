"""NERTrial: fine-tune a transformer for named-entity recognition under Determined.

Three files tell the whole story: this one, `ner_utils.py` (sentences to model inputs, outputs to tags and metrics) and
`transformer_trial/trial.py` (what any task needs: configuration, optimizer, training step). For another task, subclass
`BaseTransformerTrial` as NERTrial does, and change what this file overrides: how data is loaded, which head the model
has, and how it is evaluated.

A port of the token-classification example of Determined's model-hub (Apache-2.0), which mirrors Hugging Face's
run_ner.py (Apache-2.0, https://github.com/huggingface/transformers/tree/main/examples/pytorch/token-classification).
"""

import functools
import logging
import math
import types
from collections.abc import Callable, Iterator, Mapping, Set
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
from ner.context import check_documents
from ner.labels import Array, count_words
from ner.report import metric_directions, write_report
from ner.sentences import Sentence, write_predictions
from ner.windows import IGNORED_LABEL_ID, NO_POSITION, WORD_COLUMNS, WordCollator
from transformer_trial.builders import try_model
from transformer_trial.checkpoints import recipe, versions
from transformer_trial.config import TrialConfig
from transformer_trial.data import select_splits
from transformer_trial.errors import ConfigError
from transformer_trial.experiment import searcher_metric
from transformer_trial.files import replacing
from transformer_trial.trial import BaseTransformerTrial, Batch

logger = logging.getLogger(__name__)


class NERTrial(BaseTransformerTrial):
    """Tags words. It overrides how data is loaded and tokenized, the loss, and how the model is evaluated."""

    data_config_class = NERDataConfig
    settings: TrialConfig[NERDataConfig]
    label_list: list[str]

    # Of the best model so far: the errors of each split that it was evaluated on, and how long it was trained.
    reports: Mapping[str, dict[str, Any]] = types.MappingProxyType({})
    reports_batches = -1
    training_entities: Set[int] | None = None  # keys of train's entities, on the first slot, whose report counts

    def load_datasets(self) -> Mapping[str, Any]:
        """The splits of the data set or the files that `data` names.

        Override it to load data in your own way: return a mapping from split to rows of words and tags, which
        `data.text_column_name` and `data.label_column_name` name; see `ner.data.read_splits`.
        """
        return ner.data.load_splits(self.settings.data)

    def read_data(self) -> None:
        """Read the sentences of all splits, learn their labels, and check the settings that depend on these."""
        data, model = self.settings.data, self.settings.model
        if model.model_mode != "token-classification":
            found = f"found {model.model_mode!r}; NERTrial accepts token-classification"
            raise ConfigError([f"hyperparameters.model_mode: {found}."])
        rows, self.label_names = ner.data.read_splits(self.load_datasets(), data, model.finetuning_task or "ner")
        self.metadata = ner_utils.get_dataset_metadata(rows, self.label_names, data.label_scheme)
        self.label_list = self.metadata.label_list
        self._check_against_labels(self.metadata)
        self.rows = select_splits(rows, data, needs_validation=not self.inspects)
        check_documents(self.rows, data.document_context)
        self.searcher_metric = ner.labels.choose_best_by(self.searcher_metric, self.rows)

    def _check_against_labels(self, metadata: ner_utils.DatasetMetadata) -> None:
        data, num_labels = self.settings.data, self.settings.model.num_labels
        if num_labels not in (None, metadata.num_labels):
            tags = f"{metadata.num_labels} tags: {', '.join(metadata.label_list)}"
            problem = f"hyperparameters.num_labels: found {num_labels}, but the data has {tags}. Remove the key."
            raise ConfigError([problem])
        labels = (metadata.label_list, metadata.label_scheme)
        self.entity_types = ner.labels.find_entity_types(*labels) if data.return_entity_level_metrics else []
        self.searcher_metric = searcher_metric(self.experiment_config, metric_directions(self.entity_types))
        scheme = ner.labels.choose_metric_scheme(*labels, data.metric_scheme) if data.metric_mode == "strict" else None
        self.metric_options: dict[str, Any] = {"mode": data.metric_mode, "scheme": scheme}

    def tokenize(self) -> None:
        """Turn the sentences into model inputs, as long as the settings say and the model takes."""
        data, tokenizer = self.settings.data, self.tokenizer
        ner.windows.prepare_tokenizer(tokenizer)
        if self.config.pad_token_id is None:
            self.config.pad_token_id = tokenizer.pad_token_id
        window_options = ner.windows.choose_window_options(tokenizer, self.model, data)
        if not self.inspects:
            try_model(self.model.to(self.context.device), tokenizer)
        self.tokenized_datasets = ner_utils.build_tokenized_datasets(
            self.rows,
            tokenizer,
            self.label_list,
            label_all_tokens=data.label_all_tokens,
            num_workers=data.preprocessing_num_workers,
            overwrite_cache=data.overwrite_cache,
            **window_options,
        )
        settings: dict[str, Any] = {"label_scheme": self.metadata.label_scheme, "outside_label": data.outside_label}
        settings |= {"label_names": self.label_names and [*self.label_names], "metric_options": self.metric_options}
        self.config.ner = TaggerSettings(**settings, **window_options).model_dump()  # goes into checkpoints and exports
        if self.context.distributed.rank == 0:
            labels = (self.metadata.label_list, self.metadata.label_scheme)
            self.data_report = ner.inspect.describe_data(self.rows, self.tokenized_datasets, tokenizer, *labels)
            logger.info("%s", ner.inspect.format_data(self.data_report))
            self.training_entities = ner.labels.encode_tags(self.rows["train"]).entity_keys(labels[1])

    @property
    def tagger_settings(self) -> TaggerSettings:
        """How the model tags, as its config says."""
        return TaggerSettings.from_config(self.config)

    def data_loader(
        self, rows: datasets.Dataset, collate: Callable[[list[Any]], Any] | None = None, *, training: bool = False
    ) -> pytorch.DataLoader:
        inputs = [name for name in rows.column_names if name not in ("labels", *WORD_COLUMNS)]
        columns = [*inputs, "labels"] if training else [*inputs, *WORD_COLUMNS]
        mixed_on_gpu = self.settings.training.mixed_precision != "none" and self.context.device.type == "cuda"
        max_seq_length = self.tagger_settings.max_seq_length or 0
        collate = collate or WordCollator(
            self.tokenizer,
            columns,
            max_length=max_seq_length if self.settings.data.pad_to_max_length else None,
            # The matrix units of GPUs like such lengths; the model may have no position beyond max_seq_length.
            pad_to_multiple_of=8 if mixed_on_gpu and max_seq_length % 8 == 0 else 1,
        )
        return super().data_loader(rows.select_columns(columns), collate, training=training)

    def forward(self, batch: Batch) -> Any:
        """The model's outputs for a training batch; `compute_loss` makes the loss, not the model."""
        return self.model(**{name: values for name, values in batch.items() if name != "labels"})

    def compute_loss(self, outputs: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the losses where there is a label, and how many there are: a word weighs the same on every slot.

        In training the logits are those of sub-tokens, (row, sub-token, label), in validation those of words.
        """
        return ner_utils.sum_losses(outputs["logits"], batch["labels"])

    def evaluate(self, batch: Batch) -> dict[str, Any]:
        """Predict the words of a batch. Only label ids and the sum of the losses leave the device."""
        (prediction,) = ner_utils.predict_words(self.bare_model, [batch])
        labels = batch["word_labels"].where(prediction.label_ids != NO_POSITION, IGNORED_LABEL_ID)
        loss = self.compute_loss({"logits": prediction.logits}, {**batch, "labels": labels})
        return {"words": prediction.words(), "validation_loss": loss}

    def score(self, collected: dict[str, list[Array]]) -> dict[str, float]:
        """Count the words of a validation, each batch of which is (3, words), see `BatchOfWords.words`."""
        words, rows = np.concatenate(collected["words"], axis=1), self.rows["validation"]
        self.validation_report = self.tagger_settings.build_report(self.training_entities)
        words_of, places = rows.with_format("arrow")[:].select(["tokens", "place"]).columns

        def describe(number: int) -> tuple[list[str], str]:
            return words_of[number].as_py(), places[number].as_py()

        found = ner_utils.iterate_sentences(words, count_words(rows), self.label_list)
        sentences = ((gold, tags, functools.partial(describe, number)) for number, _, (tags, gold) in found)
        return ner_utils.compute_metrics(sentences, self.validation_report, entity_types=self.entity_types)

    def evaluate_best(self, folder: Path, max_rows: int | None = None) -> dict[str, float]:
        """Write the reports of both splits and the test split's predictions; return the test metrics."""
        tagged = self._tag_test_split(max_rows) if "test" in self.rows else None
        if self.context.distributed.rank != 0:
            return {}
        title = f"{self.experiment_config.get('name')}, batch {self.batches_trained}"
        self.reports, self.reports_batches = {"validation": self.validation_report.as_dict()}, self.batches_trained
        write_report(self.reports["validation"], folder / "report", f"{title}: validation")
        if tagged is None:
            return {}
        report = self.tagger_settings.build_report(self.training_entities)
        (folder / "test").mkdir(parents=True, exist_ok=True)
        with replacing(folder / "test" / "predictions.jsonl") as new, new.open("wb", buffering=0) as output:
            write_predictions(tagged, output, report)
        self.reports["test"] = report.as_dict()
        write_report(self.reports["test"], folder / "test" / "report", f"{title}: test")
        return report.metrics(self.entity_types)

    def _tag_test_split(self, max_rows: int | None) -> Iterator[Sentence] | None:
        """Tag this slot's part of the test split, or of its first windows; return all sentences on the first slot."""
        windows = self.tokenized_datasets["test"]
        tagged = self.evaluate_rows(windows.select(range(windows.num_rows)[:max_rows]), self._tag, dict)
        return tagged and self._sentences(np.concatenate(tagged["words"], axis=1), np.concatenate(tagged["scores"]))

    def _tag(self, batch: Batch) -> dict[str, Any]:
        (prediction,) = ner_utils.predict_words(self.bare_model, [batch])
        return {"words": prediction.words(), "scores": prediction.scores()}

    def _sentences(self, words: Array, scores: Array) -> Iterator[Sentence]:
        rows = self.rows["test"]
        for number, columns, (tags, gold) in ner_utils.iterate_sentences(words, count_words(rows), self.label_list):
            row = rows[number]
            known = [None if math.isnan(score) else score for score in scores[columns].tolist()]
            if len(known) == len(row["tokens"]):  # else, of the first windows alone, its last words are missing
                yield Sentence(row["tokens"], gold=gold, place=row["place"], tags=tags, scores=known)

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
