"""BaseTransformerTrial: what fine-tuning a transformer under Determined needs, whatever the task.

A port of the trial of that name in Determined's model-hub 0.36 (Apache-2.0), whose names and configuration keys it
keeps. A task subclasses it, and adds its data, its head and its evaluation.
"""

import contextlib
import importlib.util
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import determined as det
import numpy as np
import torch
import transformers
from determined import pytorch

from transformer_trial.callbacks import TrainingLoss, build_callbacks
from transformer_trial.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    SchedulerConfig,
    TrialConfig,
    parse_trial_config,
    searcher_metric,
    training_length,
)
from transformer_trial.data import SlotBatchSampler, build_data_loader, default_load_dataset
from transformer_trial.parsing import TrialError

logger = logging.getLogger(__name__)

AUTO_CLASSES = {
    "base": transformers.AutoModel,
    "pretraining": transformers.AutoModelForPreTraining,
    "causal-lm": transformers.AutoModelForCausalLM,
    "masked-lm": transformers.AutoModelForMaskedLM,
    "seq2seq-lm": transformers.AutoModelForSeq2SeqLM,
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "multiple-choice": transformers.AutoModelForMultipleChoice,
    "next-sentence": transformers.AutoModelForNextSentencePrediction,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
}

DEFAULT_SEED = 42
"""The seed off cluster where the yaml has no `reproducibility.experiment_seed`, as in TrainingArguments."""

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build_using_auto(
    model_config: ModelConfig, label_names: Sequence[str] | None = None
) -> tuple[transformers.PretrainedConfig, transformers.PreTrainedTokenizerBase, transformers.PreTrainedModel]:
    """Build config, tokenizer and model with transformers' Auto classes.

    Args:
        model_config: What to load, and `model_mode`, the kind of head.
        label_names: Names for the head's outputs, for classification. A pretrained head with the same names keeps its
            order of them, and its weights; beside other names it is made anew.

    Returns:
        Config, tokenizer and model. Where `label_names` are given, `config.id2label` holds them in the head's order.

    Raises:
        TrialError: If one of them cannot be loaded, or weights do not fit; it names the key.
    """
    hub_arguments = {
        "revision": model_config.revision,
        "cache_dir": model_config.cache_dir,
        "trust_remote_code": model_config.trust_remote_code,
    }
    shared_name = model_config.pretrained_model_name_or_path
    config_arguments = {
        key: value
        for key, value in (("finetuning_task", model_config.finetuning_task), ("num_labels", model_config.num_labels))
        if value is not None and not (key == "num_labels" and label_names is not None)
    }
    config = _load(
        transformers.AutoConfig, "config_name", model_config.config_name or shared_name, hub_arguments, config_arguments
    )
    lower_case = {} if model_config.do_lower_case is None else {"do_lower_case": model_config.do_lower_case}
    tokenizer = _load(
        transformers.AutoTokenizer, "tokenizer_name", model_config.tokenizer_name or shared_name, hub_arguments,
        {"use_fast": model_config.use_fast, **lower_case},
    )  # fmt: skip
    new_head = label_names is not None and _name_labels(config, label_names)
    auto_class = AUTO_CLASSES[model_config.model_mode]
    if not model_config.use_pretrained_weights:
        model = auto_class.from_config(config, trust_remote_code=model_config.trust_remote_code)
        return config, tokenizer, model
    model, loaded = _load(
        auto_class, "model_name", model_config.model_name or shared_name, hub_arguments,
        {"config": config, "ignore_mismatched_sizes": True, "output_loading_info": True},
    )  # fmt: skip
    _check_mismatched(model, loaded["mismatched_keys"], model_config, new_head=new_head)
    if new_head:
        _start_head_afresh(model, set(loaded["missing_keys"]))
    return config, tokenizer, model


def _load(auto_class: Any, key: str, name: str | None, hub_arguments: dict[str, Any], arguments: dict[str, Any]) -> Any:
    """`auto_class.from_pretrained(name, ...)`, with its failures as TrialErrors."""
    try:
        return auto_class.from_pretrained(name, **hub_arguments, **arguments)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise TrialError(
            f"hyperparameters.{key} (or pretrained_model_name_or_path): cannot load {name!r} with "
            f"{auto_class.__name__}: {reason} Accepted are a model's name on the Hugging Face hub and a local folder; "
            "private models need a token in HF_TOKEN."
        ) from error


def _name_labels(config: transformers.PretrainedConfig, label_names: Sequence[str]) -> bool:
    """Put the labels' names into the config, and tell whether the head for them has to be a new one."""
    known = [config.id2label[i] for i in sorted(config.id2label)]
    if sorted(known) == sorted(label_names):
        return False
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: i for i, name in enumerate(label_names)}
    return True


def _check_mismatched(model: Any, mismatched: Iterable[Any], model_config: ModelConfig, *, new_head: bool) -> None:
    """Refuse weights of another shape than the model's, unless they are to be replaced."""
    names = [key if isinstance(key, str) else key[0] for key in mismatched]
    refused = [n for n in names if not (new_head and not n.startswith(f"{model.base_model_prefix}."))]
    if refused and not model_config.ignore_mismatched_sizes:
        raise TrialError(
            f"hyperparameters.model_name (or pretrained_model_name_or_path): the weights {', '.join(refused)} have "
            "another shape than the config says. Load config and weights from the same model, or set "
            "ignore_mismatched_sizes: true to start these weights afresh."
        )


def _start_head_afresh(model: transformers.PreTrainedModel, missing: set[str]) -> None:
    """Forget the weights of a pretrained head: they were trained for other labels."""
    std = getattr(model.config, "initializer_range", 0.02)
    for prefix, module in model.named_modules():
        in_head = not prefix.startswith(model.base_model_prefix)
        if in_head and isinstance(module, torch.nn.Linear) and f"{prefix}.weight" not in missing:
            logger.warning("%s was trained for other labels; it starts afresh.", prefix)
            torch.nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)


def group_parameters_for_optimizer(model: torch.nn.Module, weight_decay: float = 0) -> list[dict[str, Any]]:
    """Two groups of trainable parameters: weights, which decay, and biases and norms, which do not.

    Norms are told by their shape, since their names differ from model to model.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decays = {name: parameter.ndim >= 2 and "bias" not in name for name, parameter in trainable}
    return [
        {"params": [parameter for name, parameter in trainable if decays[name]], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in trainable if not decays[name]], "weight_decay": 0.0},
    ]


def build_default_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW, fused where torch has a kernel for the model's device, or Adafactor."""
    if config.adafactor:
        return transformers.Adafactor(
            group_parameters_for_optimizer(model, config.weight_decay),
            lr=None if config.relative_step else config.learning_rate,
            scale_parameter=config.scale_parameter,
            relative_step=config.relative_step,
        )

    def adamw(*, fused: bool) -> torch.optim.Optimizer:
        groups = group_parameters_for_optimizer(model, config.weight_decay)
        betas = (config.adam_beta1, config.adam_beta2)
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon, fused=fused)

    try:
        return adamw(fused=True)
    except RuntimeError:  # no fused kernel: torch 2.3 on a CPU
        return adamw(fused=False)


def build_default_lr_scheduler(
    optimizer: torch.optim.Optimizer, config: SchedulerConfig, num_training_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of `lr_scheduler_type`, or, for an optimizer with a rate of its own, one that shows that rate.

    Args:
        optimizer: From `build_default_optimizer`.
        config: Warm-up and shape.
        num_training_steps: Batches that the schedule spans, where the config does not say.

    Raises:
        TrialError: If `lr_scheduler_kwargs` do not suit the schedule.
    """
    if optimizer.param_groups[0]["lr"] is None:
        return transformers.optimization.AdafactorSchedule(optimizer)
    steps = config.num_training_steps or num_training_steps
    try:
        return transformers.get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=config.num_warmup_steps or math.ceil(config.warmup_ratio * steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )
    except (TypeError, ValueError) as error:
        raise TrialError(
            f"hyperparameters.lr_scheduler_kwargs: found {config.lr_scheduler_kwargs!r}, which does not suit "
            f"lr_scheduler_type: {config.lr_scheduler_type} ({error}). Accepted are the arguments of that schedule's "
            "function in transformers.optimization."
        ) from error


class OneOptimizerScaler(torch.amp.GradScaler):
    """Adjusts its scale with each step: Determined alone knows at which batches of an accumulation it steps."""

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        result = super().step(optimizer, *args, **kwargs)
        self.update()
        return result


def allow_determined_checkpoints() -> None:
    """Let torch >= 2.6 read Determined's checkpoints, which hold the state of NumPy's random numbers.

    They are plain arrays; everything else that a pickle could name stays forbidden.
    """
    if not hasattr(torch.serialization, "add_safe_globals"):
        return  # a torch whose torch.load is not restricted
    reconstruct: Any = np.zeros(1).__reduce__()[0]
    torch.serialization.add_safe_globals(
        [
            (reconstruct, "numpy._core.multiarray._reconstruct"),
            (reconstruct, "numpy.core.multiarray._reconstruct"),  # as NumPy 1 names it
            np.ndarray,
            np.dtype,
            type(np.dtype("uint32")),
        ]
    )


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

    def __init__(self, context: pytorch.PyTorchTrialContext) -> None:
        allow_determined_checkpoints()
        self.context = context
        self.experiment_config = context.get_experiment_config()
        data = self.experiment_config.get("data") or {}
        self.settings = parse_trial_config(context.get_hparams(), data, self.data_config_class)
        self.training_length = training_length(self.experiment_config)
        self.searcher_metric = searcher_metric(self.experiment_config, {})
        self.seed = self._get_seed()
        # Determined seeds on a cluster only; here every way to run the same yaml starts from the same weights.
        transformers.set_seed(self.seed)
        self.batches_trained = 0
        self.output_dir: Path | None = None
        """Where metrics and the best model are kept; None keeps them in Determined only."""
        self.on_batch_end: Callable[[], object] | None = None
        """Called after every training batch, to move a progress bar."""

    def _get_seed(self) -> int:
        try:
            return self.context.get_trial_seed()
        except det.errors.InternalException:  # off cluster
            reproducibility = self.experiment_config.get("reproducibility") or {}
            return int(reproducibility.get("experiment_seed", DEFAULT_SEED))

    def load_datasets(self) -> datasets.DatasetDict:
        """Load the splits `train`, `validation` and `test`, those that there are.

        Override it to load data in your own way: return a `datasets.DatasetDict`, whose `train` split is required.
        """
        return default_load_dataset(self.settings.data)

    def wrap(self, num_training_rows: int) -> None:
        """Hand model, optimizer and schedule to Determined.

        Args:
            num_training_rows: Rows that the model sees in an epoch, which the length of the schedule follows from.
        """
        settings, context = self.settings, self.context
        optimizations = self.experiment_config.get("optimizations") or {}
        self.scaler = None
        if settings.training.mixed_precision == "fp16":
            self.scaler = context.wrap_scaler(OneOptimizerScaler(context.device.type))
        self.model = context.wrap_model(self.model)
        self.optimizer = context.wrap_optimizer(
            build_default_optimizer(self.model, settings.optimizer),
            fp16_compression=bool(optimizations.get("gradient_compression", False)),
            average_aggregated_gradients=bool(optimizations.get("average_aggregated_gradients", True)),
        )
        if settings.training.use_apex_amp:
            self._configure_apex()
        batches_per_epoch = math.ceil(num_training_rows / settings.training.global_batch_size)
        num_batches = self.training_length.in_batches(batches_per_epoch, settings.training.global_batch_size)
        self.num_training_batches = num_batches
        # A schedule that moves with every batch is right under gradient accumulation too: Determined catches it up.
        self.lr_scheduler = context.wrap_lr_scheduler(
            build_default_lr_scheduler(self.optimizer, settings.scheduler, num_batches),
            pytorch.LRScheduler.StepMode.STEP_EVERY_BATCH,
        )
        self.training_loss = context.wrap_reducer(TrainingLoss(), name="loss", for_training=True, for_validation=False)
        logger.info(
            "Training on %d rows in batches of %d: %d batches an epoch, %d in all.",
            num_training_rows, settings.training.global_batch_size, batches_per_epoch, num_batches,
        )  # fmt: skip

    def _configure_apex(self) -> None:
        if importlib.util.find_spec("apex") is None or not torch.cuda.is_available():
            what = "needs a GPU" if importlib.util.find_spec("apex") else "needs NVIDIA Apex, which is not installed"
            raise TrialError(
                f"hyperparameters.use_apex_amp: true {what}. Set use_apex_amp: false and mixed_precision: bf16 (or "
                "fp16), which needs PyTorch only."
            )
        self.model, self.optimizer = self.context.configure_apex_amp(models=self.model, optimizers=self.optimizer)
        # What it returns is the bare model, which skips the exchange of gradients between slots.
        self.model = self.context.models[0]

    def data_loader(
        self,
        rows: datasets.Dataset,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        *,
        training: bool,
    ) -> pytorch.DataLoader:
        """Batches of rows: shuffled, and grouped by length where asked for, if they are for training."""
        data = self.settings.data
        sampler = SlotBatchSampler(
            rows.num_rows,
            self.settings.training.global_batch_size,
            self.context.distributed.size,
            seed=self.seed if training else None,
            lengths=[len(ids) for ids in rows["input_ids"]] if training and data.group_by_length else None,
        )
        return build_data_loader(rows, sampler, collate, num_workers=data.dataloader_num_workers)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The arithmetic of forward passes, in training as in evaluation."""
        precision = self.settings.training.mixed_precision
        if precision == "none":
            return contextlib.nullcontext()
        return torch.autocast(self.context.device.type, dtype=AUTOCAST_TYPES[precision])

    def compute_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """This slot's loss, a scalar; the gradients are the mean of the slots'. By default the model's own loss."""
        outputs = self.model(**batch)
        loss: torch.Tensor = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
        return loss

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        """Train on one batch. Nothing in here waits for the device."""
        # Dropout differs from slot to slot and step to step, and is the same again where a run is resumed.
        stream = np.random.SeedSequence([self.seed, self.context.distributed.rank, batch_idx])
        torch.manual_seed(int(stream.generate_state(1, np.uint64)[0]) >> 1)
        with self.autocast():
            loss = self.compute_loss(batch)
        self.training_loss.update(loss)
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.context.backward(loss if self.scaler is None else self.scaler.scale(loss))
        self.context.step_optimizer(self.optimizer, clip_grads=self._clip_gradients, scaler=self.scaler)
        self.batches_trained = batch_idx + 1
        if self.on_batch_end is not None:
            self.on_batch_end()
        # Determined copies a tensor that is returned here to the CPU, and waits for it: the loss is a reducer's. With
        # several slots it needs something to average.
        return {"learning_rate": float(learning_rate)}

    def _clip_gradients(self, _: Iterable[torch.nn.Parameter]) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.settings.optimizer.max_grad_norm > 0:
            # In the model's order, not in the optimizer's, the norm is rounded as transformers.Trainer rounds it.
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.optimizer.max_grad_norm)

    def build_callbacks(self) -> dict[str, pytorch.PyTorchCallback]:
        return build_callbacks(self)
