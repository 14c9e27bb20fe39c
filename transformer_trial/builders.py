"""Build config, tokenizer, model, optimizer and schedule, each from its part of the configuration."""

import contextlib
import importlib.util
import json
import logging
import math
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from transformer_trial.config import ModelConfig, OptimizerConfig, SchedulerConfig
from transformer_trial.errors import TrialError, format_value, reason_of

logger = logging.getLogger(__name__)

MAX_LAYERS = 1000
TRUST = "set hyperparameters.trust_remote_code: true, and revision to the commit that you have read"
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


def silence_progress_bars() -> None:
    """Show the libraries' progress bars on a terminal only: a log would keep a line of each of their states."""
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()  # those of downloads from the hub, too


def build_using_auto(
    model_config: ModelConfig,
    label_names: Sequence[str] | None = None,
    model_class: Any = None,
    loads_weights: bool = True,
) -> tuple[transformers.PretrainedConfig, transformers.PreTrainedTokenizerBase, transformers.PreTrainedModel]:
    """Build config, tokenizer and model with transformers' Auto classes. Raise a TrialError if one cannot be loaded.

    `label_names` are those of the head's outputs, for classification: `config.id2label` then holds them in the head's
    order. A pretrained head with the same names keeps its order of them, and its weights; for others it is made anew.
    `model_class` builds the model instead of the Auto class of `model_mode`. Without weights it takes no time.
    """
    hub_arguments = model_config.model_dump(include={"revision", "cache_dir", "trust_remote_code"})

    def load(auto_class: Any, key: str, **arguments: Any) -> Any:
        name = os.path.expanduser(getattr(model_config, key) or model_config.pretrained_model_name_or_path or "")
        if name.startswith(("/", ".")) and not os.path.isdir(name):
            raise TrialError(f"hyperparameters.{key} (or pretrained_model_name_or_path): there is no folder {name}.")
        with _explained(f"hyperparameters.{key} (or pretrained_model_name_or_path)", f"{name!r}", auto_class):
            return check_layers(auto_class.from_pretrained(name, **hub_arguments, **arguments))

    if model_config.trust_remote_code:
        runs = "true runs Python code from the model's folder or hub repository with your rights"
        advice = "it can read your files and tokens. Pin the commit that you have read by revision."
        logger.warning("hyperparameters.trust_remote_code: %s: %s", runs, advice)
    num_labels = model_config.num_labels if label_names is None else None
    config = load(transformers.AutoConfig, "config_name", **({"num_labels": num_labels} if num_labels else {}))
    if model_config.finetuning_task is not None:
        config.finetuning_task = model_config.finetuning_task
    lower_case = {} if model_config.do_lower_case is None else {"do_lower_case": model_config.do_lower_case}
    tokenizer = load(transformers.AutoTokenizer, "tokenizer_name", use_fast=model_config.use_fast, **lower_case)
    if is_made_up(tokenizer):
        key = "hyperparameters.tokenizer_name (or pretrained_model_name_or_path)"
        raise TrialError(f"{key}: there is no tokenizer. Give a model with its tokenizer.json, or tokenizer_name.")
    new_head = False
    if label_names is not None and sorted(config.id2label.values()) != sorted(label_names):
        new_head, config.id2label = True, dict(enumerate(label_names))
        config.label2id = {name: i for i, name in enumerate(label_names)}
    auto_class = model_class or AUTO_CLASSES[model_config.model_mode]
    if not (loads_weights and model_config.use_pretrained_weights):
        what, device = f"a model of the config {type(config).__name__}", "cpu" if loads_weights else "meta"
        with _explained("hyperparameters.model_mode", what, auto_class), torch.device(device):
            model = build_randomly(auto_class, config, model_config.trust_remote_code)
        return model.config, tokenizer, model
    how = {"config": config, "ignore_mismatched_sizes": True, "output_loading_info": True}
    model, loaded = load(auto_class, "model_name", **how)
    _check_loaded(model, tokenizer, loaded, model_config, new_head=new_head)
    # What is computed, such as RoFormer's positions, gets no gradient, which data-parallel training needs for all that
    # is not frozen, as transformers 5 fails to do.
    with contextlib.suppress(Exception), torch.device("meta"):  # no model of that kind without weights: none is frozen
        for name, weight in build_randomly(auto_class, model.config).named_parameters():
            if not weight.requires_grad:
                model.get_parameter(name).requires_grad_(False)
    if new_head:
        _start_head_afresh(model, set(loaded["missing_keys"]))
    return model.config, tokenizer, model  # transformers has made a copy of the config


def check_layers(loaded: Any) -> Any:
    """Refuse a config with so many layers that to build them takes all time and memory."""
    if isinstance(layers := getattr(loaded, "num_hidden_layers", 0), int) and layers > MAX_LAYERS:
        raise ValueError(f"its config.json has num_hidden_layers: {layers:.4g}")
    return loaded


def is_made_up(tokenizer: Any) -> bool:
    """Whether a tokenizer knows special tokens only: transformers 5 makes one up where a folder has none."""
    return len(tokenizer) <= len(tokenizer.all_special_ids)


def try_model(model: Any, tokenizer: Any) -> None:
    """Let a model for token classification read a word: one whose config was edited may fail here only."""
    try:
        getattr(model.config, "validate", tuple)()  # of transformers 5, without which there is no export
        with torch.inference_mode():
            logits = model.eval()(**tokenizer("a", return_tensors="pt").to(model.device))["logits"]
    except Exception as error:
        reason = reason_of(error)
        raise TrialError(f"The model cannot read a word: {reason}. Take it with the config.json it had.") from error
    if not logits.isfinite().all():
        raise TrialError("The model's outputs are no numbers, as after a loss that was none. Take another model.")


def build_from_config(config: dict[str, Any], model_config: ModelConfig, model_class: Any = None) -> tuple[Any, Any]:
    """Build config and model, whose weights are random, from the entries of a config.json alone."""
    trusts = model_config.trust_remote_code
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        loaded = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trusts)
        return loaded, build_randomly(model_class or AUTO_CLASSES[model_config.model_mode], loaded, trusts)


def build_randomly(model_class: Any, config: transformers.PretrainedConfig, trusts_code: bool = False) -> Any:
    """Build a model with random weights, by an Auto class or by a class of transformers' models."""
    if hasattr(model_class, "from_config"):
        return model_class.from_config(config, trust_remote_code=trusts_code)
    return model_class(config)


def warn_if_not_rebuilt(model: Any, model_config: ModelConfig) -> None:
    """Say before the training that nothing but the trial's own class will load what is exported, where that is so."""
    auto_class = AUTO_CLASSES[model_config.model_mode]
    if auto_class.__name__ in (getattr(model.config, "auto_map", None) or {}) or model._auto_class is not None:
        return  # the export takes its code along
    with torch.device("meta"):
        rebuilt = build_randomly(auto_class, model.config, model_config.trust_remote_code)
    shapes, expected = ({n: w.shape for n, w in m.state_dict().items()} for m in (model, rebuilt))
    if odd := sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name)):
        loss = "The export will hold a model that %s.from_pretrained does not rebuild, since %s differ. "
        advice = "Give its class a file of its own and call register_for_auto_class on it, or load it by that class."
        logger.warning(loss + advice, auto_class.__name__, ", ".join(odd[:4]))


def count_positions(model: torch.nn.Module) -> int | None:
    """How many sub-tokens a model has positions for; None where there is no limit."""
    positions = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if name.endswith(("position_embeddings", "wpe", "embed_positions")) and isinstance(module, torch.nn.Embedding)
    ]
    of_config: Any = getattr(model, "config", None)
    if positions and hasattr(of_config, "max_position_embeddings"):  # BART's embed_positions has rows beside these
        positions.append(of_config.max_position_embeddings)
    return min(positions, default=None)


@contextlib.contextmanager
def _explained(key: str, what: str, auto_class: Any) -> Iterator[None]:
    """Turn whatever transformers, the hub or a damaged file raise in the body into a TrialError."""
    try:
        yield
    except Exception as error:
        reason = reason_of(error)
        accepted = "Accepted are a model's name on the Hugging Face hub and a local folder with whole files"
        advice = f"{accepted}; private models need a token in HF_TOKEN."
        explanation = why_code_was_not_run(error, auto_class, TRUST) or f"{reason}. {advice}"
        raise TrialError(f"{key}: cannot load {what} with {auto_class.__name__}: {explanation}") from error


def why_code_was_not_run(error: Exception, auto_class: Any, how_to_trust: str) -> str | None:
    """Explain why a model that could run code was refused, and what is safe to do; None for any other error."""
    if "trust_remote_code=True" in str(error):
        return f"it comes with Python code of its own, none of which was run. Read it; if you trust it, {how_to_trust}."
    safetensors = "Accepted are safetensors: take a model or a revision that has model.safetensors"
    if "vulnerability" in str(error) and "torch.load" in str(error):  # transformers, of torch before 2.6
        return (
            f"its weights are a pickle (pytorch_model.bin), which torch {torch.__version__} cannot read without the "
            f"risk of running code in it. {safetensors}, or, if you trust this one, convert it where torch is 2.6 or "
            f"later: {auto_class.__name__}.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)."
        )
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, pickle.UnpicklingError):
        cause = cause.__cause__ or cause.__context__
    damage = "is damaged or holds more than tensors, such as code, none of which was run"
    return None if cause is None else f"its weights are a pickle (pytorch_model.bin) that {damage}. {safetensors}."


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer with more entries than the model knows."""
    known, size = getattr(model.config, "vocab_size", None), 1 + max(tokenizer.get_vocab().values(), default=-1)
    if known is not None and size > known:
        found = f"it has {size} entries, but the model knows {known}"
        raise TrialError(f"hyperparameters.tokenizer_name: {found}. Take model and tokenizer of one origin.")


def _check_loaded(model: Any, tokenizer: Any, loaded: Any, model_config: ModelConfig, *, new_head: bool) -> None:
    """Refuse a model without weights of its own, or with some of a wrong shape, or too small for the tokenizer."""
    key, in_body = "hyperparameters.model_name (or pretrained_model_name_or_path)", f"{model.base_model_prefix}."
    body = {name for name in model.state_dict() if name.startswith(in_body)}
    if body and body <= set(loaded["missing_keys"]):
        raise TrialError(f"{key}: none of the model's weights is there, but for those of a head.")
    check_vocabulary(model, tokenizer)
    names = [item if isinstance(item, str) else item[0] for item in loaded["mismatched_keys"]]
    refused = [name for name in names if not new_head or name.startswith(in_body)]
    if refused and not model_config.ignore_mismatched_sizes:
        found = f"the weights {', '.join(refused)} have another shape than the config says"
        advice = "set ignore_mismatched_sizes: true to start these weights afresh"
        raise TrialError(f"{key}: {found}. Load config and weights from the same model, or {advice}.")


def _start_head_afresh(model: transformers.PreTrainedModel, missing: set[str]) -> None:
    """Initialize the weights of a pretrained head again, because they were trained for other labels."""
    std = getattr(model.config, "initializer_range", 0.02)
    for prefix, module in model.named_modules():
        in_head = not prefix.startswith(model.base_model_prefix)
        if in_head and isinstance(module, torch.nn.Linear) and f"{prefix}.weight" not in missing:
            logger.warning("%s was trained for other labels; it starts afresh.", prefix)
            torch.nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)


def group_parameters_for_optimizer(model: torch.nn.Module, weight_decay: float = 0) -> list[dict[str, Any]]:
    """Two groups: weights, which decay, and biases and norms, known by their shape since names differ, which do not."""
    decaying, others = list[Any](), list[Any]()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decaying if parameter.ndim >= 2 and "bias" not in name else others).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def build_default_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build AdamW, fused where torch has a kernel for the model's device, or Adafactor."""
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


def check_apex() -> None:
    """Raise a TrialError where NVIDIA's Apex, or a GPU for it, is missing."""
    is_there = importlib.util.find_spec("apex") is not None
    if not is_there or not torch.cuda.is_available():
        what = "needs a GPU" if is_there else "needs NVIDIA Apex, which is not installed"
        advice = "Set use_apex_amp: false and mixed_precision: bf16 (or fp16), which needs PyTorch only."
        raise TrialError(f"hyperparameters.use_apex_amp: true {what}. {advice}")


class OneOptimizerScaler(torch.amp.GradScaler):
    """Updates its scale at each step: only Determined knows which batches of an accumulation make a step."""

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        result = super().step(optimizer, *args, **kwargs)
        self.update()
        return result


def build_default_lr_scheduler(
    optimizer: torch.optim.Optimizer, config: SchedulerConfig, num_training_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Build the schedule of `lr_scheduler_type`, or, for an optimizer with a rate of its own, one that shows that rate.

    It spans `num_training_steps` batches, where the config does not say.
    """
    if optimizer.param_groups[0]["lr"] is None:
        return transformers.optimization.AdafactorSchedule(optimizer)
    steps = config.num_training_steps or num_training_steps
    if steps != num_training_steps or config.num_warmup_steps > num_training_steps:
        told = "The schedule of the learning rate spans %d batches, %d of them warm-up, but the training has %d."
        logger.warning(told, steps, config.num_warmup_steps, num_training_steps)
    try:
        scheduler = transformers.get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=config.num_warmup_steps or math.ceil(config.warmup_ratio * steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )
        # Of the whole training, before it begins; of a very long one, at a million batches.
        for batch in (*range(0, num_training_steps, num_training_steps // 1_000_000 + 1), num_training_steps):
            if not 0 <= (rate := scheduler.lr_lambdas[0](batch)) < math.inf:
                raise ValueError(f"it gives {rate:g} times the learning rate at batch {batch}")
        return scheduler
    except (TypeError, ValueError, ArithmeticError) as error:
        found = format_value("lr_scheduler_kwargs", config.lr_scheduler_kwargs)
        raise TrialError(
            f"hyperparameters.lr_scheduler_kwargs: found {found}, which does not suit "
            f"lr_scheduler_type: {config.lr_scheduler_type} ({error}). Accepted are the arguments of that schedule's "
            "function in transformers.optimization."
        ) from error
