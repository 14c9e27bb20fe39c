"""BaseTransformerTrial serves other tasks: a subclass needs data, head and evaluation only."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._foreach_utils
import transformers
from conftest import SAMPLE_MODEL, Config, Fit, Patch, read_metrics
from determined import pytorch

from ner_trial import NERTrial
from transformer_trial.builders import (
    AUTO_CLASSES,
    build_default_optimizer,
    build_using_auto,
    group_parameters_for_optimizer,
)
from transformer_trial.config import MODEL_MODES, ModelConfig, OptimizerConfig
from transformer_trial.errors import TrialError


@pytest.mark.parametrize("mode", MODEL_MODES)
@pytest.mark.parametrize("pretrained", [True, False])
def test_every_model_mode_is_built(mode: Any, pretrained: bool, tmp_path: Path) -> None:
    sizes = {"vocab_size": 900, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if mode == "seq2seq-lm":
        config = transformers.T5Config(**sizes, d_kv=8, d_ff=16, decoder_start_token_id=0)
    else:
        config = transformers.BertConfig(**sizes, intermediate_size=16, is_decoder=mode == "causal-lm")
    folder = tmp_path / "model"
    AUTO_CLASSES[mode].from_config(config).save_pretrained(folder)
    model_config = ModelConfig(
        model_mode=mode, pretrained_model_name_or_path=str(folder), tokenizer_name=str(SAMPLE_MODEL),
        use_pretrained_weights=pretrained,
    )  # fmt: skip
    _, tokenizer, model = build_using_auto(model_config)
    assert type(model) is type(AUTO_CLASSES[mode].from_config(config))
    assert tokenizer.is_fast
    saved = AUTO_CLASSES[mode].from_pretrained(folder).state_dict()
    matrices = [name for name, weight in model.state_dict().items() if weight.ndim == 2]
    assert all(torch.equal(model.state_dict()[name], saved[name]) for name in matrices) == pretrained


def test_a_head_that_the_architecture_lacks_is_a_clear_error() -> None:
    model_config = ModelConfig(
        model_mode="next-sentence", pretrained_model_name_or_path=str(SAMPLE_MODEL), use_pretrained_weights=False
    )
    with pytest.raises(TrialError, match=r"\.model_mode: cannot load a model of the config RoFormerConfig"):
        build_using_auto(model_config)


@pytest.mark.parametrize("architecture", ["Bert", "DistilBert", "Roberta", "Electra", "DebertaV2", "ModernBert", "T5"])
def test_weight_decay_skips_biases_and_norms_as_transformers_does(architecture: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}
    sizes |= {"T5": {"d_kv": 8, "d_ff": 16}, "DistilBert": {"hidden_dim": 16}}.get(
        architecture, {"intermediate_size": 16}
    )
    model = transformers.AutoModel.from_config(getattr(transformers, f"{architecture}Config")(**sizes))
    trainer = transformers.Trainer(
        model=model, args=transformers.TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    )
    expected = set(trainer.get_decay_parameter_names(model)) & {name for name, _ in model.named_parameters()}
    decayed = {id(parameter) for parameter in group_parameters_for_optimizer(model, 0.1)[0]["params"]}
    assert {name for name, parameter in model.named_parameters() if id(parameter) in decayed} == expected


def test_adamw_is_fused_where_the_device_has_a_kernel() -> None:
    optimizer = build_default_optimizer(torch.nn.Linear(2, 2), OptimizerConfig())
    has_kernel = "cpu" in torch.utils._foreach_utils._get_fused_kernels_supported_devices()
    assert optimizer.param_groups[0]["fused"] == has_kernel


def test_adafactor_with_its_own_rate_trains(config: Config, fit: Fit) -> None:
    config["hyperparameters"] |= {"adafactor": True, "relative_step": True, "scale_parameter": True}
    losses = [line["loss"] for line in read_metrics(fit(config).output_dir, "training")]
    assert losses[-1] < losses[0]


def test_apex_trains_the_data_parallel_model(config: Config, fit: Fit, monkeypatch: Patch) -> None:
    """Apex and its GPU cannot be had here: a stand-in notes what Determined's `configure_apex_amp` is asked for."""
    monkeypatch.setitem(sys.modules, "apex", types.SimpleNamespace(__spec__=types.SimpleNamespace()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def stand_in(self: Any, models: Any, optimizers: Any) -> tuple[Any, Any]:
        self.models = [torch.nn.Identity()]  # what Determined wraps anew for data-parallel training
        return models, optimizers  # the bare model

    monkeypatch.setattr(pytorch.PyTorchTrialContext, "configure_apex_amp", stand_in)
    config["hyperparameters"]["use_apex_amp"] = True

    class StoppedTrial(NERTrial):
        def wrap(self) -> None:
            super().wrap()
            assert self.model is self.context.models[0]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config, StoppedTrial)
