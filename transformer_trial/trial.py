"""BaseTransformerTrial: what fine-tuning a transformer under Determined needs, whatever the task.

A port of the trial of that name in Determined's model-hub 0.36 (Apache-2.0), whose names and configuration keys it
keeps. A task subclasses it, and adds its data, its head and its evaluation.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import datasets
import determined as det
import numpy as np
import torch
import transformers
from determined import pytorch

from transformer_trial import builders, data, private
from transformer_trial.callbacks import TrainingMeans, build_callbacks
from transformer_trial.checkpoints import allow_determined_checkpoints, recipe, versions
from transformer_trial.config import DataConfig, TrialConfig, parse_trial_config
from transformer_trial.errors import TrialError
from transformer_trial.experiment import OptimizationsConfig, ReproducibilityConfig, searcher_metric, training_length
from transformer_trial.parsing import read_known

logger = logging.getLogger(__name__)


class BaseTransformerTrial(pytorch.PyTorchTrial):
    """A PyTorchTrial with everything but data, head and evaluation.

    A subclass's `__init__` calls `super().__init__(context)`, loads and tokenizes its data, builds the model with
    `build_using_auto`, and then calls `self.wrap(...)`. It has to define `build_training_data_loader`,
    `build_validation_data_loader` (`self.data_loader` does most of that) and `evaluate_batch`.
    """

    data_config_class: ClassVar[type[DataConfig]] = DataConfig
    """What the `data` section is parsed into."""

    settings: TrialConfig[Any]
    """The `hyperparameters` and `data` sections, parsed."""

    model: Any
    """The model; after `wrap`, on its device and, with several slots, wrapped for data-parallel training."""

    tokenizer: Any
    """The model's tokenizer, which is exported beside it."""

    def __init__(self, context: pytorch.PyTorchTrialContext) -> None:
        allow_determined_checkpoints()
        if context.distributed.size > 1 and not torch.distributed.is_initialized():
            raise TrialError(
                "Several slots need torch's own launcher: entrypoint: python3 -m determined.launch.torch_distributed "
                "python3 train.py, or ner_trial:NERTrial. Horovod is not supported."
            )
        self.context = context
        self.experiment_config = context.get_experiment_config()
        section = self.experiment_config.get("data") or {}
        self.settings = parse_trial_config(context.get_hparams(), section, self.data_config_class)
        if context.distributed.local_rank > 0:  # the first process of the node makes the caches anew
            data_config = self.settings.data.model_copy(update={"overwrite_cache": False})
            self.settings = dataclasses.replace(self.settings, data=data_config)
        self.training_length = training_length(self.experiment_config)
        self.searcher_metric = searcher_metric(self.experiment_config, {})
        self.seed = self._get_seed()
        if self.is_restored:
            return
        transformers.set_seed(self.seed)  # Determined seeds on a cluster only
        self.batches_trained = 0
        self.data_report: dict[str, Any] = {}
        """What a task says of its data before training, on the first process; it is kept in report/data.json."""
        self.batch_hooks: list[Callable[[int], object]] = []
        """Called with the index of each batch, before it is trained or evaluated on: signals and the progress bar."""
        self.callbacks: dict[str, pytorch.PyTorchCallback] = {}
        """What Determined calls beside training; `local.py` puts those of a run with an output folder here."""

    @property
    def is_restored(self) -> bool:
        """True where Determined only rebuilds the trial to load weights into it: no data, maybe no internet."""
        return isinstance(self.context, pytorch.CheckpointLoadContext)

    @property
    def bare_model(self) -> Any:
        """The model as transformers made it, without what several slots wrap it in."""
        return getattr(self.model, "module", self.model)

    def restore_model(self) -> None:
        """Build the model that a checkpoint's weights go into, from the config that the checkpoint holds."""
        model_config = self.experiment_config["model_config"]
        self.config, model = builders.build_from_config(model_config, self.settings.model)
        self.model = self.context.wrap_model(model)

    def _get_seed(self) -> int:
        try:
            return self.context.get_trial_seed()
        except det.errors.InternalException:  # off cluster
            return read_known("reproducibility", self.experiment_config, ReproducibilityConfig).experiment_seed

    def load_datasets(self) -> datasets.DatasetDict:
        """Load the splits `train`, `validation` and `test`, those that there are.

        Override it to load data in your own way: return a `datasets.DatasetDict`, whose `train` split is required.
        """
        return data.default_load_dataset(self.settings.data)

    def wrap(self, num_training_rows: int) -> None:
        """Hand model, optimizer and schedule to Determined.

        Args:
            num_training_rows: Rows that the model sees in an epoch, which the length of the schedule follows from.
        """
        settings, context = self.settings, self.context
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
        batch_size = settings.training.global_batch_size
        batches_per_epoch = math.ceil(num_training_rows / batch_size)
        num_batches = self.num_training_batches = self.training_length.in_batches(batches_per_epoch, batch_size)
        # A schedule moves with every batch, also under gradient accumulation: Determined catches up at each step.
        self.lr_scheduler = context.wrap_lr_scheduler(
            builders.build_default_lr_scheduler(self.optimizer, settings.scheduler, num_batches),
            pytorch.LRScheduler.StepMode.STEP_EVERY_BATCH,
        )
        self.training_means = context.wrap_reducer(TrainingMeans(), for_training=True, for_validation=False)
        summary = "Training on %d rows in batches of %d: %d batches an epoch, %d in all."
        logger.info(summary, num_training_rows, batch_size, batches_per_epoch, num_batches)

    def data_loader(
        self, rows: datasets.Dataset, collate: Callable[[list[dict[str, Any]]], dict[str, Any]], *, training: bool
    ) -> pytorch.DataLoader:
        """Batches of rows, which have `input_ids`: for training shuffled, for evaluation sorted by length."""
        settings, num_slots = self.settings, self.context.distributed.size
        sampler: data.SlotBatchSampler | list[list[int]]
        if training:
            lengths = data.list_lengths(rows, "input_ids") if settings.data.group_by_length else None
            batch_size = settings.training.global_batch_size
            sampler = data.SlotBatchSampler(rows.num_rows, batch_size, num_slots, seed=self.seed, lengths=lengths)
        else:
            max_tokens = data.choose_evaluation_tokens(self.context.device)
            sampler = data.group_by_tokens(data.list_lengths(rows, "input_ids"), max_tokens, num_slots=num_slots)
        return pytorch.DataLoader(  # Determined repeats it, skips in it on a resume, and deals its batches to the slots
            rows,
            batch_sampler=sampler,
            collate_fn=collate,
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

    def compute_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """This slot's loss, a scalar; the gradients are the mean of the slots'. By default the model's own loss."""
        outputs = self.model(**batch)
        loss: torch.Tensor = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
        return loss

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        """Train on one batch. Nothing in here waits for the device."""
        self.begin_batch(batch_idx)
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        self.training_means.update(self._pass_backward(batch, batch_idx), learning_rate)
        self.context.step_optimizer(self.optimizer, clip_grads=self._clip_gradients, scaler=self.scaler)
        self.batches_trained = batch_idx + 1
        # training_means reports the loss: Determined would wait for a tensor. Several slots have to average something.
        return {"learning_rate": learning_rate}

    def _pass_backward(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Add a batch's gradients to those of the accumulation; return the batch's loss."""
        # Dropout differs from slot to slot and from step to step, and is the same again after a resume.
        stream = np.random.SeedSequence([self.seed, self.context.distributed.rank, batch_idx])
        seed = int(stream.generate_state(1, np.uint64)[0]) >> 1
        # torch.manual_seed seeds every kind of device, which takes longer than a small model's optimizer step.
        (torch.default_generator if self.context.device.type == "cpu" else torch).manual_seed(seed)
        with self.autocast():
            loss = self.compute_loss(batch)
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

    def begin_batch(self, batch_idx: int) -> None:
        """Call this first in `train_batch` and `evaluate_batch`: it ends the training where a stop was requested.

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
        """Describe the model after a validation that is the best so far. Every rank calls this; the first one writes.

        Args:
            folder: Where to write. The first rank replaces what an earlier call wrote there.
            max_rows: How many rows of the test split to use; None uses all.

        Returns:
            Metrics of the test split on the first rank, which reports them; nothing where there is no such split.
        """
        return {}

    def model_card(self) -> str:
        """What README.md in the exported model's folder says, as markdown."""
        made_with = versions(("determined", "torch", "transformers", "datasets"))
        return f"# {self.experiment_config.get('name')}\n\n{recipe(self.settings)}\n\nMade with {made_with}.\n"

    def build_callbacks(self) -> dict[str, pytorch.PyTorchCallback]:
        self.callbacks = self.callbacks or build_callbacks(self)
        return self.callbacks
