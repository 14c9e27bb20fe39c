"""Every use of a private name of Determined 0.38: what to check first with a new version.

Then its environment variables (`local.py` and `processes.py`) and the files of its checkpoints (`checkpoints.py`).
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

import determined as det
from determined import pytorch
from determined.cli import ntsc
from determined.common import detignore

override = ntsc.parse_config_overrides  # applies KEY=VALUE arguments as `det experiment create --config` does
STORAGE_LOGGER = "determined.common.storage"  # it warns where a part of a checkpoint is read, as every resume does


def end_training() -> NoReturn:
    """End the training here and now: Determined saves a checkpoint, and `fit` returns.

    Determined itself looks at `context.get_stop_requested` where a period ends, and never within a validation: too late
    for Ctrl-C, and for torchrun, which kills its processes 30 seconds after a SIGTERM.
    """
    raise pytorch._ShouldExit


def set_batch_index(context: pytorch.PyTorchTrialContext, batch_idx: int) -> None:
    """Tell `context.backward` to which batch of an accumulation a repeated pass belongs; nothing public does."""
    context._current_batch_idx = batch_idx


def report_metrics(context: Any, group: str, steps_completed: int, metrics: dict[str, float]) -> None:
    """Tell the master, and the log, metrics of a group of our own; a trial's context has nothing public for it."""
    context._core.train.report_metrics(group, steps_completed, metrics)


def read_uploads(context: Any) -> AbstractContextManager[Path]:
    """The folder of what all slots put into a TorchBatchProcessorContext's `upload_path`; nothing public reads it."""
    uuid = context._storage_path.partition("/")[0]  # UUID/rank_N
    return context._core_context.checkpoint._storage_manager.restore_path(uuid)


def read_experiment_config(task: det.ClusterInfo) -> dict[str, Any]:
    """The configuration of a task's experiment. `pytorch.init` needs a part of it, and gives it only afterwards."""
    return task.trial._config


def is_ignored(project: Path, folder: Path) -> bool:
    """Whether a checkpoint's copy of the project leaves out a folder: Determined copies by this function."""
    ignore, parts = detignore.make_shutil_ignore(project), folder.relative_to(project).parts
    return any(ignore(str(project.joinpath(*parts[:i])), [part]) for i, part in enumerate(parts))


class _ResumedController(pytorch._PyTorchTrialController):
    """Determined's training loop, which first takes up a validation that a signal had broken off."""

    def _train(self, *arguments: Any, **options: Any) -> None:
        period, epoch_length, state = self.validation_period, self.context._epoch_len, self.state
        epochs, batches = divmod(state.batches_trained, epoch_length)
        if isinstance(period, pytorch.Epoch):
            is_due = batches == 0 and period.should_stop(epochs)
        else:
            is_due = period.should_stop(state.batches_trained)
        if is_due and not self._validation_is_current():
            self._validate()
        super()._train(*arguments, **options)


def fit_from(checkpoint: Path, state: dict[str, Any], trial: pytorch.PyTorchTrial, **options: Any) -> None:
    """`pytorch.Trainer.fit` from a checkpoint's batch on; off cluster the method itself begins at batch 0.

    It builds the controller that `fit` builds, with the batch and the trial id in `state`, the checkpoint's
    trial_state.pkl, which a cluster's master would tell it. `options` are those of `fit`.
    """
    controller = _ResumedController(
        trial_inst=trial,
        context=trial.context,
        steps_completed=state["batches_trained"],
        latest_checkpoint=str(checkpoint),
        local_training=True,
        smaller_is_better=True,
        searcher_metric_name=None,
        global_batch_size=None,
        **options,
    )
    controller.trial_id = state["trial_id"]
    controller.run()
