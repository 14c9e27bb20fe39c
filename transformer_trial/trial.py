"""BaseTransformerTrial: what fine-tuning a transformer under Determined needs, whatever the task.

A port of the trial of that name in Determined's model-hub 0.36 (Apache-2.0), whose names and configuration keys it
keeps. A task subclasses it, and adds its data, its head and its evaluation; docs/extending.md shows how.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
import transformers
from determined import pytorch

from transformer_trial import builders, data, private
from transformer_trial.callbacks import Evaluation, TrainingMeans, build_callbacks
from transformer_trial.checkpoints import allow_determined_checkpoints, recipe, versions
from transformer_trial.config import DataConfig, Hyperparameters, TrialConfig, parse_trial_config
from transformer_trial.experiment import OptimizationsConfig, searcher_metric, training_length
from transformer_trial.machine import settle
from transformer_trial.parsing import read_known
from transformer_trial.processes import check_launcher, get_seed, local_chief_first

logger = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]
Score = Callable[[dict[str, list[Any]]], dict[str, Any]]


class BaseTransformerTrial(pytorch.PyTorchTrial):
    """A PyTorchTrial with everything but data, head and evaluation.

    A subclass overrides, as its task needs, what stands here in the order in which it is called: `load_datasets`,
    `read_data`, `build_model`, `tokenize` (or `tokenize_rows` alone), `data_loader`, `forward`, `compute_loss`,
    `evaluate` and `score`.
    """

    data_config_class: ClassVar[type[DataConfig]] = DataConfig
    """What the `data` section is parsed into."""
    hyperparameters_class: ClassVar[type[Hyperparameters]] = Hyperparameters
    """What the task's own keys of the `hyperparameters` section are parsed into: `self.settings.task`."""
    model_class: ClassVar[Any] = None
    """A class of transformers that builds the model; None takes the AutoModel class of `model_mode`."""
    label_list: list[str] | None = None
    """Names of the outputs of a head that classifies, in their order."""
    settings: TrialConfig[Any]
    """The `hyperparameters` and `data` sections, parsed."""
    model: Any
    """The model; after `wrap`, on its device and, with several slots, wrapped for data-parallel training."""
    tokenizer: Any
    """The model's tokenizer, which is exported beside it."""

    def __init__(self, context: pytorch.PyTorchTrialContext, *, inspects: bool = False) -> None:
        """Prepare the training, or, where it `inspects`, the data alone, without weights."""
        builders.silence_progress_bars()
        allow_determined_checkpoints()
        check_launcher(context.distributed)
        self.context, self.inspects = context, inspects
        self.experiment_config = context.get_experiment_config()
        settings = self.parse_settings(context.get_hparams(), self.experiment_config.get("data") or {})
        self.settings = settle(settings, context.device, context.distributed.local_rank)
        self.training_length = training_length(self.experiment_config)
        self.searcher_metric = searcher_metric(self.experiment_config, {})
        self.seed = get_seed(context)
        if self.is_restored:
            self.build_model()
            self.model = context.wrap_model(self.model)
            return
        transformers.set_seed(self.seed)  # Determined seeds on a cluster only
        self.batches_trained = 0
        self.data_report: dict[str, Any] = {}  # what a task says of its data, kept in report/data.json
        # Called with the index of each batch, before it is trained or evaluated on: signals and the progress bar.
        self.batch_hooks: list[Callable[[int], object]] = []
        # What Determined calls beside training; `local.py` puts those of a run with an output folder here.
        self.callbacks: dict[str, pytorch.PyTorchCallback] = {}
        with local_chief_first(context.distributed):
            self.read_data()
            self.build_model()
            self.tokenize()
        if not inspects:
            self.wrap()

    @property
    def is_restored(self) -> bool:
        """True where Determined only rebuilds the trial to load weights into it: no data, maybe no internet."""
        return isinstance(self.context, pytorch.CheckpointLoadContext)

    @property
    def bare_model(self) -> Any:
        """The model as transformers made it, without what several slots wrap it in."""
        return getattr(self.model, "module", self.model)

    @classmethod
    def parse_settings(cls, hparams: Mapping[str, Any], data_section: Mapping[str, Any]) -> TrialConfig[Any]:
        """Check both sections of an experiment configuration, and return them parsed."""
        return parse_trial_config(hparams, data_section, cls.data_config_class, cls.hyperparameters_class)

    def load_datasets(self) -> Mapping[str, Any]:
        """Load the splits `train`, `validation` and `test`, those that there are; `train` is required.

        Each is a `datasets.Dataset`, a list of dicts, or a function that yields dicts.
        """
        return data.default_load_dataset(self.settings.data)

    def read_data(self) -> None:
        """Set `self.rows`, the rows of each split; a task learns its labels here."""
        rows = data.as_datasets(self.load_datasets())
        self.rows = data.select_splits(rows, self.settings.data, needs_validation=not self.inspects)

    def build_model(self) -> None:
        """Set `self.config`, `self.tokenizer` and `self.model`; without tokenizer, from a checkpoint's config alone."""
        model = self.settings.model
        if self.is_restored:
            saved = self.experiment_config["model_config"]
            self.config, self.model = builders.build_from_config(saved, model, self.model_class)
        else:
            built = builders.build_using_auto(model, self.label_list, self.model_class, not self.inspects)
            self.config, self.tokenizer, self.model = built
        self.label_list = [self.config.id2label[i] for i in sorted(self.config.id2label)]

    def tokenize(self) -> None:
        """Set `self.tokenized_datasets`: the rows of each split as model inputs, with `input_ids`."""
        self.tokenized_datasets = data.map_rows(self.rows, self.tokenize_rows, self.tokenizer, self.settings.data)

    @staticmethod
    def tokenize_rows(rows: dict[str, list[Any]], tokenizer: Any, data_config: Any) -> Mapping[str, list[Any]]:
        """Turn columns of rows into columns of model inputs and of `labels`."""
        return dict(tokenizer(rows["text"], truncation=True))

    def wrap(self) -> None:
        """Hand model, optimizer and schedule to Determined, and the reducers of its metrics."""
        settings, context = self.settings, self.context
        data.check_lengths(self.tokenized_datasets, builders.count_positions(self.model))
        if settings.training.export_model and context.distributed.rank == 0:
            builders.warn_if_not_rebuilt(self.model, settings.model)
        optimizations = read_known("optimizations", self.experiment_config, OptimizationsConfig)
        self.aggregation_frequency = optimizations.aggregation_frequency
        self.scaler = None
        if settings.training.mixed_precision == "fp16":
            self.scaler = context.wrap_scaler(builders.OneOptimizerScaler(context.device.type))
        self.model = context.wrap_model(self.model)
        self.optimizer = context.wrap_optimizer(
            builders.build_default_optimizer(self.model, settings.optimizer),
            average_aggregated_gradients=optimizations.average_aggregated_gradients,
        )
        if settings.training.use_apex_amp:
            builders.check_apex()
            _, self.optimizer = context.configure_apex_amp(models=self.model, optimizers=self.optimizer)
            self.model = context.models[0]  # the returned model does not exchange gradients between slots
        self.parameters = list(self.model.parameters())
        batch_size, num_rows = settings.training.global_batch_size, self.tokenized_datasets["train"].num_rows
        batches_per_epoch = math.ceil(num_rows / batch_size)
        num_batches = self.num_training_batches = self.training_length.in_batches(batches_per_epoch, batch_size)
        # A schedule moves with every batch, also under gradient accumulation: Determined catches up at each step.
        self.lr_scheduler = context.wrap_lr_scheduler(
            builders.build_default_lr_scheduler(self.optimizer, settings.scheduler, num_batches),
            pytorch.LRScheduler.StepMode.STEP_EVERY_BATCH,
        )
        self.training_means = context.wrap_reducer(TrainingMeans(), for_training=True, for_validation=False)
        self.evaluation = context.wrap_reducer(Evaluation(self.score), for_training=False)
        summary = "Training on %d rows in batches of %d: %d batches an epoch, %d in all."
        logger.info(summary, num_rows, batch_size, batches_per_epoch, num_batches)

    def build_training_data_loader(self) -> pytorch.DataLoader:
        return self.data_loader(self.tokenized_datasets["train"], training=True)

    def build_validation_data_loader(self) -> pytorch.DataLoader:
        return self.data_loader(self.tokenized_datasets["validation"])

    def data_loader(
        self, rows: datasets.Dataset, collate: Callable[[list[Any]], Any] | None = None, *, training: bool = False
    ) -> pytorch.DataLoader:
        """Batches of rows, which have `input_ids`: for training shuffled, for evaluation sorted by length.

        `collate` makes a dict of tensors of rows; by default transformers' DataCollatorWithPadding does.
        """
        settings, num_slots = self.settings, self.context.distributed.size
        sampler: data.SlotBatchSampler | list[list[int]]
        if training:
            lengths = data.list_lengths(rows, "input_ids") if settings.data.group_by_length else None
            batch_size = settings.training.global_batch_size
            sampler = data.SlotBatchSampler(rows.num_rows, batch_size, num_slots, seed=self.seed, lengths=lengths)
        else:
            max_tokens = data.choose_evaluation_tokens(self.context.device)
            sampler = data.group_by_tokens(data.list_lengths(rows, "input_ids"), max_tokens, num_slots=num_slots)
        collate = collate or transformers.DataCollatorWithPadding(self.tokenizer)
        return pytorch.DataLoader(  # Determined repeats it, skips in it on a resume, and deals its batches to the slots
            rows,
            batch_sampler=sampler,
            collate_fn=data.PaddingCollator(collate, rows[0]),
            num_workers=settings.data.dataloader_num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=settings.data.dataloader_num_workers > 0,
            worker_init_fn=data.ignore_interrupts,
        )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The arithmetic of forward passes, in training as in evaluation."""
        precision = self.settings.training.mixed_precision
        if precision == "none":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        return torch.autocast(self.context.device.type, dtype=dtype)

    def forward(self, batch: Batch) -> Any:
        """The model's outputs for a training batch; with `labels` among its inputs, transformers adds the loss."""
        return self.model(**batch)

    def compute_loss(self, outputs: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | int]:
        """The sum of a batch's losses, a scalar, and how many they are: their mean is taken over all slots.

        By default the model's own loss, which is the mean over the rows of its batch.
        """
        num_rows = len(next(iter(batch.values())))
        return outputs["loss"] * num_rows, num_rows

    def evaluate(self, batch: Batch) -> dict[str, Any]:
        """Metrics of a batch by name, each a pair: its sum and the number of its terms, over which the mean is taken.

        The mean is that of all batches and slots. What is no pair, such as predictions, is collected for `score`.
        """
        return {"validation_loss": self.compute_loss(self.bare_model(**batch), batch)}

    def score(self, collected: dict[str, list[Any]]) -> dict[str, float]:
        """Further metrics, of what `evaluate` returned for all batches of all slots, in no particular order."""
        return {}

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        """Train on one batch. Nothing in here waits for the device."""
        self._begin_batch(batch_idx)
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        self.training_means.update(self._pass_backward(batch, batch_idx), learning_rate)
        self.context.step_optimizer(self.optimizer, clip_grads=self._clip_gradients, scaler=self.scaler)
        self.batches_trained = batch_idx + 1
        # training_means reports the loss: Determined would wait for a tensor. Several slots have to average something.
        return {"learning_rate": learning_rate}

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Evaluate a batch into the reducer: Determined would average what is returned here over unequal batches."""
        self._begin_batch(batch_idx)
        self._evaluate_into(self.evaluation, self.evaluate, batch)
        return {}

    def _evaluate_into(self, evaluation: Evaluation, evaluate: Callable[[Batch], dict[str, Any]], batch: Batch) -> None:
        is_padding = batch.pop(data.PADDING, None) is not None
        with torch.no_grad(), self.autocast():
            metrics = evaluate(batch)
        if not is_padding:
            evaluation.update(metrics)

    def _pass_backward(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Add a batch's gradients to those of the accumulation; return the batch's loss."""
        # Dropout differs from slot to slot and from step to step, and is the same again after a resume.
        stream = np.random.SeedSequence([self.seed, self.context.distributed.rank, batch_idx])
        seed = int(stream.generate_state(1, np.uint64)[0]) >> 1
        # torch.manual_seed seeds every kind of device, which takes longer than a small model's optimizer step.
        (torch.default_generator if self.context.device.type == "cpu" else torch).manual_seed(seed)
        is_padding = batch.pop(data.PADDING, None) is not None
        with self.autocast():
            loss_sum, count = self.compute_loss(self.forward(batch), batch)
            if is_padding:
                loss_sum, count = loss_sum * 0, count * 0
            if torch.distributed.is_initialized():
                count = torch.as_tensor(count, device=loss_sum.device)
                torch.distributed.all_reduce(count)
            # The gradients become the mean over the slots, hence the factor. Where nothing counts, the sum is 0.
            loss = loss_sum * self.context.distributed.size / (count + (count == 0))
        self.context.backward(loss if self.scaler is None else self.scaler.scale(loss))
        return loss

    def repeat_backward_passes(self) -> None:
        """Compute the gradients of a broken-off accumulation again, after a resume: checkpoints do not hold them."""
        first = self.batches_trained - self.batches_trained % self.aggregation_frequency
        if first == self.batches_trained:
            return
        self.model.train()
        distributed, loader = self.context.distributed, self.build_training_data_loader()
        batches = loader.get_data_loader(repeat=True, skip=first, num_replicas=distributed.size, rank=distributed.rank)
        for batch_idx, batch in zip(range(first, self.batches_trained), batches):
            private.set_batch_index(self.context, batch_idx)
            self._pass_backward(self.context.to_device(batch), batch_idx)

    def _begin_batch(self, batch_idx: int) -> None:
        """End the training where a stop was requested.

        Whatever ends a run early, a signal or `early_stopping_patience`, calls `context.set_stop_requested(True)` on
        every rank at the same batch. Determined then saves a checkpoint.
        """
        for hook in self.batch_hooks:
            hook(batch_idx)
        if self.context.get_stop_requested():
            self.training_means.unreported = self.context.distributed.allgather(self.training_means.per_slot_reduce())
            private.end_training()

    def _clip_gradients(self, _: Iterable[torch.nn.Parameter]) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.settings.optimizer.max_grad_norm > 0:
            # In the model's order of parameters the norm is rounded as transformers.Trainer rounds it.
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.optimizer.max_grad_norm)

    def evaluate_best(self, folder: Path, max_rows: int | None = None) -> dict[str, float]:
        """Describe the model after a validation that is the best so far; return metrics of the test split, if any.

        By default it evaluates that split, or its first `max_rows` rows. Every rank calls this; the first one returns
        the metrics, and may write to `folder`, replacing what an earlier call wrote.
        """
        rows = self.tokenized_datasets.get("test")
        if rows is None:
            return {}
        return self.evaluate_rows(rows.select(range(rows.num_rows)[:max_rows]), self.evaluate, self.score) or {}

    def evaluate_rows(self, rows: datasets.Dataset, evaluate: Callable[[Batch], dict[str, Any]], score: Score) -> Any:
        """Evaluate rows as a validation does; return the metrics on the first slot, None on the others."""
        evaluation, distributed = Evaluation(score), self.context.distributed
        # All slots take part. Else the others would wait for one, in a collective that gives up after minutes.
        for batch in self.data_loader(rows).get_data_loader(num_replicas=distributed.size, rank=distributed.rank):
            self._evaluate_into(evaluation, evaluate, self.context.to_device(batch))
        gathered = distributed.gather(evaluation.per_slot_reduce())
        return None if gathered is None else evaluation.cross_slot_reduce(gathered)

    def model_card(self) -> str:
        """What README.md in the exported model's folder says, as markdown."""
        made_with = versions(("determined", "torch", "transformers", "datasets"))
        return f"# {self.experiment_config.get('name')}\n\n{recipe(self.settings)}\n\nMade with {made_with}.\n"

    def build_callbacks(self) -> dict[str, pytorch.PyTorchCallback]:
        self.callbacks = self.callbacks or build_callbacks(self)
        return self.callbacks
