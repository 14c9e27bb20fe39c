"""What happens beside training: its loss, and the record of the run."""

import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import determined as det
import torch
from determined import pytorch

from transformer_trial import checkpoints
from transformer_trial.errors import TrialError, printable
from transformer_trial.experiment import CheckpointStorageConfig
from transformer_trial.files import replacing, restore_old
from transformer_trial.parsing import read_known

if TYPE_CHECKING:
    from transformer_trial.trial import BaseTransformerTrial

logger = logging.getLogger(__name__)


class TrainingMeans(pytorch.MetricReducer):
    """Means of loss and learning rate since the last report, summed up on the device so that no step waits for it."""

    def __init__(self) -> None:
        self.unreported: tuple[float, float, int] = (0.0, 0.0, 0)
        """What a run that a signal ended between two reports had summed up: it is part of the next one."""
        self.reset()

    def reset(self) -> None:
        self.loss: torch.Tensor | float
        self.loss, self.learning_rate, self.num_batches = self.unreported
        self.unreported = (0.0, 0.0, 0)

    def update(self, loss: torch.Tensor, learning_rate: float) -> None:
        self.loss = self.loss + loss.detach().float()
        self.learning_rate += learning_rate
        self.num_batches += 1

    def per_slot_reduce(self) -> tuple[float, float, int]:
        return float(self.loss), self.learning_rate, self.num_batches

    def cross_slot_reduce(self, per_slot_metrics: Sequence[tuple[float, float, int]]) -> dict[str, float]:
        losses, rates, counts = map(sum, zip(*per_slot_metrics))
        return {"loss": losses / counts, "learning_rate": rates / counts} if counts else {}


class RunRecord(pytorch.PyTorchCallback):
    """All that a run reports and keeps: log lines, the metrics log, the best model, its test scores, its early end.

    Off cluster, with an output folder DIR: `DIR/metrics.jsonl` gets a line for each report; with each model that is
    better than all before by the searcher's metric, `DIR/model` is replaced as a whole, and so is what the trial's
    `evaluate_best` writes. On a cluster each checkpoint holds the export of its own weights in `model/` and, beside it,
    what `evaluate_best` wrote of them, if they were the best so far.

    Args:
        trial: Whose run it is.
        folder: DIR, or on a cluster a temporary one; None keeps nothing.
        on_cluster: Whether checkpoints are what remains.
    """

    KEPT = ("best", "best_batches", "num_worse_validations", "checkpoints", "values")
    """What a checkpoint keeps of it."""

    def __init__(self, trial: "BaseTransformerTrial", folder: Path | None, *, on_cluster: bool) -> None:
        self.trial, self.folder, self.on_cluster = trial, folder, on_cluster
        self.is_chief = trial.context.distributed.rank == 0
        self.metric, smaller_is_better = trial.searcher_metric
        self.sign = 1 if smaller_is_better else -1
        self.patience = trial.settings.training.early_stopping_patience
        self.storage = read_known("checkpoint_storage", trial.experiment_config, CheckpointStorageConfig)
        self.metrics_file = None if folder is None or on_cluster else folder / "metrics.jsonl"
        self.best, self.best_batches, self.num_worse_validations = math.inf, -1, 0
        self.checkpoints: dict[str, int] = {}  # those that are kept, the oldest first, and their batches
        self.values: dict[int, float] = {}  # of the metric at these batches, less being better
        self.starts_anew, self.resumed_from = False, ""

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in self.KEPT}
        state["validation_is_due"] = self.trial.validation_is_due
        state["unreported"] = self.trial.unreported
        state["labels"] = checkpoints.read_labels(self.trial.bare_model)
        if self.metrics_file is not None and self.metrics_file.exists():
            state["metrics_bytes"] = self.metrics_file.stat().st_size
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.starts_anew:
            return
        for name in self.KEPT:
            setattr(self, name, state_dict.get(name, getattr(self, name)))
        self.trial.validation_is_due = state_dict.get("validation_is_due", False)
        unreported = state_dict.get("unreported", [])
        if len(unreported) not in (0, self.trial.context.distributed.size):  # slots have come or gone
            total, rate, count = map(sum, zip(*unreported))
            unreported = [(total, rate, count), *[(0.0, 0.0, 0)] * (self.trial.context.distributed.size - 1)]
        if unreported:
            self.trial.training_means.unreported = unreported[self.trial.context.distributed.rank]
        num_bytes = state_dict.get("metrics_bytes", 0)
        if self.is_chief and self.metrics_file is not None and self.metrics_file.exists():
            # What came after the checkpoint comes once more.
            os.truncate(self.metrics_file, min(num_bytes, self.metrics_file.stat().st_size))
        if not self.on_cluster and self.folder is not None:
            self.checkpoints[self.resumed_from] = self.trial.batches_trained
            if self.is_chief:
                restore_old(self.folder / "model")
            if self.best_batches >= 0 and self.is_chief and not (self.folder / "model").exists():
                logger.warning(
                    "The best model so far, of batch %d, is not in %s: only a better one will be.",
                    self.best_batches,
                    self.folder,
                )

    def on_trial_startup(self, first_batch_idx: int, checkpoint_uuid: str | None) -> None:
        self.trial.batches_trained = first_batch_idx
        # On a cluster a trial's own checkpoint has a step: one without is another experiment's, to start from.
        self.starts_anew = self.on_cluster and checkpoint_uuid is not None and first_batch_idx == 0
        self.resumed_from = Path(checkpoint_uuid or "").name
        if checkpoint_uuid is None and self.is_chief and self.metrics_file is not None:
            self.metrics_file.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint

    def on_trial_shutdown(self) -> None:
        if self.on_cluster and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def on_training_start(self) -> None:
        self.trial.repeat_backward_passes()
        if self.is_chief and self.folder is not None:
            keep_data_report(self.trial.data_report, self.folder)
            if self.checkpoints and not self.on_cluster:
                self._prune(self.folder)  # a kill may have come between
        self._stop_if_worse()  # the run may have been interrupted just when it ended early

    def on_training_workload_end(self, avg_metrics: dict[str, Any], batch_metrics: dict[str, Any]) -> None:
        self._report("training", avg_metrics)

    def on_validation_start(self) -> None:
        self.trial.validation_is_due = True

    def on_validation_end(self, metrics: dict[str, Any]) -> None:
        self.trial.validation_is_due = False
        self._report("validation", metrics)
        if self.metric not in metrics:
            raise TrialError(f"searcher.metric: found {self.metric!r}; validation reports {', '.join(metrics)}.")
        value = self.sign * float(metrics[self.metric])
        if not math.isfinite(value) and self.is_chief:
            logger.warning("%s is no number: it cannot tell which model is best.", self.metric)
        self.values[self.trial.batches_trained] = value
        if value < self.best:
            self.best, self.best_batches, self.num_worse_validations = value, self.trial.batches_trained, 0
            if self.is_chief and self.folder is not None:
                self._keep_best(self.folder)
        else:
            self.num_worse_validations += 1
        self._stop_if_worse()

    def _keep_best(self, folder: Path) -> None:
        if test_metrics := self.trial.evaluate_best(folder):
            self._report("test", test_metrics)
        if not self.on_cluster and self.trial.settings.training.export_model:
            with replacing(folder / "model") as new:
                self._export(new)
            logger.info("%s %.4g is the best so far: saved in %s", self.metric, self.sign * self.best, folder / "model")

    def _export(self, folder: Path) -> None:
        checkpoints.export_model(folder, self.trial.bare_model, self.trial.tokenizer, self.trial.model_card())

    def _stop_if_worse(self) -> None:
        if self.patience is not None and self.num_worse_validations >= self.patience:
            logger.info(
                "Stopping early: %s has not improved over batch %d in %d validations.",
                self.metric,
                self.best_batches,
                self.num_worse_validations,
            )
            self.trial.context.set_stop_requested(True)

    def _report(self, group: str, metrics: Mapping[str, Any]) -> None:
        if not self.is_chief:
            return
        numbers = {name: float(v) for name, v in metrics.items() if name not in ("batches", "epochs")}
        batches = self.trial.batches_trained
        text = printable(", ".join(f"{name} {number:.4g}" for name, number in numbers.items()))
        logger.info("batch %d of %d: %s %s", batches, self.trial.num_training_batches, group, text)
        if group == "training" and not all(map(math.isfinite, numbers.values())):
            logger.warning("The training loss is no longer a number. A lower learning_rate usually helps.")
        if self.metrics_file is not None:
            with self.metrics_file.open("a") as file:
                known = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
                file.write(json.dumps({"group": group, "batches": batches, **known}) + "\n")

    def on_checkpoint_save_start(self, checkpoint: dict[str, Any]) -> None:
        checkpoints.write_plain_data(checkpoint)

    def on_checkpoint_load_start(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another model's checkpoint; of another experiment's, take nothing but the weights."""
        trial, own_state = self.trial, checkpoint.get("callbacks", {}).get("run_record", {})
        labels = own_state.get("labels", checkpoints.read_labels(trial.bare_model))
        checkpoints.refuse_another_model(checkpoint, trial.bare_model, labels)
        for group, own in zip(checkpoint["optimizers_state_dict"][0]["param_groups"], trial.optimizer.param_groups):
            if "fused" in group and "fused" in own:
                group["fused"] = own["fused"]  # not every machine has that kernel
        if self.starts_anew:
            logger.info("Starting with another experiment's weights; optimizer and schedule begin anew.")
            checkpoint["optimizers_state_dict"] = [trial.optimizer.state_dict()]
            checkpoint["lr_schedulers_state_dict"] = [trial.lr_scheduler.state_dict()]
            if trial.scaler is not None:
                checkpoint["scaler_state_dict"] = trial.scaler.state_dict()

    def on_checkpoint_write_end(self, checkpoint_dir: str) -> None:
        """Take the secrets out of what Determined wrote, and add what the checkpoint can be used for."""
        folder = Path(checkpoint_dir)
        checkpoints.complete_load_data(folder / "load_data.json", self.trial.bare_model)
        checkpoints.redact_configurations(folder)
        if not self.on_cluster or self.folder is None:
            return
        if self.trial.settings.training.export_model:
            self._export(folder / "model")
        if self.trial.batches_trained == self.best_batches:
            shutil.copytree(self.folder, checkpoint_dir, dirs_exist_ok=True)

    def on_checkpoint_upload_end(self, uuid: str) -> None:
        """Off cluster, leave of the checkpoints those that would remain on a cluster, and the newest in any case."""
        if self.folder is None or self.on_cluster or not self.is_chief:
            return
        self.checkpoints[uuid] = self.trial.batches_trained
        self._prune(self.folder)

    def _prune(self, folder: Path) -> None:
        best = sorted(self.checkpoints, key=lambda uuid: self.values.get(self.checkpoints[uuid], math.inf))
        newest = list(self.checkpoints)[-max(self.storage.save_trial_latest, 1) :]
        keep = {*newest, *best[: max(self.storage.save_trial_best, self.storage.save_experiment_best)]}
        self.checkpoints = {uuid: batches for uuid, batches in self.checkpoints.items() if uuid in keep}
        self.values = {batches: value for batches, value in self.values.items() if batches in self.checkpoints.values()}
        for checkpoint in folder.glob("checkpoints/determined/*"):
            if checkpoint.name not in keep:
                (checkpoint / "metadata.json").unlink(missing_ok=True)  # half removed, it is no longer whole
                shutil.rmtree(checkpoint)


def keep_data_report(data_report: dict[str, Any], folder: Path) -> None:
    """Write what a trial tells of its data, if it does, to `report/data.json`."""
    if data_report:
        (folder / "report").mkdir(exist_ok=True)
        (folder / "report" / "data.json").write_text(json.dumps(data_report, indent=1) + "\n")


def build_callbacks(trial: "BaseTransformerTrial") -> dict[str, pytorch.PyTorchCallback]:
    """What every trial reports and keeps: in its output folder, or on a cluster in its checkpoints."""
    info = det.get_cluster_info()
    on_cluster = info is not None and info.task_type == "TRIAL"
    folder = Path(tempfile.mkdtemp()) if on_cluster else trial.output_dir
    return {"run_record": RunRecord(trial, folder, on_cluster=on_cluster)}
