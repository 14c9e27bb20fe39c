"""The `hyperparameters` and `data` sections of an experiment configuration, checked by pydantic. No torch here.

`transformer_trial/parsing.py` says how values are read and mistakes are reported.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

from pydantic import Field, field_validator

from transformer_trial.files import resolve
from transformer_trial.parsing import Section, parse_sections, pick_from_range

logger = logging.getLogger(__name__)

ModelMode = Literal[
    "base", "pretraining", "causal-lm", "masked-lm", "seq2seq-lm", "sequence-classification", "multiple-choice",
    "next-sentence", "token-classification", "question-answering",
]  # fmt: skip
MODEL_MODES: tuple[str, ...] = get_args(ModelMode)

# Every schedule of transformers but reduce_lr_on_plateau and greedy, which follow a validation metric.
LrSchedulerType = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay",
]  # fmt: skip
LR_SCHEDULER_TYPES: tuple[str, ...] = get_args(LrSchedulerType)


class Hyperparameters(Section):
    """Base of the parts of the `hyperparameters` section, whose values may be search ranges."""

    @field_validator("*", mode="before")
    @classmethod
    def _pick_from_range(cls, value: Any) -> Any:
        return pick_from_range(value)


class ModelConfig(Hyperparameters):
    """Which config, tokenizer and weights to load, and with which head."""

    pretrained_model_name_or_path: str | None = None
    """Hub name or folder of config, tokenizer and weights, where no name of their own is given."""
    config_name: str | None = None
    """Hub name or folder of the model's config."""
    tokenizer_name: str | None = None
    """Hub name or folder of the tokenizer."""
    model_name: str | None = None
    """Hub name or folder of the weights."""
    model_mode: ModelMode
    """The head: which AutoModel class is built."""
    finetuning_task: str | None = None
    """Name of the task, kept in the model's config; its tags are looked for in the column `{finetuning_task}_tags`."""
    use_pretrained_weights: bool = True
    """False builds the model from its config with random weights."""
    revision: str = "main"
    """Branch, tag or commit on the hub, for config, tokenizer and weights."""
    cache_dir: str | None = None
    """Where downloads are kept; by default where the Hugging Face libraries keep them."""
    use_fast: bool = True
    """Ask for a fast tokenizer."""
    do_lower_case: bool | None = None
    """Override the tokenizer's own lower-casing."""
    num_labels: int | None = Field(default=None, ge=1)
    """Width of the head. NERTrial derives it from the data, and refuses another number."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model, from the hub or its folder, with your rights."""
    ignore_mismatched_sizes: bool = False
    """Start weights afresh whose shape differs from the pretrained ones, instead of refusing them."""
    use_auth_token: bool | None = False
    """Without effect: the hub's token comes from the environment (HF_TOKEN) or from `hf auth login`."""

    def conflicts(self) -> Iterator[str]:
        names = ["config_name", "tokenizer_name", "model_name"][: 3 if self.use_pretrained_weights else 2]
        missing = [name for name in names if getattr(self, name) is None]
        if self.pretrained_model_name_or_path is None and missing:
            yield (
                "pretrained_model_name_or_path: missing. Give a hub name such as bert-base-uncased or a folder, "
                f"or all of {', '.join(names)} (without a value: {', '.join(missing)})."
            )


class OptimizerConfig(Hyperparameters):
    """AdamW or Adafactor, with the defaults of transformers' TrainingArguments."""

    learning_rate: float = Field(default=5e-5, ge=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of all weights but biases and norms."""
    adafactor: bool = False
    """Adafactor instead of AdamW."""
    scale_parameter: bool = False
    """Adafactor: scale the rate by the root mean square of the parameter."""
    relative_step: bool = False
    """Adafactor: derive the rate from the step, instead of `learning_rate` and its schedule."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW: decay of the gradient's running mean."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW: decay of the squared gradient's running mean."""
    adam_epsilon: float = Field(default=1e-8, ge=0)
    """AdamW: added to the denominator."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip the gradient's norm to this; 0 never clips."""

    def conflicts(self) -> Iterator[str]:
        for key in ("scale_parameter", "relative_step"):
            if getattr(self, key) and not self.adafactor:
                yield f"{key}: true has an effect with adafactor: true only. Set that, or remove it."


class SchedulerConfig(Hyperparameters):
    """The learning rate's schedule. Its lengths are counted in batches, as everything is in Determined."""

    lr_scheduler_type: LrSchedulerType = "linear"
    """Shape of the schedule."""
    lr_scheduler_kwargs: dict[str, Any] | None = None
    """Further arguments of that schedule's function in transformers, such as `num_cycles`."""
    num_warmup_steps: int = Field(default=0, ge=0)
    """Batches of linear warm-up."""
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Warm-up as a part of `num_training_steps`, rounded up, where `num_warmup_steps` is 0."""
    num_training_steps: int | None = Field(default=None, ge=1)
    """Batches that the schedule spans; by default the length of the training."""

    def conflicts(self) -> Iterator[str]:
        steps, ratio, kind = self.num_warmup_steps, self.warmup_ratio, self.lr_scheduler_type
        if steps and ratio:
            yield f"warmup_ratio: {ratio} beside num_warmup_steps: {steps}. Both say how long it warms up; remove one."
        keys = ("num_warmup_steps", "warmup_ratio", "lr_scheduler_kwargs")
        for key in {"constant": keys, "constant_with_warmup": keys[2:]}.get(kind, ()):
            if getattr(self, key):
                yield f"{key}: without effect under lr_scheduler_type: {kind}. Remove it."


class TrainingConfig(Hyperparameters):
    """Batch size and arithmetic."""

    global_batch_size: int = Field(ge=1)
    """Rows of a training batch, over all slots together."""
    use_apex_amp: bool = False
    """Mixed precision by NVIDIA Apex, where the image has it."""
    mixed_precision: Literal["none", "auto", "bf16", "fp16"] = "none"
    """Mixed precision by PyTorch: forward passes in this type, the rest in fp32. `auto`: bf16 where it is faster."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after so many validations without a better value of the searcher's metric."""
    export_model: bool = True
    """Keep the model as `from_pretrained` reads it: locally the best in DIR/model, on a cluster in each checkpoint."""

    def conflicts(self) -> Iterator[str]:
        if self.use_apex_amp and self.mixed_precision != "none":
            both = f"mixed_precision: {self.mixed_precision} beside use_apex_amp: true"
            yield f"{both}. Both lower the precision; set use_apex_amp: false."


HYPERPARAMETER_CLASSES: tuple[type[Section], ...] = (ModelConfig, OptimizerConfig, SchedulerConfig, TrainingConfig)


class DataConfig(Section):
    """Where the data is and how it is batched, whatever the task."""

    dataset_name: str | None = None
    """Hub name or local folder of a data set; null takes the files below."""
    dataset_config_name: str | None = None
    """Configuration of that data set, where it has several."""
    dataset_revision: str | None = None
    """Branch, tag or commit of that data set on the hub."""
    train_file: str | None = None
    """Training rows: a file, or several by a glob such as data/*.json; for NER also a folder. Packed or not."""
    validation_file: str | None = None
    """Validation rows: files with the same columns."""
    test_file: str | None = None
    """Test rows: files with the same columns."""
    validation_split_percentage: float | None = Field(default=None, gt=0, lt=100)
    """Where there is no validation split: a sample of the training rows becomes one; documents stay whole."""
    preprocessing_num_workers: int | None = Field(default=None, ge=1, le=1024)
    """Processes that tokenize."""
    dataloader_num_workers: int = Field(default=0, ge=0, le=1024)
    """Processes that collate batches, on each slot; 0 collates in the training process."""
    cache_dir: str | None = None
    """Where data sets are kept once read; by default where the datasets library keeps them."""
    overwrite_cache: bool = False
    """Read and tokenize anew even what the cache holds."""
    group_by_length: bool = False
    """Train on batches of rows of similar length: less padding, another order."""
    max_train_samples: int | None = Field(default=None, ge=1)
    """Train on the first so many rows only."""
    max_eval_samples: int | None = Field(default=None, ge=1)
    """Validate on the first so many rows only."""

    def conflicts(self) -> Iterator[str]:
        files = [key for key in ("train_file", "validation_file", "test_file") if getattr(self, key) is not None]
        if self.dataset_name is not None and files:
            both = f"dataset_name: {self.dataset_name!r} beside {', '.join(files)}"
            yield f"{both}. Set dataset_name: null to train on the files, or the files to null to use that data set."
        for key in ("dataset_config_name", "dataset_revision"):
            if self.dataset_name is None and getattr(self, key) is not None:
                yield f"{key}: {getattr(self, key)!r} without a dataset_name. Set that, or {key}: null."


DataT = TypeVar("DataT", bound=DataConfig)


@dataclass(frozen=True)
class TrialConfig(Generic[DataT]):
    """Everything that a trial reads from its experiment configuration."""

    model: ModelConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    training: TrainingConfig
    data: DataT
    task: Any
    """The task's own hyperparameters; NERTrial has none."""


def parse_trial_config(
    hparams: Mapping[str, Any],
    data: Mapping[str, Any],
    data_class: type[DataT],
    task_class: type[Hyperparameters] = Hyperparameters,
) -> TrialConfig[DataT]:
    """Check both sections and return them parsed; a ConfigError names all problems.

    Search ranges among the hyperparameters stand for one value of theirs, so that a search's yaml can be tried locally.
    """
    classes = (*HYPERPARAMETER_CLASSES, task_class)
    parsed = parse_sections({"hyperparameters": (hparams, classes), "data": (data, [data_class])})
    for section, section_class in (("hyperparameters", ModelConfig), ("data", data_class)):
        if (folder := parsed[section_class].cache_dir) is not None:
            resolve(f"{section}.cache_dir", folder)
    if parsed[ModelConfig].use_auth_token:
        logger.warning("hyperparameters.use_auth_token has no effect: the hub's token is read from HF_TOKEN.")
    return TrialConfig(*(parsed[c] for c in (*HYPERPARAMETER_CLASSES, data_class, task_class)))
