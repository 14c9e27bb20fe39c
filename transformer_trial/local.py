"""One way to run a trial as a script: on a laptop, under torchrun, and as the entrypoint of an experiment on a cluster.

Off cluster, what the master and Determined's harness would do with an experiment configuration is done here: defaults,
seed, periods, checkpoint policy and gradient accumulation mean what they mean under `entrypoint: module:TrialClass`.
"""

import argparse
import contextlib
import errno
import inspect
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import determined as det
import pyarrow
import tqdm
import tqdm.contrib.logging
import transformers
from determined import core, pytorch

from transformer_trial.callbacks import keep_data_report
from transformer_trial.checkpoints import read_trial_state
from transformer_trial.command_line import (
    check_output_dir,
    choose_output_dir,
    parse_arguments,
    read_config,
    with_length,
)
from transformer_trial.config import parse_trial_config
from transformer_trial.errors import TrialError
from transformer_trial.experiment import (
    HarnessConfig,
    Length,
    OptimizationsConfig,
    ProfilingConfig,
    parse_length,
    training_length,
)
from transformer_trial.parsing import read_known
from transformer_trial.processes import join_torchrun
from transformer_trial.resume import find_checkpoint, fit_from, hold, stop_on_signals, warn_of_changes
from transformer_trial.trial import BaseTransformerTrial

logger = logging.getLogger(__name__)


def run(trial_class: type[BaseTransformerTrial], arguments: Sequence[str] | None = None) -> None:
    """Train `trial_class` as the command line says; a user's mistake ends in its message and exit status 1.

    Args:
        trial_class: Has to be importable from a module of its own, or its checkpoints cannot be loaded.
        arguments: The command line; None takes it from `sys.argv`.
    """
    options = parse_arguments(arguments)
    info = det.get_cluster_info()
    on_cluster = info is not None and info.task_type == "TRIAL"
    set_up_logging(on_cluster)
    try:
        if info is not None and on_cluster:
            given = {"CONFIG.yaml": options.config_file, "--config": options.overrides, "--test": options.test}
            given |= {"--inspect": options.inspect, "--output-dir": options.output_dir, "--resume": options.resume}
            if ignored := [name for name, value in given.items() if value]:
                logger.warning("On a cluster the experiment's own configuration counts, not %s.", ", ".join(ignored))
            train(trial_class, with_length(info.trial._config, options), options, output_dir=None)
            return
        if options.resume is not None and (options.test or options.inspect):
            raise TrialError("--resume: goes with neither --test nor --inspect.")
        config = with_length(read_config(options), options)
        project = Path(inspect.getfile(trial_class)).resolve().parent
        output_dir = choose_output_dir(project, config, options)
        # As `det` does with the folder it is given: relative paths in the yaml start there, and each checkpoint takes
        # a copy of it.
        os.chdir(project)
        train(trial_class, config, options, output_dir)
    except (TrialError, det.errors.InvalidExperimentException) as error:
        logger.error("%s", error)
        sys.exit(1)
    except KeyboardInterrupt:
        logger.error("Stopped before the training began: there is nothing to go on with.")
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if (reason := explain_failure(error)) is None:
            raise
        logging.getLogger().error("%s", reason)
        sys.exit(1)


def explain_failure(error: Exception) -> str | None:
    """What a failure of the machine means, of which torch and others tell in words of their own; None for any other."""
    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and re.search(
        "closed by peer|reset by peer|Broken pipe|NCCL.*(abort|remote)", text
    ):
        return f"Another process of this training has ended: see its error. This one ends with it ({text[:200]})."
    if isinstance(error, pyarrow.ArrowException):
        return (
            f"A cached data set is damaged ({text[:200]}). Set data.overwrite_cache: true once, to read the data anew."
        )
    wrote = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
    if wrote or re.search("No space left|PytorchStreamWriter|inline_container", text):
        return (
            f"Cannot write: {text[:200]}. The disk is full, or may not be written to. Make room, or name another "
            "folder (--output-dir, data.cache_dir, HF_HOME). The checkpoints of before are whole: go on with --resume "
            "auto."
        )
    return None


def set_up_logging(on_cluster: bool) -> None:
    logging.basicConfig(level=logging.INFO, format=det.LOG_FORMAT if on_cluster else "%(message)s", force=True)
    if not on_cluster:
        logging.getLogger("determined").setLevel(logging.WARNING)
        # A resume reads but part of a checkpoint, which that module would warn of.
        logging.getLogger("determined.common.storage").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
    if int(os.environ.get("RANK", "0")) != 0:
        logging.getLogger().setLevel(logging.ERROR)


def train(
    trial_class: type[BaseTransformerTrial],
    config: dict[str, Any],
    options: argparse.Namespace,
    output_dir: Path | None,
) -> None:
    """Train with `pytorch.init` and `pytorch.Trainer`; without an output folder, as the task of a cluster."""
    on_cluster = output_dir is None
    info = det.get_cluster_info()
    hparams = info.trial.hparams if on_cluster else config.get("hyperparameters") or {}
    training = parse_trial_config(hparams, config.get("data") or {}, trial_class.data_config_class).training
    fit_options = read_fit_options(config, training.global_batch_size, on_cluster=on_cluster)
    aggregation_frequency = read_known("optimizations", config, OptimizationsConfig).aggregation_frequency
    checkpoint: Path | None = None
    with contextlib.ExitStack() as stack:
        distributed = None if on_cluster else stack.enter_context(join_torchrun())
        if output_dir is not None:
            output_dir, checkpoint = agree_on_folders(output_dir, options.resume, distributed)
            # Off cluster Determined keeps checkpoints in the user's data folder; this moves that folder.
            os.environ["XDG_DATA_HOME"] = str(output_dir / "checkpoints")
        context = stack.enter_context(
            pytorch.init(
                hparams={**hparams, "global_batch_size": training.global_batch_size},  # it takes nothing but an int
                exp_conf=config,
                distributed=distributed,
                aggregation_frequency=aggregation_frequency,
                enable_tensorboard_logging=on_cluster,
            )
        )
        trial = trial_class(context)
        if output_dir is None:
            pytorch.Trainer(trial, context).fit(latest_checkpoint=info.latest_checkpoint, **fit_options)
            return
        if options.output_dir is not None or not options.inspect:
            output_dir.mkdir(parents=True, exist_ok=True)  # not before: a mistake leaves no empty folder behind
            trial.output_dir = output_dir
        if options.inspect:
            if trial.output_dir is not None:
                keep_data_report(trial.data_report, trial.output_dir)
            return
        trial.test_mode = options.test
        if context.distributed.rank == 0:
            stack.enter_context(hold(output_dir))
            stack.enter_context(progress_bar(trial, checkpoint))
        stack.enter_context(stop_on_signals(trial))
        if checkpoint is not None:
            logger.info("Going on from %s.", checkpoint)
            warn_of_changes(checkpoint, config)
            fit_from(checkpoint, trial, context, test_mode=options.test, **fit_options)
        else:
            if options.resume is not None:
                logger.info("There is no whole checkpoint in %s: starting at the beginning.", output_dir)
            pytorch.Trainer(trial, context).fit(test_mode=options.test, **fit_options)
        tell_the_end(trial, output_dir)


def read_fit_options(config: Mapping[str, Any], global_batch_size: int, *, on_cluster: bool) -> dict[str, Any]:
    """What the configuration says of the training's course, as the arguments of `pytorch.Trainer.fit`."""
    harness = read_known("", config, HarnessConfig)
    # Determined knows the best validation on a cluster only; off cluster RunRecord removes the others.
    policy = "all" if harness.checkpoint_policy == "best" and not on_cluster else harness.checkpoint_policy
    return {
        "max_length": as_train_unit(training_length(config), global_batch_size),
        "validation_period": as_period("min_validation_period", harness.min_validation_period, global_batch_size),
        "checkpoint_period": as_period("min_checkpoint_period", harness.min_checkpoint_period, global_batch_size),
        "reporting_period": pytorch.Batch(harness.scheduling_unit),
        "checkpoint_policy": policy,
        "step_zero_validation": harness.perform_initial_validation,
        "profiling_enabled": on_cluster and read_known("profiling", config, ProfilingConfig).enabled,
    }


def agree_on_folders(
    output_dir: Path, resume: str | None, distributed: core.DistributedContext | None
) -> tuple[Path, Path | None]:
    """The output folder and the checkpoint to go on from, if any, that all processes use.

    Raises:
        TrialError: If the folder cannot be written to by this run, or a process does not find the checkpoint.
    """
    if distributed is not None:
        output_dir = distributed.broadcast(output_dir)
    check_output_dir(output_dir, resumes=resume is not None)
    checkpoint = None if resume is None else find_checkpoint(resume, output_dir)
    if distributed is not None and len(set(distributed.allgather(checkpoint))) > 1:
        raise TrialError(
            f"--resume: not every process finds the same checkpoint in {output_dir}. It has to be a folder that all "
            "nodes share."
        )
    return output_dir, checkpoint


@contextlib.contextmanager
def progress_bar(trial: BaseTransformerTrial, checkpoint: Path | None) -> Iterator[None]:
    """Show on a terminal how far the training is, which begins at the checkpoint's batch."""
    if not sys.stderr.isatty():
        yield
        return
    done = 0 if checkpoint is None else read_trial_state(checkpoint)["batches_trained"]
    with (
        tqdm.contrib.logging.logging_redirect_tqdm(),
        tqdm.tqdm(total=trial.num_training_batches, initial=done, unit="batch", leave=False) as bar,
    ):
        trial.on_batch_end = bar.update
        yield


def tell_the_end(trial: BaseTransformerTrial, output_dir: Path) -> None:
    """Say what there is now, or, where a signal ended the training before its time, how to go on, and exit."""
    ended_early = trial.validation_is_due or trial.batches_trained < trial.num_training_batches
    if trial.stop_signal is not None and ended_early:
        logger.warning(
            "Stopped after batch %d of %d. To go on, give the same command with: --output-dir %s --resume auto",
            trial.batches_trained,
            trial.num_training_batches,
            output_dir,
        )
        sys.exit(128 + trial.stop_signal)
    kept = [name for name in ("model", "report", "test", "metrics.jsonl") if (output_dir / name).exists()]
    logger.info("In %s: %s", output_dir, ", ".join(kept))


def as_train_unit(length: Length, global_batch_size: int) -> pytorch.TrainUnit:
    """The length as Determined's trainer takes it, which knows batches and epochs."""
    if length.unit == "epochs":
        return pytorch.Epoch(length.amount)
    return pytorch.Batch(length.in_batches(0, global_batch_size))


def as_period(key: str, value: Any, global_batch_size: int) -> pytorch.TrainUnit:
    """A period of the configuration, in which 0 stands for never."""
    period = parse_length(key, value)
    return as_train_unit(period if period.amount > 0 else Length(period.unit, sys.maxsize), global_batch_size)
