"""Where this process runs: as a cluster's task, under torchrun, or alone; and who of several goes first."""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import determined as det
import torch
from determined import core

from transformer_trial.errors import TrialError
from transformer_trial.experiment import ReproducibilityConfig
from transformer_trial.parsing import read_known


def get_cluster_task() -> det.ClusterInfo | None:
    """The task of a trial that this process is on a cluster; None elsewhere."""
    info = det.get_cluster_info()
    return info if info is not None and info.task_type == "TRIAL" else None


def get_seed(context: Any) -> int:
    """The seed of a trial: on a cluster the master's, which a search draws for each; else the configured one."""
    try:
        return int(context.get_trial_seed())
    except det.errors.InternalException:  # off cluster
        return read_known("reproducibility", context.get_experiment_config(), ReproducibilityConfig).experiment_seed


def check_launcher(distributed: core.DistributedContext) -> None:
    """Raise a TrialError where several slots were not started by torch's launcher."""
    if distributed.size > 1 and not torch.distributed.is_initialized():
        entrypoint = "python3 -m determined.launch.torch_distributed python3 train.py, or ner_trial:NERTrial"
        raise TrialError(f"Several slots need torch's own launcher, not Horovod: entrypoint: {entrypoint}.")


@contextlib.contextmanager
def join_torchrun() -> Iterator[core.DistributedContext | None]:
    """The processes that torchrun started, as Determined sees them; None where it started none."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield None
        return
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if name not in os.environ]:
        raise TrialError(f"WORLD_SIZE is set, but not {', '.join(missing)}. Start with torchrun, or unset WORLD_SIZE.")
    values = {name: os.environ[name] for name in ("WORLD_SIZE", *names) if name != "MASTER_ADDR"}
    if wrong := [f"{name}={value!r}" for name, value in values.items() if not value.isdecimal()]:
        raise TrialError(f"{wrong[0]}: accepted is a whole number. Start with torchrun, or unset WORLD_SIZE.")
    os.environ["USE_TORCH_DISTRIBUTED"] = "True"  # tells Determined to train data-parallel with torch
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        # Two free ports of the first process: Determined's own are the same for every training on a machine.
        with socket.create_server(("", 0)) as first, socket.create_server(("", 0)) as second:
            ports = [first.getsockname()[1], second.getsockname()[1]]
        torch.distributed.broadcast_object_list(ports, group=torch.distributed.new_group(backend="gloo"))
        places = {"": "", "local_": "LOCAL_", "cross_": "GROUP_"}  # as Determined and as torchrun calls them
        ranks = {f"{own}rank": int(os.environ[f"{theirs}RANK"]) for own, theirs in places.items()}
        sizes = {f"{own}size": int(os.environ[f"{theirs}WORLD_SIZE"]) for own, theirs in places.items()}
        chief_ip = os.environ.get("DET_CHIEF_IP", os.environ["MASTER_ADDR"])  # where all exchange, nodes included
        yield core.DistributedContext(**ranks, **sizes, chief_ip=chief_ip, pub_port=ports[0], pull_port=ports[1])
    finally:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def local_chief_first(distributed: core.DistributedContext) -> Iterator[None]:
    """Let one process of each node do the body first, so that the others find its downloads and caches.

    At the end all wait for the slowest node, however long it takes: torch's own collectives give up after minutes. If
    one process failed, all others raise a TrialError that tells its error.
    """
    failure, is_interrupted = None, False
    try:
        if distributed.local_rank > 0 and (failure := distributed.broadcast_local(None)) is not None:
            raise TrialError(f"The first process of this node failed, and this one with it: {failure}")
        yield
    except BaseException as error:
        failure = failure or f"{type(error).__name__}: {error}"
        is_interrupted = isinstance(error, KeyboardInterrupt)  # as all the others: nobody waits
        raise
    finally:
        if distributed.local_rank == 0:
            distributed.broadcast_local(failure)
        failures = [] if is_interrupted else distributed.allgather(failure)
    for rank, failure in enumerate(failures):
        if failure is not None:
            raise TrialError(f"Process {rank} failed, and this one with it: {failure}")
