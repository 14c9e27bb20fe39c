"""What happens beside training: its loss, one line per report, the metrics log, and the export of the best model."""

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from determined import pytorch

from transformer_trial.experiment import HarnessConfig
from transformer_trial.parsing import TrialError, read_known

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


class Reports(pytorch.PyTorchCallback):
    """One readable log line per report of metrics and, with a folder, one line of `metrics.jsonl`.

    Args:
        trial: Whose reports they are.
        metrics_file: Where to append them; None keeps no file.
    """

    def __init__(self, trial: "BaseTransformerTrial", metrics_file: Path | None) -> None:
        self.trial = trial
        self.metrics_file = metrics_file

    def on_training_workload_end(self, avg_metrics: dict[str, Any], batch_metrics: dict[str, Any]) -> None:
        self._report("training", avg_metrics)

    def on_validation_end(self, metrics: dict[str, Any]) -> None:
        self._report("validation", metrics)

    def _report(self, group: str, metrics: Mapping[str, Any]) -> None:
        if self.trial.context.distributed.rank != 0:
            return
        numbers = {name: float(v) for name, v in metrics.items() if name not in ("batches", "epochs")}
        batches = self.trial.batches_trained
        text = ", ".join(f"{name} {number:.4g}" for name, number in numbers.items())
        logger.info("batch %d of %d: %s %s", batches, self.trial.num_training_batches, group, text)
        if group == "training" and not all(map(math.isfinite, numbers.values())):
            logger.warning("The training loss is no longer a number. A lower learning_rate usually helps.")
        if self.metrics_file is not None:
            with self.metrics_file.open("a") as file:
                known = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
                file.write(json.dumps({"group": group, "batches": batches, **known}) + "\n")


class PlainCheckpoints(pytorch.PyTorchCallback):
    """Names weights in checkpoints as one process does, so that Determined's loader finds them."""

    def on_checkpoint_save_start(self, checkpoint: dict[str, Any]) -> None:
        for weights in checkpoint["models_state_dict"]:
            torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(weights, "module.")


class BestModel(pytorch.PyTorchCallback):
    """Keeps in a folder the model that was best so far by the searcher's metric, as `from_pretrained` reads it.

    Args:
        trial: Whose model it is.
        folder: Replaced as a whole with each better model.
    """

    def __init__(self, trial: "BaseTransformerTrial", folder: Path) -> None:
        self.trial = trial
        self.folder = folder
        self.metric, smaller_is_better = trial.searcher_metric
        self.sign = 1 if smaller_is_better else -1
        self.best = math.inf
        self.best_batches, self.best_checkpoint = -1, ""
        self.checkpoint_policy = read_known("", trial.experiment_config, HarnessConfig).checkpoint_policy

    def on_validation_end(self, metrics: dict[str, Any]) -> None:
        if self.metric not in metrics:
            raise TrialError(f"searcher.metric: found {self.metric!r}; validation reports {', '.join(metrics)}.")
        value = self.sign * float(metrics[self.metric])
        if self.trial.context.distributed.rank != 0 or not value < self.best:
            return
        self.best, self.best_batches = value, self.trial.batches_trained
        new = self.folder.with_name(f"{self.folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        model = getattr(self.trial.model, "module", self.trial.model)  # without its wrapper for data-parallel training
        model.save_pretrained(new)
        self.trial.tokenizer.save_pretrained(new)
        shutil.rmtree(self.folder, ignore_errors=True)
        new.rename(self.folder)
        logger.info("%s is the best so far by %s: saved in %s", metrics[self.metric], self.metric, self.folder)

    def on_checkpoint_upload_end(self, uuid: str) -> None:
        """Leave, of the checkpoints beside this folder, the best and the newest: what remains of them on a cluster."""
        if self.checkpoint_policy != "best" or self.trial.context.distributed.rank != 0:
            return
        if self.trial.batches_trained == self.best_batches:
            self.best_checkpoint = uuid
        for checkpoint in self.folder.parent.glob("checkpoints/determined/*"):
            if checkpoint.name not in (uuid, self.best_checkpoint):
                shutil.rmtree(checkpoint)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


def build_callbacks(trial: "BaseTransformerTrial") -> dict[str, pytorch.PyTorchCallback]:
    """What every trial reports and, where it has an output folder, keeps there."""
    callbacks: dict[str, pytorch.PyTorchCallback] = {"plain_checkpoints": PlainCheckpoints()}
    folder = trial.output_dir
    callbacks["reports"] = Reports(trial, None if folder is None else folder / "metrics.jsonl")
    if folder is not None:
        callbacks["best_model"] = BestModel(trial, folder / "model")
    return callbacks
