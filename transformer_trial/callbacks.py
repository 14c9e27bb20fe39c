"""What happens beside training: its loss, and the record of the run."""

import json
import logging
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import determined as det
import torch
from determined import pytorch

from transformer_trial.experiment import HarnessConfig
from transformer_trial.export import export_model, replace_folder
from transformer_trial.parsing import TrialError, printable, read_known

if TYPE_CHECKING:
    from transformer_trial.trial import BaseTransformerTrial

logger = logging.getLogger(__name__)


class TrainingLoss(pytorch.MetricReducer):
    """Mean loss of the batches since the last report, summed up on the device so that no step waits for it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total: torch.Tensor | float = 0.0
        self.num_batches = 0

    def update(self, loss: torch.Tensor) -> None:
        self.total = self.total + loss.detach().float()
        self.num_batches += 1

    def per_slot_reduce(self) -> tuple[float, int]:
        return float(self.total), self.num_batches

    def cross_slot_reduce(self, per_slot_metrics: Sequence[tuple[float, int]]) -> float:
        totals, counts = zip(*per_slot_metrics)
        return sum(totals) / sum(counts) if sum(counts) else math.nan


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

    def __init__(self, trial: "BaseTransformerTrial", folder: Path | None, *, on_cluster: bool) -> None:
        self.trial, self.folder, self.on_cluster = trial, folder, on_cluster
        self.is_chief = trial.context.distributed.rank == 0
        self.metric, smaller_is_better = trial.searcher_metric
        self.sign = 1 if smaller_is_better else -1
        self.patience = trial.settings.training.early_stopping_patience
        self.checkpoint_policy = read_known("", trial.experiment_config, HarnessConfig).checkpoint_policy
        self.best, self.best_batches, self.best_checkpoint = math.inf, -1, ""
        self.num_worse_validations = 0

    def state_dict(self) -> dict[str, Any]:
        names = ("best", "best_batches", "best_checkpoint", "num_worse_validations")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_trial_startup(self, first_batch_idx: int, checkpoint_uuid: str | None) -> None:
        self.trial.batches_trained = first_batch_idx  # a resumed run may validate before it trains

    def on_trial_shutdown(self) -> None:
        if self.on_cluster and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def on_training_start(self) -> None:
        if self.is_chief and self.folder is not None:
            keep_data_report(self.trial.data_report, self.folder)
        self._stop_if_worse()  # the run may have been interrupted just when it ended early

    def on_training_workload_end(self, avg_metrics: dict[str, Any], batch_metrics: dict[str, Any]) -> None:
        self._report("training", avg_metrics)

    def on_validation_end(self, metrics: dict[str, Any]) -> None:
        self._report("validation", metrics)
        if self.metric not in metrics:
            raise TrialError(f"searcher.metric: found {self.metric!r}; validation reports {', '.join(metrics)}.")
        value = self.sign * float(metrics[self.metric])
        if not math.isfinite(value) and self.is_chief:
            logger.warning("%s is no number: it cannot tell which model is best.", self.metric)
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
            new = folder / "model.new"
            shutil.rmtree(new, ignore_errors=True)
            self._export(new)
            replace_folder(new, folder / "model")
            logger.info("%s %.4g is the best so far: saved in %s", self.metric, self.sign * self.best, folder / "model")

    def _export(self, folder: Path) -> None:
        export_model(folder, self.trial.model, self.trial.tokenizer, self.trial.model_card())

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
        if self.folder is not None and not self.on_cluster:
            with (self.folder / "metrics.jsonl").open("a") as file:
                known = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
                file.write(json.dumps({"group": group, "batches": batches, **known}) + "\n")

    def on_checkpoint_save_start(self, checkpoint: dict[str, Any]) -> None:
        """Name weights as one process does, so that Determined's loader finds them."""
        for weights in checkpoint["models_state_dict"]:
            torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(weights, "module.")

    def on_checkpoint_write_end(self, checkpoint_dir: str) -> None:
        """On a cluster, where only checkpoints remain: keep in each of them what it can be used for."""
        if not self.on_cluster or self.folder is None:
            return
        if self.trial.settings.training.export_model:
            self._export(Path(checkpoint_dir) / "model")
        if self.trial.batches_trained == self.best_batches:
            shutil.copytree(self.folder, checkpoint_dir, dirs_exist_ok=True)

    def on_checkpoint_upload_end(self, uuid: str) -> None:
        """Off cluster, leave of the checkpoints the best and the newest: what remains of them on a cluster."""
        if self.folder is None or self.on_cluster or self.checkpoint_policy != "best" or not self.is_chief:
            return
        if self.trial.batches_trained == self.best_batches:
            self.best_checkpoint = uuid
        for checkpoint in self.folder.glob("checkpoints/determined/*"):
            if checkpoint.name not in (uuid, self.best_checkpoint):
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
