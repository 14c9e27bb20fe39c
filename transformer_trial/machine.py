"""What the machine at hand decides, and what it does faster than PyTorch by itself. Nothing here imports Determined."""

import ctypes
import dataclasses
import logging
import sys
from typing import Any

import torch

from transformer_trial.config import TrialConfig

logger = logging.getLogger(__name__)

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let glibc keep up to a gigabyte of freed memory for the next batch, whose tensors are about as large.

    By itself it gives the memory back to Linux, which fills every page with zeros before it is lent again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl, say, has none
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc takes
        mallopt(M_TRIM_THRESHOLD, 2**30)


def knows_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bf16, with which it is faster than with fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # which an older torch lacks
        return False
    flags = torch.cpu.get_capabilities()
    return any(flags.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))  # the last one is ARM's


def settle(settings: TrialConfig[Any], device: torch.device, local_rank: int) -> TrialConfig[Any]:
    """Decide what the settings leave to the machine, and let its first process alone make the caches anew."""
    data, training = settings.data, settings.training
    if local_rank > 0:
        data = data.model_copy(update={"overwrite_cache": False})
    if training.mixed_precision == "auto":
        training = training.model_copy(update={"mixed_precision": "bf16" if knows_bf16(device) else "none"})
        logger.info("mixed_precision: auto is %s on this machine.", training.mixed_precision)
    return dataclasses.replace(settings, data=data, training=training)
