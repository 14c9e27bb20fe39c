"""Training as a script: on a laptop, under torchrun, and as the entrypoint of an experiment on a cluster.

Off cluster this does what the master and Determined's harness do with an experiment configuration: defaults, seed,
periods, checkpoint policy and gradient accumulation mean what they mean under `entrypoint: module:TrialClass`.
"""

import contextlib
import errno
import inspect
import logging
import os
import re
import signal
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import determined as det
import filelock
import pyarrow
import tqdm
import tqdm.contrib.logging
from determined import core, pytorch

from transformer_trial import checkpoints, command_line, experiment, private
from transformer_trial.callbacks import build_callbacks, keep_data_report
from transformer_trial.errors import TrialError, set_up_log
from transformer_trial.experiment import Length
from transformer_trial.parsing import import_named, read_known
from transformer_trial.processes import get_cluster_task, join_torchrun
from transformer_trial.trial import BaseTransformerTrial

logger = logging.getLogger(__name__)

SIGNAL_PERIOD = 10  # batches after which several processes ask each other again whether there was a signal
PATIENCE = 25  # seconds that one of several processes has to end in after a SIGTERM; torchrun kills it after 30
LOCK_PATIENCE = 10  # seconds to wait for an output folder: a killed run's data workers hold its lock until they notice
UNWRITABLE = {
    "ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EEXIST", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "ELOOP", "EMFILE",
    "ENFILE", "EFBIG", "EIO",
}  # fmt: skip


def run(
    trial_class: type[BaseTransformerTrial], arguments: Sequence[str] | None = None, *, follows_entrypoint: bool = False
) -> None:
    """Train `trial_class` as the command line says; a user's mistake ends in its message and exit status 1.

    Where it `follows_entrypoint`, a class that `entrypoint: module:Class` of the yaml names is trained instead.
    """
    options = command_line.parse_arguments(arguments)
    task = get_cluster_task()
    set_up_logging(task is not None)
    try:
        if task is not None:
            train_on_cluster(trial_class, options, task)
        else:
            config = command_line.with_length(command_line.read_config(options), options)
            train_locally(find_trial_class(config, trial_class) if follows_entrypoint else trial_class, config, options)
    except KeyboardInterrupt:
        logger.error("Stopped before the training began: there is nothing to go on with.")
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if (reason := explain_failure(error)) is None:
            raise
        logger.error("%s", reason)
        sys.exit(1)


def find_trial_class(config: Mapping[str, Any], default: type[BaseTransformerTrial]) -> type[BaseTransformerTrial]:
    """The trial that the entrypoint `module:Class` of a configuration names; the default where it names a script."""
    name = str(config.get("entrypoint"))
    trial_class = import_named("entrypoint", name) if re.fullmatch(r"[\w.]+:\w+", name) else default
    if not (isinstance(trial_class, type) and issubclass(trial_class, BaseTransformerTrial)):
        raise TrialError(f"entrypoint: found {name}; accepted is a subclass of BaseTransformerTrial, as MODULE:CLASS.")
    return trial_class


def train_on_cluster(trial_class: type[BaseTransformerTrial], options: Namespace, task: det.ClusterInfo) -> None:
    """Train as an experiment's entrypoint, with the configuration and the checkpoint that the master gives."""
    command_line.warn_of_ignored(options)
    config = command_line.with_length(private.read_experiment_config(task), options)
    init_options, fit_options = read_options(trial_class, config, task.trial.hparams, on_cluster=True)
    with pytorch.init(**init_options) as context:
        trial = trial_class(context)
        pytorch.Trainer(trial, context).fit(latest_checkpoint=task.latest_checkpoint, **fit_options)


def train_locally(trial_class: type[BaseTransformerTrial], config: dict[str, Any], options: Namespace) -> None:
    """Train into an output folder, from the beginning or from a checkpoint."""
    if trial_class.__module__ == "__main__":
        advice = "Define it in a module of its own: checkpoints, and who loads them, import it by name."
        raise TrialError(f"{trial_class.__name__} is defined in the script that is run. {advice}")
    project = Path(inspect.getfile(trial_class)).resolve().parent
    output_dir = command_line.choose_output_dir(project, config, options)
    inputs = command_line.resolve_paths(config, Path(options.config_file or "").absolute().parent, project)
    os.chdir(project)  # as `det` does: relative paths of the yaml start there, and each checkpoint takes a copy of it
    told = "%s holds what looks like a secret, and travels with the code: keep it in the environment."
    for file, _ in checkpoints.find_secrets(project.iterdir()):
        logger.warning(told, file)
    hparams = config.get("hyperparameters") or {}
    init_options, fit_options = read_options(trial_class, config, hparams, on_cluster=False)
    with contextlib.ExitStack() as stack:
        distributed = stack.enter_context(join_torchrun())
        output_dir, checkpoint = broadcast_folders(output_dir, inputs, options.resume, distributed)
        # Off cluster Determined keeps checkpoints in the user's data folder; this moves that folder.
        os.environ["XDG_DATA_HOME"] = str(output_dir / "checkpoints")
        context = stack.enter_context(pytorch.init(distributed=distributed, **init_options))
        trial = trial_class(context, inspects=options.inspect)
        if options.inspect:
            logger.info("Next: the same command without --inspect%s.", "" if options.data else ", and --test for a try")
        if options.inspect and options.output_dir is None:
            return
        output_dir.mkdir(parents=True, exist_ok=True)  # not before: a mistake leaves no empty folder behind
        (output_dir / command_line.MARK).touch()
        if options.inspect:
            keep_data_report(trial.data_report, output_dir)
            return
        max_test_rows = trial.settings.training.global_batch_size if options.test else None
        trial.callbacks = build_callbacks(trial, output_dir, max_test_rows=max_test_rows)
        if context.distributed.rank == 0:
            stack.enter_context(lock_folder(output_dir))
        signals = StopSignals(trial, stack)
        fit(trial, checkpoint, config, test_mode=options.test, **fit_options)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # from here on torch's handler would take ends for failures
        if signals.are_heeded:
            told = "Stopped after batch %d of %d. To go on, give the same command with: --output-dir %s --resume auto"
            logger.warning(told, trial.batches_trained, trial.num_training_batches, output_dir)
            sys.exit(128 + (signals.received or signal.SIGTERM))
        kept = [name for name in ("model", "report", "test", "metrics.jsonl") if (output_dir / name).exists()]
        logger.info("In %s: %s", output_dir, ", ".join(kept))


def read_options(
    trial_class: type[BaseTransformerTrial], config: dict[str, Any], hparams: dict[str, Any], *, on_cluster: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Determined's harness makes of an experiment configuration: arguments of `pytorch.init` and `Trainer.fit`."""
    batch_size = trial_class.parse_settings(hparams, config.get("data") or {}).training.global_batch_size
    harness = read_known("", config, experiment.HarnessConfig)
    # Determined knows the best validation on a cluster only; off cluster KeptCheckpoints removes the others.
    policy = "all" if harness.checkpoint_policy == "best" and not on_cluster else harness.checkpoint_policy
    fit_options = {
        "max_length": as_train_unit(experiment.training_length(config), batch_size),
        "validation_period": as_period("min_validation_period", harness.min_validation_period, batch_size),
        "checkpoint_period": as_period("min_checkpoint_period", harness.min_checkpoint_period, batch_size),
        "reporting_period": pytorch.Batch(harness.scheduling_unit),
        "checkpoint_policy": policy,
        "step_zero_validation": harness.perform_initial_validation,
        "profiling_enabled": on_cluster and read_known("profiling", config, experiment.ProfilingConfig).enabled,
    }
    optimizations = read_known("optimizations", config, experiment.OptimizationsConfig)
    init_options = {
        "hparams": {**hparams, "global_batch_size": batch_size},  # it takes nothing but an int
        "exp_conf": config,
        "aggregation_frequency": optimizations.aggregation_frequency,
        "enable_tensorboard_logging": on_cluster,
    }
    return init_options, fit_options


def as_train_unit(length: Length, global_batch_size: int) -> pytorch.TrainUnit:
    """The length as Determined's trainer takes it, which knows batches and epochs."""
    if length.unit == "epochs":
        return pytorch.Epoch(length.amount)
    return pytorch.Batch(length.in_batches(0, global_batch_size))


def as_period(key: str, value: Any, global_batch_size: int) -> pytorch.TrainUnit:
    """A period of the configuration, in which 0 stands for never."""
    period = experiment.parse_length(key, value)
    return as_train_unit(period if period.amount > 0 else Length(period.unit, sys.maxsize), global_batch_size)


def broadcast_folders(
    output_dir: Path, inputs: Mapping[str, Path], resume: str | None, distributed: core.DistributedContext | None
) -> tuple[Path, Path | None]:
    """The output folder and the checkpoint to go on from, if any, the same for all processes, or a TrialError."""
    if distributed is not None:
        output_dir = distributed.broadcast(output_dir)
    command_line.check_output_dir(output_dir, inputs, resumes=resume is not None)
    checkpoint = None if resume is None else checkpoints.find_checkpoint(resume, output_dir)
    if distributed is not None and len(set(distributed.allgather(checkpoint))) > 1:
        found = f"not every process finds the same checkpoint in {output_dir}"
        raise TrialError(f"--resume: {found}. It has to be a folder that all nodes share.")
    if resume is not None and checkpoint is None:
        logger.info("There is no whole checkpoint in %s: starting at the beginning.", output_dir)
    return output_dir, checkpoint


def fit(trial: BaseTransformerTrial, checkpoint: Path | None, config: Mapping[str, Any], **options: Any) -> None:
    """Train to the end, from a checkpoint on where there is one; a terminal shows how far it is."""
    state = {"batches_trained": 0}
    if checkpoint is not None:
        logger.info("Going on from %s.", checkpoint)
        checkpoints.warn_of_changes(checkpoint, config)
        state = checkpoints.read_trial_state(checkpoint)
    total, done = trial.num_training_batches, state["batches_trained"]
    if done > total:
        found = f"found {total} batches, but {checkpoint} has been trained for {done}"
        raise TrialError(f"searcher.max_length: {found}. Give at least as many, or go on from an earlier checkpoint.")
    is_hidden = trial.context.distributed.rank > 0 or None  # None: where there is no terminal
    with (
        tqdm.contrib.logging.logging_redirect_tqdm(),
        tqdm.tqdm(total=total, initial=done, unit="batch", leave=False, disable=is_hidden) as bar,
    ):
        trial.batch_hooks.append(lambda _: bar.update(trial.batches_trained - bar.n))
        if checkpoint is None:
            pytorch.Trainer(trial, trial.context).fit(**options)
        else:
            private.fit_from(checkpoint, state, trial, **options)


class StopSignals:
    """Lets the first Ctrl-C, SIGTERM or SIGHUP end the training before the next batch; the second one ends it at once.

    Of several processes all have to get the signal: torchrun passes it on. What comes within a second is the same
    Ctrl-C, once from the terminal and once from torchrun.
    """

    def __init__(self, trial: BaseTransformerTrial, stack: contextlib.ExitStack) -> None:
        self.context = trial.context
        self.received: int | None = None
        self.received_at = 0.0
        self.are_heeded = False  # whether all processes have agreed to end the training
        trial.batch_hooks.append(self.heed)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup has it ignored
                stack.callback(signal.signal, signum, signal.signal(signum, self.receive))

    def heed(self, batch_idx: int) -> None:
        """Request a stop if there was a signal; several processes do so before the same batch."""
        is_asked = self.received is not None
        if self.context.distributed.size > 1:
            is_asked = batch_idx % SIGNAL_PERIOD == 0 and any(self.context.distributed.allgather(is_asked))
        if is_asked:
            self.are_heeded = True
            self.context.set_stop_requested(True)

    def receive(self, signum: int, frame: Any) -> None:
        name, are_several = signal.Signals(signum).name, self.context.distributed.size > 1
        if self.received is None:
            self.received, self.received_at = signum, time.monotonic()
            if self.context.distributed.rank == 0:
                _say(f"\n{name}: saving a checkpoint. Once more exits at once, and loses what came after the last one.")
            if are_several:
                timer = threading.Timer(PATIENCE, self.give_up)
                timer.daemon = True
                timer.start()
        elif not are_several or time.monotonic() - self.received_at > 1:
            _say(f"{name} again: exiting at once.")
            os._exit(128 + signum)

    def give_up(self) -> None:
        """Exit if the others have not agreed by now; if they have, the checkpoint takes its time."""
        if not self.are_heeded:
            _say("Another process of this training does not answer; it has probably ended. See its error above.")
            os._exit(128 + (self.received or signal.SIGTERM))


def _say(text: str) -> None:
    os.write(sys.stderr.fileno(), f"{text}\n".encode())  # logging may be what the signal interrupts


def lock_folder(folder: Path) -> contextlib.AbstractContextManager[Any]:
    """Keep a second run out of a folder until the returned context ends; a TrialError if this is the second run."""
    try:
        return filelock.FileLock(folder / command_line.MARK).acquire(timeout=LOCK_PATIENCE)
    except filelock.Timeout:
        who = f"--output-dir: another run is writing to {folder}. Wait for its end, or stop it."
        raise TrialError(who) from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):  # network file systems without locks
            raise
        return contextlib.nullcontext()


def set_up_logging(on_cluster: bool) -> None:
    set_up_log(logging.INFO, det.LOG_FORMAT if on_cluster else "%(message)s")
    if not on_cluster:
        logging.getLogger("determined").setLevel(logging.WARNING)
        logging.getLogger(private.STORAGE_LOGGER).setLevel(logging.ERROR)
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger().setLevel(logging.ERROR)


def explain_failure(error: Exception) -> str | None:
    """What a mistake of the user or a failure of the machine means; None for any other failure."""
    if isinstance(error, (TrialError, det.errors.InvalidExperimentException)):
        return str(error)
    text, lost_peer = " ".join(str(error).split()), "closed by peer|reset by peer|Broken pipe|NCCL.*(abort|remote)"
    if isinstance(error, RuntimeError) and re.search(lost_peer, text):
        return f"Another process of this training has ended: see its error. This one ends with it ({text[:200]})."
    if isinstance(error, pyarrow.ArrowException):
        return f"A cached data set is damaged ({text[:200]}). Set data.overwrite_cache: true once, to reread it."
    is_refused = isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in UNWRITABLE
    if is_refused or re.search("No space left|Not enough disk space|PytorchStreamWriter|inline_container", text):
        return (
            f"Cannot write: {text[:200]}. The disk is full, or may not be written to, or a file is in the way. Make "
            "room, or name another folder (--output-dir, data.cache_dir, HF_HOME). The checkpoints of before are "
            "whole: go on with --resume auto."
        )
    return None
