"""Going on off cluster: from which checkpoint, from which step, and how a signal ends a run so that it can go on."""

import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from determined import pytorch

from transformer_trial.checkpoints import find_damage, read_trial_state
from transformer_trial.errors import TrialError, format_value, redact

if TYPE_CHECKING:
    from transformer_trial.trial import BaseTransformerTrial

logger = logging.getLogger(__name__)

PATIENCE = 25
"""Seconds that one of several processes has to end in after a SIGTERM; torchrun kills it after 30."""


def find_checkpoint(requested: str, output_dir: Path) -> Path | None:
    """The checkpoint that `--resume` asks for: a folder, or with "auto" the newest whole one of a run.

    One without metadata.json, which is written last, was being saved when the run was killed, and does not count.

    Args:
        requested: What the command line gives.
        output_dir: The folder of the run.

    Returns:
        The checkpoint's folder; None if the run was killed before its first one was whole.

    Raises:
        TrialError: If what is asked for cannot be resumed.
    """
    if requested != "auto":
        checkpoint = Path(requested).expanduser().resolve()
        if (damage := find_damage(checkpoint)) is None:
            return checkpoint
        raise TrialError(
            f"--resume: {checkpoint} cannot be resumed: {damage}. Give a whole checkpoint, a folder such as "
            "DIR/checkpoints/determined/UUID, or auto for the newest one of --output-dir DIR."
        )
    files = list(output_dir.glob("checkpoints/determined/*/metadata.json"))
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        if (damage := find_damage(file.parent)) is None:
            return file.parent
        logger.warning("%s cannot be resumed: %s. Trying the one before it.", file.parent, damage)
    if files:
        raise TrialError(f"--resume: no checkpoint in {output_dir} is whole. To start anew, choose another folder.")
    return None


def warn_of_changes(checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Name the settings that are others than when a checkpoint was made: the run is not what it would have been."""
    before = json.loads((checkpoint / "load_data.json").read_text())["experiment_config"] or {}
    now = redact(config)
    for section in sorted({*before, *now} - {"model_config", "name", "description", "labels", "workspace", "project"}):
        old, new = (
            {"": value} if not isinstance(value, Mapping) else value
            for value in (before.get(section), now.get(section))
        )
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                name = f"{section}.{key}".rstrip(".")
                values = f"{format_value(name, old.get(key))} in the checkpoint, {format_value(name, new.get(key))} now"
                logger.warning("%s has changed: %s.", name, values)
    if before.get("hyperparameters") != now.get("hyperparameters"):
        logger.warning("Optimizer and schedule go on as the checkpoint has them, with their rates.")


class _ResumedController(pytorch._PyTorchTrialController):
    """Determined's controller, which takes up a validation that a signal had broken off."""

    def _train(self, *arguments: Any, **options: Any) -> None:
        if self.trial.validation_is_due and not self._validation_is_current():
            self._validate()
        super()._train(*arguments, **options)


def fit_from(
    checkpoint: Path, trial: "BaseTransformerTrial", context: pytorch.PyTorchTrialContext, **options: Any
) -> None:
    """`pytorch.Trainer.fit` from a checkpoint's step on; the method itself would begin at step 0 off cluster.

    It builds the controller that `fit` of determined 0.38 builds, with the step and the trial that a cluster's master
    would tell it.
    """
    state = read_trial_state(checkpoint)
    controller = _ResumedController(
        trial_inst=trial,
        context=context,
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


@contextlib.contextmanager
def stop_on_signals(trial: "BaseTransformerTrial") -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the training after the batch, with a checkpoint, and the second at once.

    Of several processes all have to get the signal: torchrun passes it on. What comes within a second is the same
    Ctrl-C, once from the terminal and once from torchrun.
    """
    first = 0.0
    several, is_chief = trial.context.distributed.size > 1, trial.context.distributed.rank == 0

    def say(text: str) -> None:
        os.write(sys.stderr.fileno(), f"{text}\n".encode())  # logging may be what the signal interrupts

    def give_up(signum: int) -> None:
        if trial.is_ending:
            return  # all have agreed to, and the checkpoint takes its time
        say("Another process of this training does not answer; it has probably ended. See its error above.")
        os._exit(128 + signum)

    def stop(signum: int, frame: Any) -> None:
        nonlocal first
        name = signal.Signals(signum).name
        if trial.stop_signal is None:
            trial.stop_signal, first = signum, time.monotonic()
            if is_chief:
                say(f"\n{name}: saving a checkpoint. Once more exits at once, and loses what came after the last one.")
            if several:
                timer = threading.Timer(PATIENCE, give_up, [signum])
                timer.daemon = True
                timer.start()
        elif not several or time.monotonic() - first > 1:
            say(f"{name} again: exiting at once.")
            os._exit(128 + signum)

    trial.heeds_signals = True
    old = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep a second run out of a folder while the body runs.

    Raises:
        TrialError: If another process holds it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrialError(
                f"--output-dir: another run is writing to {folder}. Wait for its end, or stop it."
            ) from None
        except OSError:
            logger.debug("%s has no locks.", folder)  # some network file systems
        yield
