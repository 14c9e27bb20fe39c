"""NERTrial from end to end: by the `det` client, as `transformers.Trainer` trains step by step, and its options."""

import copy
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._foreach_utils
import transformers
from conftest import SAMPLE_DATA, SAMPLE_MODEL, Config, Fit, Log, Patch, read_metrics, slow, watch
from determined import pytorch
from run_ner_reference import build_trainer
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.data import DataLoader
from training_process import run_python

import ner.report
import ner_utils
from ner_trial import NERTrial
from transformer_trial import builders
from transformer_trial.config import MODEL_MODES, ModelConfig, OptimizerConfig
from transformer_trial.data import SlotBatchSampler
from transformer_trial.errors import TrialError

ORIGINAL = "tests/fixtures/original_ner_config.yaml"
SCORES = ("precision", "recall", "f1")
METRICS = {"accuracy_score", *SCORES, "validation_loss"}


@pytest.mark.parametrize("file", ["ner_config.yaml", slow(ORIGINAL), slow("sample/ner_config.yaml")])
def test_the_det_client_trains_one_batch(file: str, tiny_model: Path) -> None:
    model_and_data = {"hyperparameters.pretrained_model_name_or_path": tiny_model, "data.dataset_name": SAMPLE_DATA}
    options = [] if file.startswith("sample") else [f"--config={key}={value}" for key, value in model_and_data.items()]
    command = (Path(sys.executable).parent / "det", "e", "create", "--local", "--test", *options, file, ".")
    said = "".join(run_python(*command))
    assert "The test experiment passed." in said and "validation_loss" in said


@pytest.mark.slow
def test_the_sample_is_learned_from_nothing(tmp_path: Path) -> None:
    run_python("train.py", "sample/ner_config.yaml", "--output-dir", tmp_path / "run")
    assert max(line["f1"] for line in read_metrics(tmp_path / "run", "validation")) >= 0.9


NUM_BATCHES = 30


def train_reference(config: Config, folder: Path, *, sum_of_means: bool, **arguments: Any) -> tuple[Any, list[float]]:
    """Let `transformers.Trainer` train on NERTrial's batches; returns its model and the losses."""
    model_dir = config["hyperparameters"]["pretrained_model_name_or_path"]
    seed = config["reproducibility"]["experiment_seed"]
    options = {"seed": seed, "report_to": "none", "save_strategy": "no", "use_cpu": True, **arguments}
    trainer: Any = build_trainer(model_dir, str(SAMPLE_DATA), str(folder), **options)
    rows = trainer.train_dataset.select_columns(["input_ids", "attention_mask", "labels"])
    sampler = SlotBatchSampler(len(rows), 8, 1, seed=seed)
    batches = [batch.tolist() for epoch in range(2) for batch in sampler.global_batches(epoch)][:NUM_BATCHES]
    losses: list[float] = []
    with Patch.context() as patch:
        loader = DataLoader(rows, batch_sampler=batches, collate_fn=trainer.data_collator)
        patch.setattr(trainer, "get_train_dataloader", lambda: loader)
        watch(trainer, "compute_loss", patch, then=lambda loss, *_, **__: losses.append(loss.item()))
        if not sum_of_means:
            # BERT's loss ignores the number of items that the Trainer hands it, and the Trainer then adds up the means
            # of an accumulation instead of averaging them. This is how it averages.
            trainer.model_accepts_loss_kwargs = False
        trainer.train()
    return trainer.model, losses


@pytest.mark.parametrize(
    ("hyperparameters", "optimizations", "arguments"),
    [
        pytest.param({}, {}, {}, id="defaults"),
        slow({"weight_decay": 0.1}, {}, {"weight_decay": 0.1}, id="weight-decay"),
        pytest.param({"lr_scheduler_type": "cosine", "num_warmup_steps": 7}, {},
                     {"lr_scheduler_type": "cosine", "warmup_steps": 7}, id="cosine-warmup"),
        pytest.param({"warmup_ratio": 0.31}, {}, {"warmup_steps": 10}, id="linear-warmup-ratio"),
        slow({"adafactor": True}, {}, {"optim": "adafactor"}, id="adafactor-linear"),
        pytest.param({"adafactor": True, "lr_scheduler_type": "cosine", "num_warmup_steps": 5, "weight_decay": 0.1}, {},
                     {"optim": "adafactor", "lr_scheduler_type": "cosine", "warmup_steps": 5, "weight_decay": 0.1},
                     id="adafactor-cosine-warmup"),
        pytest.param({"num_warmup_steps": 6}, {"aggregation_frequency": 3},
                     {"gradient_accumulation_steps": 3, "warmup_steps": 2}, id="accumulation"),
        slow({}, {"aggregation_frequency": 3, "average_aggregated_gradients": False},
             {"gradient_accumulation_steps": 3}, id="accumulation-summed"),
        slow({"adafactor": True, "lr_scheduler_type": "cosine"}, {"aggregation_frequency": 2},
             {"optim": "adafactor", "lr_scheduler_type": "cosine", "gradient_accumulation_steps": 2},
             id="adafactor-cosine-accumulation"),
        slow({"max_grad_norm": 0, "adam_beta2": 0.99, "adam_epsilon": 1e-6}, {},
             {"max_grad_norm": 0, "adam_beta2": 0.99, "adam_epsilon": 1e-6}, id="no-clipping"),
    ],
)  # fmt: skip
def test_losses_and_weights_follow_transformers_trainer(
    config: Config, fit: Fit, tmp_path: Path, hyperparameters: Config, optimizations: Config, arguments: Config
) -> None:
    config["hyperparameters"] |= {"learning_rate": 1e-3, **hyperparameters}
    config["optimizations"] = optimizations
    config["data"]["dataloader_num_workers"] = 2  # which change no order
    every = optimizations.get("aggregation_frequency", 1)
    summed = not optimizations.get("average_aggregated_gradients", True)
    arguments = {"learning_rate": 1e-3, "max_steps": NUM_BATCHES // every, **arguments}
    reference, expected = train_reference(config, tmp_path / "reference", sum_of_means=summed, **arguments)
    trial = fit(config)
    losses = [line["loss"] for line in read_metrics(trial.output_dir, "training")]
    assert len(losses) == len(expected) == NUM_BATCHES
    assert losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(trial.model.state_dict(), reference.state_dict(), rtol=0, atol=1e-5)
    assert losses[-1] < losses[0], "the model did not learn"


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("data", {"label_all_tokens": True}), ("data", {"pad_to_max_length": True, "max_seq_length": 128}),
        ("data", {"dataloader_num_workers": 2}), ("hyperparameters", {"global_batch_size": 3}),
    ],
    ids=str,
)  # fmt: skip
def test_metrics_do_not_depend_on(config: Config, fit: Fit, section: str, change: dict[str, Any]) -> None:
    config["hyperparameters"]["learning_rate"] = 0  # the same random model each time
    config["searcher"]["max_length"]["batches"] = 1
    config["data"]["max_eval_samples"] = 50
    changed = copy.deepcopy(config)
    changed[section] |= change
    (expected,), (found,) = (read_metrics(fit(c).output_dir, "validation") for c in (config, changed))
    assert expected.keys() == found.keys() == {*METRICS, "group", "batches"}
    for name in METRICS:
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


def test_a_type_that_validation_lacks_scores_zero_and_can_be_searched_by(config: Config, fit: Fit) -> None:
    config["data"] |= {"return_entity_level_metrics": True, "max_eval_samples": 1}
    config["searcher"] |= {"max_length": {"batches": 1}, "metric": "PER_f1"}
    (metrics,) = read_metrics(fit(config).output_dir, "validation")
    counts = {"LOC": 0, "MISC": 1, "ORG": 2, "PER": 0}
    assert {entity_type: metrics[f"{entity_type}_number"] for entity_type in counts} == counts
    assert [metrics[f"{entity_type}_{name}"] for entity_type in ("LOC", "PER") for name in SCORES] == [0] * 6


@pytest.mark.parametrize("precision", ["bf16", slow("fp16")])
def test_mixed_precision_learns_about_what_fp32_does(config: Config, fit: Fit, precision: str) -> None:
    config["hyperparameters"]["learning_rate"] = 1e-3
    mixed = copy.deepcopy(config)
    mixed["hyperparameters"]["mixed_precision"] = precision
    runs = [fit(c) for c in (config, mixed)]
    full, low = ([line["loss"] for line in read_metrics(run.output_dir, "training")] for run in runs)
    assert low != full, "the precision had no effect"
    assert low == pytest.approx(full, rel=0.05)
    assert low[-1] < 0.8 * low[0]
    assert all(parameter.dtype == torch.float32 for parameter in runs[1].model.parameters())
    assert (runs[1].scaler is not None) == (precision == "fp16")


@pytest.mark.parametrize(("known", "precision"), [(True, "bf16"), (False, "none")])
def test_auto_is_bf16_if_known(known: bool, precision: str, config: Config, fit: Fit, monkeypatch: Patch) -> None:
    monkeypatch.setattr("transformer_trial.machine.knows_bf16", lambda device: known)
    config["hyperparameters"]["mixed_precision"] = "auto"
    config["searcher"]["max_length"] = {"batches": 1}
    assert fit(config).settings.training.mixed_precision == precision


class NoDeviceSync(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where the host would wait for a device: at a tensor's value or at a shape that depends on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITING, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


class WatchedEvaluation(NERTrial):
    """Watches how it evaluates, but not what transformers' own models do."""

    def wrap(self) -> None:
        super().wrap()
        forward = self.model.forward

        def unwatched_forward(*args: Any, **kwargs: Any) -> Any:
            with _disable_current_modes():
                return forward(*args, **kwargs)

        self.model.forward = unwatched_forward

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        with NoDeviceSync():  # type: ignore[no-untyped-call]
            return super().evaluate_batch(batch, batch_idx)


class WatchedTrial(WatchedEvaluation):
    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        with NoDeviceSync():  # type: ignore[no-untyped-call]
            return super().train_batch(batch, epoch_idx, batch_idx)


@pytest.mark.skipif(
    "cpu" not in torch.utils._foreach_utils._get_fused_kernels_supported_devices(),
    reason="this torch has no fused AdamW for CPUs, and the other one reads its steps' number, which is on the host",
)
def test_a_training_step_never_waits_for_the_device(config: Config, fit: Fit) -> None:
    config["searcher"]["max_length"]["batches"] = 3
    with pytest.raises(AssertionError, match="waits for the device"), NoDeviceSync():  # type: ignore[no-untyped-call]
        torch.ones(1).item()
    losses = [line["loss"] for line in read_metrics(fit(config, WatchedTrial).output_dir, "training")]
    assert len(losses) == 3


def test_a_validation_waits_for_a_batch_only_once(config: Config, fit: Fit, monkeypatch: Patch) -> None:
    calls: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        watch(owner, name, monkeypatch, first=lambda *_, **__: calls.update([name]))

    class CountedTrial(WatchedEvaluation):
        def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            calls["batches"] += 1
            calls["copies"] -= calls["cpu"]
            metrics = super().evaluate_batch(batch, batch_idx)
            calls["copies"] += calls["cpu"]
            assert batch["input_ids"].numel() <= 1024
            return metrics

    count(torch.Tensor, "cpu")
    count(ner_utils, "compute_metrics")
    count(ner.report, "find_entities")
    config["searcher"]["max_length"]["batches"] = 1
    config["hyperparameters"]["export_model"] = False
    trial = fit(config, CountedTrial)
    assert calls["batches"] > 1
    assert calls["copies"] == calls["batches"], "a batch is copied to the host in one piece"
    assert calls["compute_metrics"] == 1
    num_sentences = trial.rows["validation"].num_rows
    assert num_sentences <= calls["find_entities"] <= 2 * num_sentences


def test_a_head_with_the_same_labels_is_kept(config: Config, fit: Fit, tmp_path: Path, caplog: Log) -> None:
    config["searcher"]["max_length"]["batches"] = 1
    config["hyperparameters"]["learning_rate"] = 0
    first = fit(config)
    labels = first.label_list
    body = "bert.encoder.layer.0.output.dense.weight"
    for names in (labels[::-1], [f"X-{i}" for i in range(len(labels))], ["O", "B-X"]):
        head = copy.deepcopy(first.model)
        head.config.id2label = dict(enumerate(names))
        head.config.label2id = {name: i for i, name in enumerate(names)}
        head.classifier = torch.nn.Linear(head.classifier.in_features, len(names))
        head.num_labels = len(names)
        folder = tmp_path / f"head-{names[0]}"
        head.save_pretrained(folder)
        first.tokenizer.save_pretrained(folder)
        config["hyperparameters"]["pretrained_model_name_or_path"] = str(folder)
        caplog.clear()
        second = fit(config)
        is_same = names == labels[::-1]
        assert caplog.text.count("starts afresh") == (not is_same)
        assert second.label_list == (names if is_same else labels)
        weight = second.model.classifier.weight
        assert weight.shape == first.model.classifier.weight.shape
        assert torch.equal(weight[: len(names)], head.classifier.weight) == is_same
        assert torch.equal(second.model.state_dict()[body], head.state_dict()[body])


def test_wrong_shapes_below_the_head_are_an_error_unless_asked_for(config: Config, fit: Fit, tmp_path: Path) -> None:
    model_dir = Path(config["hyperparameters"]["pretrained_model_name_or_path"])
    wider = transformers.AutoConfig.from_pretrained(model_dir)
    wider.intermediate_size *= 2
    wider.save_pretrained(tmp_path / "wider")
    config["hyperparameters"]["config_name"] = str(tmp_path / "wider")
    config["searcher"]["max_length"]["batches"] = 1
    with pytest.raises(TrialError, match=r"intermediate\.dense\.weight.*ignore_mismatched_sizes: true"):
        fit(config)
    config["hyperparameters"]["ignore_mismatched_sizes"] = True
    assert fit(config).model.config.intermediate_size == wider.intermediate_size


ROTARY_MODEL = {"pretrained_model_name_or_path": str(SAMPLE_MODEL), "use_pretrained_weights": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hyperparameters": {"model_mode": "base"}}, "model_mode.*token-classification"),
        ({"hyperparameters": {"num_labels": 3}}, "num_labels: found 3, but the data has 9"),
        ({"hyperparameters": {"use_apex_amp": True}}, "Apex.*mixed_precision: bf16"),
        ({"hyperparameters": {"pretrained_model_name_or_path": "~/gone"}}, "there is no folder /.*/gone"),
        ({"hyperparameters": {"lr_scheduler_kwargs": {"cycles": 2}, "lr_scheduler_type": "cosine"}}, "kwargs.*cosine"),
        ({"hyperparameters": {"pretrained_model_name_or_path": "/no/such"}}, "/no/such"),
        ({"hyperparameters": {"tokenizer_name": "/no/such/tokenizer"}}, "tokenizer_name"),
        ({"data": {"max_seq_length": 256}, "hyperparameters": ROTARY_MODEL}, "found 256; accepted is at most 128"),
        ({"searcher": {"metric": "accuracy"}}, "searcher.metric.*Did you mean accuracy_score"),
    ],
)
def test_a_mistake_ends_in_one_clear_sentence(config: Config, fit: Fit, changes: Config, message: str) -> None:
    for section, change in changes.items():
        config[section] |= change
    with pytest.raises(TrialError, match=message):
        fit(config)


@pytest.mark.parametrize("mode", MODEL_MODES)
@pytest.mark.parametrize("pretrained", [True, False])
def test_every_model_mode_is_built(mode: Any, pretrained: bool, tmp_path: Path) -> None:
    sizes = {"vocab_size": 900, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if mode == "seq2seq-lm":
        config = transformers.T5Config(**sizes, d_kv=8, d_ff=16, decoder_start_token_id=0)
    else:
        config = transformers.BertConfig(**sizes, intermediate_size=16, is_decoder=mode == "causal-lm")
    folder = tmp_path / "model"
    builders.AUTO_CLASSES[mode].from_config(config).save_pretrained(folder)
    model_config = ModelConfig(
        model_mode=mode, pretrained_model_name_or_path=str(folder), tokenizer_name=str(SAMPLE_MODEL),
        use_pretrained_weights=pretrained,
    )  # fmt: skip
    _, tokenizer, model = builders.build_using_auto(model_config)
    assert type(model) is type(builders.AUTO_CLASSES[mode].from_config(config))
    assert tokenizer.is_fast
    saved = builders.AUTO_CLASSES[mode].from_pretrained(folder).state_dict()
    matrices = [name for name, weight in model.state_dict().items() if weight.ndim == 2]
    assert all(torch.equal(model.state_dict()[name], saved[name]) for name in matrices) == pretrained


def test_a_head_that_the_architecture_lacks_is_a_clear_error() -> None:
    model_config = ModelConfig(
        model_mode="next-sentence", pretrained_model_name_or_path=str(SAMPLE_MODEL), use_pretrained_weights=False
    )
    with pytest.raises(TrialError, match=r"\.model_mode: cannot load a model of the config RoFormerConfig"):
        builders.build_using_auto(model_config)


@pytest.mark.parametrize("architecture", ["Bert", "DistilBert", "Roberta", "Electra", "DebertaV2", "ModernBert", "T5"])
def test_weight_decay_skips_biases_and_norms_as_transformers_does(architecture: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}
    others = {"T5": {"d_kv": 8, "d_ff": 16}, "DistilBert": {"hidden_dim": 16}}
    sizes |= others.get(architecture, {"intermediate_size": 16})
    model = transformers.AutoModel.from_config(getattr(transformers, f"{architecture}Config")(**sizes))
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    trainer = transformers.Trainer(model=model, args=arguments)
    expected = set(trainer.get_decay_parameter_names(model)) & {name for name, _ in model.named_parameters()}
    decayed = {id(parameter) for parameter in builders.group_parameters_for_optimizer(model, 0.1)[0]["params"]}
    assert {name for name, parameter in model.named_parameters() if id(parameter) in decayed} == expected


def test_adamw_is_fused_where_the_device_has_a_kernel() -> None:
    optimizer = builders.build_default_optimizer(torch.nn.Linear(2, 2), OptimizerConfig())
    has_kernel = "cpu" in torch.utils._foreach_utils._get_fused_kernels_supported_devices()
    assert optimizer.param_groups[0]["fused"] == has_kernel


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
