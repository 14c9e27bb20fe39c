"""A stand-in for a cluster: Determined's code believes that it runs in a task, whose master this is."""

import contextlib
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import determined as det
import pytest
from conftest import PROJECT, Config, watch
from determined import core
from determined.exec import harness

from ner_trial import NERTrial
from transformer_trial import local

Reports = list[tuple[str, int, dict[str, Any]]]


class StandInTrainContext(core.DummyTrainContext):
    """Stands in for what reports to a master, which cannot be had here; knows a trial's id, as on a cluster."""

    _trial_id = 1
    _exp_id = 1


OPTIMIZATIONS = {"aggregation_frequency": 1, "gradient_compression": False, "average_aggregated_gradients": True}
DEFAULTS = {
    "checkpoint_storage": {"type": "shared_fs"}, "scheduling_unit": 100, "checkpoint_policy": "best",
    "min_checkpoint_period": {"batches": 0}, "perform_initial_validation": False, "profiling": {"enabled": False},
}  # fmt: skip
"""What the master adds to an experiment's configuration."""


def run_on_stand_in(
    config: Config, folder: Path, checkpoint: Path | None = None, steps_completed: int = 0, *,
    preempted_at: int | None = None, as_script: bool = False, trial_id: int = 1,
) -> tuple[Any, Reports]:  # fmt: skip
    """Train as a task of a cluster whose master is a stand-in; returns the trial, and what the master was told.

    The master preempts the task at the first period that ends with the batch `preempted_at`.
    """
    folder.mkdir(exist_ok=True)
    config = {**DEFAULTS, **config, "optimizations": {**OPTIMIZATIONS, **config.get("optimizations", {})}}
    seed = config["reproducibility"]["experiment_seed"]
    task = types.SimpleNamespace(
        _config=config, hparams=config["hyperparameters"], trial_seed=seed, _debug=False, trial_id=trial_id,
        _steps_completed=steps_completed,
    )  # fmt: skip
    info = types.SimpleNamespace(
        task_type="TRIAL", trial=task, gpu_uuids=[], slot_ids=[0], container_addrs=["here"],
        latest_checkpoint=None if checkpoint is None else str(checkpoint),
    )  # fmt: skip
    trials: list[NERTrial] = []
    reports: Reports = []

    def init(**arguments: Any) -> core.Context:
        context = core._dummy_init(checkpoint_storage=str(folder))
        context.train = StandInTrainContext(folder / "tensorboard")
        return context

    def should_preempt(*_: Any, **options: Any) -> bool:
        return trials[0].batches_trained == preempted_at

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(det, "get_cluster_info", lambda: info)
        patch.setattr(core, "init", init)
        patch.setattr("determined.constants.MANAGED_TRAINING_MODEL_COPY", str(PROJECT / "transformer_trial"))
        patch.setattr(StandInTrainContext, "_trial_id", trial_id)
        patch.setattr(core.DummyTrainContext, "_report_trial_metrics", lambda _, *told: reports.append(told[:3]))
        patch.setattr(core.DummyPreemptContext, "should_preempt", should_preempt)
        patch.setattr(local, "set_up_logging", lambda on_cluster: None)
        watch(NERTrial, "__init__", patch, first=lambda trial, _: trials.append(trial))
        if as_script:
            local.run(NERTrial, ["absent.yaml"])  # warned of, and not read
        else:
            harness._run_pytorch_trial(NERTrial, info, config["entrypoint"])
    return trials[0], reports


@contextlib.contextmanager
def batch_task(storage: Path, checkpoint: str | None, num_slots: int) -> Iterator[None]:
    """Let this process be one of a task's slots for `torch_batch_process`; what the master is told goes to a file."""
    trial = types.SimpleNamespace(_config={"checkpoint_storage": {"type": "shared_fs"}})
    info = types.SimpleNamespace(
        task_type="TRIAL", trial=trial, slot_ids=[*range(num_slots)], container_addrs=["here"],
        latest_checkpoint=checkpoint,
    )  # fmt: skip

    def report(self: Any, group: str, steps_completed: int, metrics: dict[str, Any], *_: Any) -> None:
        with (storage / "reports.jsonl").open("a") as file:
            file.write(json.dumps([group, steps_completed, metrics]) + "\n")

    def init(distributed: core.DistributedContext | None, **_: Any) -> core.Context:
        return core._dummy_init(distributed=distributed, checkpoint_storage=str(storage))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(det, "get_cluster_info", lambda: info)
        patch.setattr(core, "init", init)
        patch.setattr(core.DummyTrainContext, "_report_trial_metrics", report)
        yield


def newest_checkpoint(folder: Path) -> Path:
    return max(folder.rglob("trial_state.pkl"), key=lambda file: file.stat().st_mtime_ns).parent
