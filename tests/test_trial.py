"""NERTrial from end to end: through the real `det` client and Determined's real trainer."""

import copy
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils._foreach_utils
import transformers
import yaml
from conftest import PROJECT, SAMPLE_DATA, read_metrics
from seqeval import metrics as seqeval_metrics
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import ner.report
import ner_utils
from ner_trial import NERTrial
from transformer_trial.errors import TrialError

FIXTURES = PROJECT / "tests" / "fixtures"
METRICS = {"accuracy_score", "precision", "recall", "f1", "validation_loss"}


def run_det(file: str, **overrides: object) -> str:
    """Run the real `det` client in the checkout, as a user would, and return what it printed."""
    options = [option for key, value in overrides.items() for option in ("--config", f"{key}={value}")]
    command = [str(Path(sys.executable).parent / "det"), "e", "create", "--local", "--test", *options, file, "."]
    result = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    return result.stdout


def parquet_folder(folder: Path) -> Path:
    """The sample as a local folder that `dataset_name` takes."""
    folder.mkdir()
    for split in ("train", "validation"):
        (folder / f"{split}.parquet").write_bytes((SAMPLE_DATA / f"{split}.parquet").read_bytes())
    return folder


@pytest.mark.parametrize(
    "file", ["ner_config.yaml", pytest.param("tests/fixtures/original_ner_config.yaml", marks=pytest.mark.slow)]
)
def test_det_trains_one_batch_of_the_shipped_and_of_the_original_configuration(
    file: str, tiny_model: Path, tmp_path: Path
) -> None:
    data = parquet_folder(tmp_path / "data")
    model = {"hyperparameters.pretrained_model_name_or_path": tiny_model}
    output = run_det(file, **{"data.dataset_name": data, **model})
    assert "The test experiment passed." in output
    assert "validation_loss" in output


@pytest.mark.slow
def test_det_trains_one_batch_of_the_sample() -> None:
    assert "The test experiment passed." in run_det("sample/ner_config.yaml")


@pytest.mark.slow
def test_the_sample_is_learned_from_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "sample/ner_config.yaml", "--output-dir", str(tmp_path / "run")]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert max(line["f1"] for line in read_metrics(tmp_path / "run", "validation")) >= 0.9
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "run" / "model")
    assert sorted(model.config.id2label.values()) == [
        *(f"{p}-{t}" for p in "BI" for t in ("LOC", "MISC", "ORG", "PER")),
        "O",
    ]


def tags_by_hand(model_dir: Path, sentences: list[list[str]], *, label_names: dict[int, str]) -> list[list[str]]:
    """Predictions of an exported model, sentence by sentence: each word by its first sub-token."""
    model = transformers.AutoModelForTokenClassification.from_pretrained(model_dir).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    tags = []
    for words in sentences:
        encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            predicted = model(**encoded).logits[0].argmax(-1).tolist()
        first: dict[int, str] = {}
        for position, word in enumerate(encoded.word_ids(0)):
            if word is not None:
                first.setdefault(word, label_names[predicted[position]])
        tags.append([first.get(word, "O") for word in range(len(words))])
    return tags


def test_reported_metrics_equal_seqeval_on_words_predicted_one_sentence_at_a_time(
    config: dict[str, Any], fit: Callable[..., Any]
) -> None:
    config["hyperparameters"]["learning_rate"] = 3e-3
    config["searcher"]["max_length"]["batches"] = 120
    trial = fit(config, reporting_period=50)

    (reported,) = read_metrics(trial.output_dir, "validation")
    rows = [json.loads(line) for line in (SAMPLE_DATA / "validation.json").read_text().splitlines()]
    names = transformers.AutoConfig.from_pretrained(trial.output_dir / "model").id2label
    gold = [row["ner_tags"] for row in rows]
    predicted = tags_by_hand(trial.output_dir / "model", [row["tokens"] for row in rows], label_names=names)
    assert 0.1 < reported["f1"] < 1, "the comparison needs a model that is neither blind nor perfect"
    assert reported["accuracy_score"] == pytest.approx(seqeval_metrics.accuracy_score(gold, predicted))
    for name in ("precision", "recall", "f1"):
        assert reported[name] == pytest.approx(getattr(seqeval_metrics, f"{name}_score")(gold, predicted))


@pytest.mark.parametrize(
    ("section", "change"),
    [
        pytest.param("data", {"label_all_tokens": True}, id="label_all_tokens"),
        pytest.param("data", {"pad_to_max_length": True, "max_seq_length": 128}, id="padding"),
        pytest.param("data", {"dataloader_num_workers": 2}, id="workers"),
        pytest.param("hyperparameters", {"global_batch_size": 3}, id="batch-size"),
    ],
)
def test_metrics_do_not_depend_on(
    config: dict[str, Any], fit: Callable[..., Any], section: str, change: dict[str, Any]
) -> None:
    config["hyperparameters"]["learning_rate"] = 0  # the same random model each time
    config["searcher"]["max_length"]["batches"] = 1
    config["data"]["max_eval_samples"] = 50
    changed = copy.deepcopy(config)
    changed[section] |= change
    (expected,), (found,) = (read_metrics(fit(c).output_dir, "validation") for c in (config, changed))
    assert expected.keys() == found.keys() == {*METRICS, "group", "batches"}
    for name in METRICS:
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


def test_a_long_sentence_is_cut_into_windows_and_every_word_counts_once(
    config: dict[str, Any], fit: Callable[..., Any]
) -> None:
    config["data"] |= {"max_seq_length": 10, "doc_stride": 4, "max_train_samples": 20, "max_eval_samples": 20}
    config["searcher"]["max_length"]["batches"] = 2
    trial = fit(config)
    rows = [json.loads(line) for line in (SAMPLE_DATA / "validation.json").read_text().splitlines()][:20]
    tokenized = trial.tokenized_datasets["validation"]
    assert tokenized.num_rows > 20
    counted = sorted((s, w) for s, words in zip(tokenized["sentence_id"], tokenized["word_ids"]) for w in words)
    assert counted == [(s, w) for s, row in enumerate(rows) for w in range(len(row["tokens"]))]


def test_entity_level_metrics_are_named_as_in_run_ner(config: dict[str, Any], fit: Callable[..., Any]) -> None:
    config["data"]["return_entity_level_metrics"] = True
    config["searcher"] |= {"max_length": {"batches": 1}, "metric": "PER_f1"}
    (metrics,) = read_metrics(fit(config).output_dir, "validation")
    rows = [json.loads(line) for line in (SAMPLE_DATA / "validation.json").read_text().splitlines()]
    assert metrics["PER_number"] == sum(row["ner_tags"].count("B-PER") for row in rows)
    assert {"LOC_precision", "LOC_recall", "LOC_f1", "LOC_number"} < metrics.keys()


def test_a_type_that_validation_lacks_scores_zero_and_can_be_searched_by(
    config: dict[str, Any], fit: Callable[..., Any]
) -> None:
    config["data"] |= {"return_entity_level_metrics": True, "max_eval_samples": 1}
    config["searcher"] |= {"max_length": {"batches": 1}, "metric": "MISC_f1"}
    (metrics,) = read_metrics(fit(config).output_dir, "validation")
    assert {"LOC_f1", "MISC_f1", "ORG_f1", "PER_f1"} <= metrics.keys()


def test_more_sub_tokens_than_rotary_positions_are_refused(config: dict[str, Any], fit: Callable[..., Any]) -> None:
    config["hyperparameters"] |= {
        "pretrained_model_name_or_path": str(PROJECT / "sample" / "model"), "use_pretrained_weights": False,
    }  # fmt: skip
    config["data"]["max_seq_length"] = 256
    with pytest.raises(TrialError, match="max_seq_length: found 256; accepted is at most 128"):
        fit(config)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_mixed_precision_learns_about_what_fp32_does(
    config: dict[str, Any], fit: Callable[..., Any], precision: str
) -> None:
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


class NoDeviceSync(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where the host would wait for a device: at a tensor's value or at a shape that depends on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITING, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


class WatchedTrial(NERTrial):
    """Watches what it does, but not what transformers' own models do."""

    def wrap(self, num_training_rows: int) -> None:
        super().wrap(num_training_rows)
        forward = self.model.forward

        def unwatched_forward(*args: Any, **kwargs: Any) -> Any:
            with _disable_current_modes():
                return forward(*args, **kwargs)

        self.model.forward = unwatched_forward

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        with NoDeviceSync():  # type: ignore[no-untyped-call]
            return super().train_batch(batch, epoch_idx, batch_idx)

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        with NoDeviceSync():  # type: ignore[no-untyped-call]
            return super().evaluate_batch(batch, batch_idx)


@pytest.mark.skipif(
    "cpu" not in torch.utils._foreach_utils._get_fused_kernels_supported_devices(),
    reason="this torch has no fused AdamW for CPUs, and the other one reads its steps' number, which is on the host",
)
def test_a_training_step_never_waits_for_the_device(config: dict[str, Any], fit: Callable[..., Any]) -> None:
    config["searcher"]["max_length"]["batches"] = 3
    with pytest.raises(AssertionError, match="waits for the device"), NoDeviceSync():  # type: ignore[no-untyped-call]
        torch.ones(1).item()
    losses = [line["loss"] for line in read_metrics(fit(config, WatchedTrial).output_dir, "training")]
    assert len(losses) == 3


def test_a_validation_waits_for_the_device_once_a_batch_and_counts_entities_once(
    config: dict[str, Any], fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    class CountedTrial(WatchedTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
            return NERTrial.train_batch(self, batch, epoch_idx, batch_idx)

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


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    config: dict[str, Any], fit: Callable[..., Any]
) -> None:
    config["searcher"]["max_length"]["batches"] = 5
    other = copy.deepcopy(config)
    other["reproducibility"]["experiment_seed"] = 8
    first, second, third = (fit(c).model.state_dict() for c in (config, config, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_a_checkpoint_restores_weights_optimizer_and_schedule(
    config: dict[str, Any], fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "checkpoints"))
    config["searcher"]["max_length"]["batches"] = 6
    trained = fit(config)
    (checkpoint,) = (tmp_path / "checkpoints" / "determined").iterdir()

    restored: dict[str, Any] = {}

    class RestoredTrial(NERTrial):
        def build_callbacks(self) -> dict[str, Any]:
            callbacks = super().build_callbacks()
            callbacks["checkpoint_contents"].on_training_start = lambda: restored.update(
                {name: weight.clone() for name, weight in self.model.state_dict().items()}
            )
            return callbacks

    resumed = fit(config, RestoredTrial, latest_checkpoint=str(checkpoint))
    weights = trained.model.state_dict()
    assert restored.keys() == weights.keys()
    assert all(torch.equal(restored[name], weights[name]) for name in weights)
    assert resumed.lr_scheduler.last_epoch == 6
    assert resumed.optimizer.state_dict()["state"][0]["step"] == 6


def test_a_head_with_the_same_labels_keeps_its_order_and_its_weights(
    config: dict[str, Any], fit: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config["searcher"]["max_length"]["batches"] = 1
    config["hyperparameters"]["learning_rate"] = 0
    first = fit(config)
    names = list(reversed(first.label_list))
    head = tmp_path / "head"
    first.model.config.id2label = dict(enumerate(names))
    first.model.config.label2id = {name: i for i, name in enumerate(names)}
    first.model.save_pretrained(head)
    first.tokenizer.save_pretrained(head)
    config["hyperparameters"]["pretrained_model_name_or_path"] = str(head)
    second = fit(config)
    assert second.label_list == names
    assert torch.equal(second.model.classifier.weight, first.model.classifier.weight)
    assert "starts afresh" not in caplog.text


def test_a_head_for_other_labels_starts_afresh(
    config: dict[str, Any], fit: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config["searcher"]["max_length"]["batches"] = 1
    config["hyperparameters"]["learning_rate"] = 0
    first = fit(config)
    for names in ([f"X-{i}" for i in range(len(first.label_list))], ["O", "B-X"]):
        head = tmp_path / f"head{len(names)}"
        other = copy.deepcopy(first.model)
        other.config.id2label = dict(enumerate(names))
        other.config.label2id = {name: i for i, name in enumerate(names)}
        other.classifier = torch.nn.Linear(other.classifier.in_features, len(names))
        other.num_labels = len(names)
        other.save_pretrained(head)
        first.tokenizer.save_pretrained(head)
        config["hyperparameters"]["pretrained_model_name_or_path"] = str(head)
        caplog.clear()
        second = fit(config)
        assert caplog.text.count("starts afresh") == 1
        assert second.label_list == first.label_list
        assert second.model.classifier.weight.shape == first.model.classifier.weight.shape
        assert not torch.equal(second.model.classifier.weight[:2], other.classifier.weight[:2])
        body = "bert.encoder.layer.0.output.dense.weight"
        assert torch.equal(second.model.state_dict()[body], other.state_dict()[body])


def test_wrong_shapes_below_the_head_are_an_error_unless_asked_for(
    config: dict[str, Any], fit: Callable[..., Any], tmp_path: Path
) -> None:
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


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        pytest.param("hyperparameters", {"model_mode": "base"}, "model_mode.*token-classification", id="mode"),
        pytest.param("hyperparameters", {"num_labels": 3}, r"num_labels: found 3, but the data has 9", id="num_labels"),
        pytest.param("hyperparameters", {"use_apex_amp": True}, "Apex.*mixed_precision: bf16", id="apex"),
        pytest.param("hyperparameters", {"lr_scheduler_kwargs": {"cycles": 2}, "lr_scheduler_type": "cosine"},
                     "lr_scheduler_kwargs.*cosine", id="scheduler-arguments"),
        pytest.param("hyperparameters", {"pretrained_model_name_or_path": "/no/such"}, "/no/such", id="model"),
        pytest.param("hyperparameters", {"tokenizer_name": "/no/such/tokenizer"}, "tokenizer_name", id="tokenizer"),
        pytest.param("data", {"max_seq_length": 4096}, "found 4096; accepted is at most", id="too-long"),
        pytest.param("data", {"max_seq_length": 10, "doc_stride": 9}, "doc_stride", id="stride"),
        pytest.param("data", {"train_file": "missing.json"}, "train_file: missing.json does not exist", id="file"),
        pytest.param("searcher", {"metric": "accuracy"}, "searcher.metric.*Did you mean accuracy_score", id="metric"),
        pytest.param("searcher", {"smaller_is_better": True}, "smaller_is_better.*worst model", id="direction"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_clear_sentence(
    config: dict[str, Any], fit: Callable[..., Any], section: str, change: dict[str, Any], message: str
) -> None:
    config[section] |= change
    with pytest.raises(TrialError, match=message):
        fit(config)


@pytest.mark.slow
def test_all_schedules_train(config: dict[str, Any], fit: Callable[..., Any]) -> None:
    from transformer_trial.config import LR_SCHEDULER_TYPES

    known = {str(kind.value) for kind in transformers.SchedulerType}
    assert set(LR_SCHEDULER_TYPES) <= known
    assert known - set(LR_SCHEDULER_TYPES) <= {"reduce_lr_on_plateau", "greedy"}
    arguments = {
        "cosine_with_min_lr": {"min_lr": 1e-6},
        "cosine_warmup_with_min_lr": {"min_lr": 1e-6},
        "warmup_stable_decay": {"num_decay_steps": 4},
        "cosine_with_restarts": {"num_cycles": 2},
    }
    config["searcher"]["max_length"]["batches"] = 6
    config["data"] |= {"max_train_samples": 48, "max_eval_samples": 8}
    rates = {}
    for kind in LR_SCHEDULER_TYPES:
        config["hyperparameters"] |= {
            "lr_scheduler_type": kind,
            "num_warmup_steps": 0 if kind == "constant" else 2,
            "lr_scheduler_kwargs": arguments.get(kind),
        }
        lines = read_metrics(fit(config).output_dir, "training")
        rates[kind] = [line["learning_rate"] for line in lines]
    assert all(np.isfinite(rate).all() for rate in rates.values())
    assert rates["linear"] == pytest.approx([0, 2.5e-5, 5e-5, 3.75e-5, 2.5e-5, 1.25e-5])
    assert rates["constant"] == [5e-5] * 6


def test_the_original_keys_train(config: dict[str, Any], fit: Callable[..., Any], tmp_path: Path) -> None:
    original = yaml.safe_load((FIXTURES / "original_ner_config.yaml").read_text())
    original["hyperparameters"]["pretrained_model_name_or_path"] = config["hyperparameters"][
        "pretrained_model_name_or_path"
    ]
    original["data"]["dataset_name"] = str(parquet_folder(tmp_path / "data"))
    original["searcher"]["max_length"] = {"batches": 3}
    assert len(read_metrics(fit(original).output_dir, "training")) == 3
