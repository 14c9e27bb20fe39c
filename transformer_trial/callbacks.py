"""What happens beside training, one job a class: means of the loss, the log, the best model, the checkpoints."""

import contextlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from determined import core, pytorch

from transformer_trial import checkpoints, private
from transformer_trial.data import checksum
from transformer_trial.errors import TrialError, printable
from transformer_trial.experiment import CheckpointStorageConfig
from transformer_trial.files import replacing, restore_old
from transformer_trial.parsing import read_known
from transformer_trial.processes import get_cluster_task

logger = logging.getLogger(__name__)

Trial = Any  # a BaseTransformerTrial, whose module imports this one
Sums = tuple[float, float, int]  # sum of the losses, sum of the learning rates, number of batches


class TrainingMeans(pytorch.MetricReducer):
    """Means of loss and learning rate since the last report. The sums stay on the device, so that no step waits for it.

    The checkpoint of a run that is ended between two reports holds its sums, for the resumed run's first report.
    """

    def __init__(self) -> None:
        self.unreported: list[Sums] = []  # of each rank, where the run was ended between two reports
        self.restored: Sums = (0.0, 0.0, 0)
        self.reset()

    def reset(self) -> None:
        self.loss: torch.Tensor | float
        self.loss, self.learning_rate, self.num_batches = self.restored
        self.restored = (0.0, 0.0, 0)

    def update(self, loss: torch.Tensor, learning_rate: float) -> None:
        self.loss = self.loss + loss.detach().float()
        self.learning_rate += learning_rate
        self.num_batches += 1

    def per_slot_reduce(self) -> Sums:
        return float(self.loss), self.learning_rate, self.num_batches

    def cross_slot_reduce(self, per_slot_metrics: Sequence[Sums]) -> dict[str, float]:
        losses, rates, counts = map(sum, zip(*per_slot_metrics))
        return {"loss": losses / counts, "learning_rate": rates / counts} if counts else {}

    def restore(self, unreported: Sequence[Sums], distributed: core.DistributedContext) -> None:
        """Begin with the sums that a checkpoint holds."""
        if mine := unreported[distributed.rank :: distributed.size]:  # there may have been more ranks, or fewer
            losses, rates, counts = map(sum, zip(*mine))
            self.restored = losses, rates, counts


class Evaluation(pytorch.MetricReducer):
    """Adds up what `BaseTransformerTrial.evaluate` returns, over batches and slots of whatever sizes."""

    def __init__(self, score: Callable[[dict[str, list[Any]]], dict[str, float]]) -> None:
        self.score = score
        self.reset()

    def reset(self) -> None:
        self.batches: list[dict[str, Any]] = []

    def update(self, metrics: dict[str, Any]) -> None:
        self.batches.append(metrics)

    def per_slot_reduce(self) -> dict[str, Any]:
        """The sum of each metric's pairs, and the list of whatever is no pair. Here the host waits for the device."""
        reduced: dict[str, Any] = {}
        for name in self.batches[0] if self.batches else ():
            values = [batch[name] for batch in self.batches]
            if isinstance(values[0], tuple):
                reduced[name] = tuple(map(_add_up, zip(*values)))
            else:
                reduced[name] = [value.cpu() if isinstance(value, torch.Tensor) else value for value in values]
        return reduced

    def cross_slot_reduce(self, per_slot_metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
        sums, collected = dict[str, tuple[float, float]](), dict[str, list[Any]]()
        for name, value in (item for slot in per_slot_metrics for item in slot.items()):
            if isinstance(value, tuple):
                total, count = sums.get(name, (0, 0))
                sums[name] = (total + value[0], count + value[1])
            else:
                collected[name] = collected.get(name, []) + value
        return {**self.score(collected), **{name: total / (count or 1) for name, (total, count) in sums.items()}}


def _add_up(values: Sequence[Any]) -> Any:
    return sum(torch.stack([*values]).tolist() if isinstance(values[0], torch.Tensor) else values)


class MetricsLog(pytorch.PyTorchCallback):
    """Logs reports, and appends them to DIR/metrics.jsonl. On a cluster Determined logs them, and tells the master."""

    def __init__(self, trial: Trial, folder: Path | None) -> None:
        self.trial = trial
        self.is_chief, self.on_cluster = trial.context.distributed.rank == 0, get_cluster_task() is not None
        self.file = folder / "metrics.jsonl" if folder is not None and self.is_chief else None
        self.lines: list[dict[str, Any]] = []  # of the file so far; a checkpoint holds them too

    def state_dict(self) -> dict[str, Any]:
        if self.lines and self.file is not None:
            with self.file.open("a") as file:  # on the disk before the checkpoint counts as whole
                os.fsync(file)
        return {"lines": self.lines, "unreported": self.trial.training_means.unreported}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trial.training_means.restore(state_dict.get("unreported", []), self.trial.context.distributed)
        self.lines = state_dict.get("lines", [])
        if self.file is None:
            return
        text, found = "".join(map(_as_json, self.lines)), self.file.read_bytes() if self.file.exists() else b""
        if not found.startswith(text.encode()):
            rebuilt = "%s is shorter than when the checkpoint was saved, or holds other lines: it is rebuilt to there."
            logger.warning(rebuilt, self.file)
        self.file.write_text(text)  # what came after the checkpoint comes once more

    def on_trial_startup(self, first_batch_idx: int, checkpoint_uuid: str | None) -> None:
        if checkpoint_uuid is None and self.file is not None:
            self.file.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint

    def on_training_workload_end(self, avg_metrics: dict[str, Any], batch_metrics: dict[str, Any]) -> None:
        if self.is_chief and not all(math.isfinite(float(value)) for value in avg_metrics.values()):
            logger.warning("The training loss is no longer a number. A lower learning_rate usually helps.")
        self.report("training", avg_metrics)

    def on_validation_end(self, metrics: dict[str, Any]) -> None:
        self.report("validation", metrics)

    def report(self, group: str, metrics: Mapping[str, Any]) -> None:
        """Report the metrics of a group, training, validation or test; on a cluster only those of our own group."""
        if not self.is_chief or (self.on_cluster and group != "test"):
            return
        numbers = {name: float(v) for name, v in metrics.items() if name not in ("batches", "epochs")}
        batches = self.trial.batches_trained
        if self.on_cluster:
            private.report_metrics(self.trial.context, group, batches, numbers)
            return
        text = printable(", ".join(f"{name} {number:.4g}" for name, number in numbers.items()))
        logger.info("batch %d of %d: %s %s", batches, self.trial.num_training_batches, group, text)
        if self.file is not None:
            known = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
            self.lines.append({"group": group, "batches": batches, **known})
            with self.file.open("a") as file:
                file.write(_as_json(self.lines[-1]))


def _as_json(line: dict[str, Any]) -> str:
    return json.dumps(line) + "\n"


class BestModel(pytorch.PyTorchCallback):
    """Keeps the best model so far by the searcher's metric in DIR, and stops the training early.

    On a cluster DIR is temporary; every checkpoint gets an export, and that of the best model a copy of DIR.
    """

    def __init__(self, trial: Trial, folder: Path | None, log: MetricsLog, max_test_rows: int | None) -> None:
        self.trial, self.log, self.max_test_rows = trial, log, max_test_rows
        self.is_chief, self.on_cluster = log.is_chief, log.on_cluster
        self.folder = Path(tempfile.mkdtemp()) if self.on_cluster else folder
        self.metric, smaller_is_better = trial.searcher_metric
        self.sign = 1 if smaller_is_better else -1  # of values of which less is better
        self.exports = trial.settings.training.export_model
        self.patience = trial.settings.training.early_stopping_patience
        self.best, self.best_batches, self.num_worse_validations = math.inf, -1, 0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best", "best_batches", "num_worse_validations", "metric")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("metric", self.metric) != self.metric:
            before = "searcher.metric was %s; the best model is found anew, by %s, from here on."
            logger.warning(before, state_dict["metric"], self.metric)
            return
        for name, value in self.state_dict().items():
            setattr(self, name, state_dict.get(name, value))
        if self.folder is None or self.on_cluster or not self.is_chief:
            return
        restore_old(self.folder / "model")
        if self.exports and self.best_batches >= 0 and not (self.folder / "model").exists():
            missing = "The best model so far, of batch %d, is not in %s: only a better one will be."
            logger.warning(missing, self.best_batches, self.folder)

    def on_training_start(self) -> None:
        if self.folder is not None and self.is_chief:
            keep_data_report(self.trial.data_report, self.folder)
        self._stop_if_worse()  # the run may have been interrupted just when it ended early

    def on_validation_end(self, metrics: dict[str, Any]) -> None:
        if self.metric not in metrics:
            raise TrialError(f"searcher.metric: found {self.metric!r}; validation reports {', '.join(metrics)}.")
        value = self.sign * float(metrics[self.metric])
        if odd := [name for name, number in metrics.items() if not math.isfinite(float(number))]:
            value = math.nan  # which is less than nothing
            if self.is_chief:
                logger.warning("%s: no number. Such a model is not kept as the best.", ", ".join(odd))
        if value < self.best:
            self.best, self.best_batches, self.num_worse_validations = value, self.trial.batches_trained, 0
            if self.folder is not None:
                self._keep(self.folder)
        else:
            self.num_worse_validations += 1
        self._stop_if_worse()

    def _keep(self, folder: Path) -> None:
        if test_metrics := self.trial.evaluate_best(folder, max_rows=self.max_test_rows):
            self.log.report("test", test_metrics)
        if self.is_chief and self.exports and not self.on_cluster:
            with replacing(folder / "model") as new:
                self.export(new)
            logger.info("The best so far by %s: saved in %s", self.metric, folder / "model")

    def on_checkpoint_write_end(self, checkpoint_dir: str) -> None:
        if self.on_cluster and self.exports:
            self.export(Path(checkpoint_dir, "model"))
        if self.on_cluster and self.folder is not None and self.trial.batches_trained == self.best_batches:
            shutil.copytree(self.folder, checkpoint_dir, dirs_exist_ok=True)

    def export(self, folder: Path) -> None:
        checkpoints.export_model(folder, self.trial.bare_model, self.trial.tokenizer, self.trial.model_card())

    def _stop_if_worse(self) -> None:
        if self.patience is not None and self.num_worse_validations >= self.patience:
            worse = "Stopping early: %s has not improved over batch %d in %d validations."
            logger.info(worse, self.metric, self.best_batches, self.num_worse_validations)
            self.trial.context.set_stop_requested(True)

    def on_trial_shutdown(self) -> None:
        if self.folder is not None and self.on_cluster:
            shutil.rmtree(self.folder, ignore_errors=True)


class CheckpointContents(pytorch.PyTorchCallback):
    """Makes checkpoints that anyone can load, without secrets, and checks the one that a run starts from."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def state_dict(self) -> dict[str, Any]:
        rows = self.trial.tokenized_datasets["train"]
        return {"labels": dict(self.trial.bare_model.config.id2label), "rows": checksum(rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("rows", here := self.state_dict()["rows"]) != here:
            others = "The training rows or their order are not those of the checkpoint: other batches will follow."
            logger.warning(others)

    def on_trial_startup(self, first_batch_idx: int, checkpoint_uuid: str | None) -> None:
        self.trial.batches_trained = first_batch_idx
        # On a cluster a trial's own checkpoint has a step: one without it is another experiment's.
        self.is_anothers = get_cluster_task() is not None and checkpoint_uuid is not None and first_batch_idx == 0

    def on_checkpoint_load_start(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another model's checkpoint; of another experiment's, take nothing but the weights."""
        trial, states = self.trial, checkpoint.get("callbacks", {})
        old = states.get("run_record", {})  # where the states of all these callbacks once were
        labels = states.get("checkpoint_contents", old).get("labels")
        checkpoints.refuse_another_model(checkpoint, trial.bare_model, labels)
        checkpoint["callbacks"] = states | {name: states.get(name, old) for name in trial.callbacks}
        for group, own in zip(checkpoint["optimizers_state_dict"][0]["param_groups"], trial.optimizer.param_groups):
            if "fused" in group and "fused" in own:
                group["fused"] = own["fused"]  # not every machine has that kernel
        if self.is_anothers:
            logger.info("Starting with another experiment's weights; optimizer and schedule begin anew.")
            checkpoint["optimizers_state_dict"] = [trial.optimizer.state_dict()]
            checkpoint["lr_schedulers_state_dict"] = [trial.lr_scheduler.state_dict()]
            if trial.scaler is not None:
                checkpoint["scaler_state_dict"] = trial.scaler.state_dict()
            checkpoint["callbacks"] |= {name: {} for name in trial.callbacks}
        (saved, *_), (own, *_) = checkpoint["optimizers_state_dict"][0]["param_groups"], trial.optimizer.param_groups
        if ("betas" in saved) != ("betas" in own):  # what AdamW has and Adafactor has not
            was = f"adafactor: {str('betas' not in saved).lower()}"
            advice = f"Go on with {was}, or start anew from the model that was exported"
            raise TrialError(f"hyperparameters.adafactor: the checkpoint holds the state of {was}. {advice}.")

    def on_training_start(self) -> None:
        self.trial.repeat_backward_passes()

    def on_checkpoint_save_start(self, checkpoint: dict[str, Any]) -> None:
        checkpoints.write_plain_data(checkpoint)

    def on_checkpoint_write_end(self, checkpoint_dir: str) -> None:
        folder = Path(checkpoint_dir)
        checkpoints.complete_load_data(folder / "load_data.json", self.trial.bare_model)
        checkpoints.redact_configurations(folder)


class KeptCheckpoints(pytorch.PyTorchCallback):
    """Removes the checkpoints of a local run that a cluster would remove, but never the newest.

    A checkpoint's metadata.json says after which batch it was saved, the log how good the model was then.
    """

    def __init__(self, trial: Trial, folder: Path, log: MetricsLog) -> None:
        self.trial, self.folder, self.log = trial, folder, log
        storage = read_known("checkpoint_storage", trial.experiment_config, CheckpointStorageConfig)
        self.num_newest = max(storage.save_trial_latest, 1)
        self.num_best = max(storage.save_trial_best, storage.save_experiment_best)

    def on_training_start(self) -> None:
        if self.trial.batches_trained > 0:
            self._prune()  # a kill may have come between

    def on_checkpoint_upload_end(self, uuid: str) -> None:
        self._prune()

    def _prune(self) -> None:
        name, smaller_is_better = self.trial.searcher_metric
        validations = {line["batches"]: line.get(name) for line in self.log.lines if line["group"] == "validation"}
        sign = 1 if smaller_is_better else -1
        values = {batch: sign * value for batch, value in validations.items() if value is not None}
        folders, batches = list(self.folder.glob("checkpoints/determined/*")), dict[Path, int]()
        for folder in folders:
            with contextlib.suppress(OSError, ValueError):  # damaged
                batches[folder] = json.loads((folder / "metadata.json").read_text())["steps_completed"]
        not_undone = (c for c in batches if batches[c] <= self.trial.batches_trained)  # a resume may start further back
        newest = sorted(not_undone, key=lambda checkpoint: batches[checkpoint])
        best = sorted(newest, key=lambda checkpoint: values.get(batches[checkpoint], math.inf))
        for folder in {*folders} - {*newest[-self.num_newest :], *best[: self.num_best]}:
            (folder / "metadata.json").unlink(missing_ok=True)  # half removed, it is no longer whole
            shutil.rmtree(folder)


def keep_data_report(data_report: dict[str, Any], folder: Path) -> None:
    """Write what a trial says of its data, if it does, to `report/data.json`."""
    if data_report:
        (folder / "report").mkdir(exist_ok=True)
        with replacing(folder / "report" / "data.json") as new:
            new.write_text(json.dumps(data_report, indent=1) + "\n")


def build_callbacks(
    trial: Trial, folder: Path | None = None, *, max_test_rows: int | None = None
) -> dict[str, pytorch.PyTorchCallback]:
    """All callbacks of a run; `folder` is a local run's output folder, `max_test_rows` what `evaluate_best` takes."""
    log = MetricsLog(trial, folder)
    best = BestModel(trial, folder, log, max_test_rows)
    callbacks = {"metrics_log": log, "best_model": best, "checkpoint_contents": CheckpointContents(trial)}
    if folder is not None and log.is_chief:
        callbacks["kept_checkpoints"] = KeptCheckpoints(trial, folder, log)
    return callbacks
