"""What is read while others work: steps and their parts, seconds, memory."""

import contextlib
import ctypes
import functools
import gc
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import psutil  # type: ignore[import-untyped]
import torch
import transformers
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data.dataloader import _BaseDataLoaderIter

PARTS = ("data", "forward", "backward", "clipping", "optimizer")
TIMED: tuple[tuple[str, Any, str], ...] = (
    ("data", _BaseDataLoaderIter, "__next__"), ("forward", transformers.PreTrainedModel, "__call__"),
    ("forward", torch.nn.functional, "cross_entropy"), ("backward", torch.Tensor, "backward"),
    ("clipping", torch.nn.utils, "clip_grad_norm_"),
)  # fmt: skip
"""The parts of a step but for the optimizer's, and the functions whose seconds they are."""


def now() -> float:
    """Seconds, after all that was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class StepWatch:
    """Times a training from its first forward pass to the end of its last optimizer step, and counts what it sees.

    Args:
        num_batches: Steps to time.
        parts: Time the parts of each step too, which waits for a GPU at each of them.
    """

    def __init__(self, num_batches: int, *, parts: bool = False) -> None:
        self.num_batches, self.with_parts = num_batches, parts
        self.parts: dict[str, float] = defaultdict(float)
        self.num_steps, self.num_padded_tokens, self.done = 0, 0, False
        self.lengths: list[torch.Tensor] = []
        self.within = False  # whether a part is being timed: one within another is the other's

    def see(self, model: torch.nn.Module) -> None:
        """Count the batches that the model is given."""
        self.model = model
        model.register_forward_pre_hook(self._on_forward, with_kwargs=True)

    def _on_forward(self, _: Any, __: Any, batch: dict[str, torch.Tensor]) -> None:
        if not self.lengths:
            self.parts.clear()
            self.started = now()
        self.lengths.append(batch["attention_mask"].sum(1))
        self.num_padded_tokens += batch["attention_mask"].numel()

    def _before_step(self, *_: Any) -> None:
        self.step_started = now()

    def _on_step(self, *_: Any) -> None:
        if self.with_parts:
            self.parts["optimizer"] += now() - self.step_started
        self.num_steps += 1
        self.done = self.num_steps >= self.num_batches
        if self.done:
            self.seconds = now() - self.started

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            if self.within or self.done:
                return function(*arguments, **options)
            self.within, started = True, now()
            try:
                return function(*arguments, **options)
            finally:
                self.within = False
                self.parts[part] += now() - started

        return timed

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the steps of the body, and their parts."""
        with contextlib.ExitStack() as stack:
            stack.callback(register_optimizer_step_post_hook(self._on_step).remove)
            if self.with_parts:
                stack.callback(register_optimizer_step_pre_hook(self._before_step).remove)
                for part, owner, name in TIMED:
                    stack.enter_context(mock.patch.object(owner, name, self._timed(part, getattr(owner, name))))
            yield

    def results(self) -> dict[str, Any]:
        lengths = torch.cat(self.lengths[: self.num_batches]).cpu().double()
        seconds = {part: self.parts[part] for part in PARTS}
        seconds["rest"] = self.seconds - sum(seconds.values())
        return {
            "seconds": self.seconds,
            "sentences": len(lengths),
            "sentences_per_second": len(lengths) / self.seconds,
            "tokens_per_second": float(lengths.sum()) / self.seconds,
            "real_tokens": float(lengths.sum()) / self.num_padded_tokens,
            "flops_per_second": count_flops(self.model, lengths) / self.seconds,
            "step_milliseconds": {part: 1000 * s / self.num_batches for part, s in seconds.items()},
        }


def count_flops(model: Any, lengths: torch.Tensor) -> float:
    """The arithmetic of training on sentences of so many tokens: 6 for each weight and token, and attention."""
    config = getattr(model, "module", model).config
    weights = sum(p.numel() for name, p in model.named_parameters() if "embeddings" not in name)
    attention = 12 * config.num_hidden_layers * config.hidden_size * float((lengths**2).sum())
    return 6 * weights * float(lengths.sum()) + attention


def measure_matmul(precision: str) -> float:
    """FLOP/s of the device's own matrix product: the best of ten."""
    cuda = torch.cuda.is_available()
    size, dtype = 8192 if cuda else 2048, torch.float32 if precision == "fp32" else torch.bfloat16
    a, b = torch.randn(2, size, size, dtype=dtype, device="cuda" if cuda else "cpu")
    seconds = []
    for _ in range(10):
        started = now()
        a @ b
        seconds.append(now() - started)
    return 2 * size**3 / min(seconds)


class Meter:
    """Measures seconds, and on request memory, between `start` and `stop`.

    Args:
        memory: Look at the process's own memory, without files that are mapped into it, a hundred times a second.
    """

    def __init__(self, *, memory: bool = False) -> None:
        self.stopped, self.with_memory, self.bytes = threading.Event(), memory, list[int]()

    def start(self) -> None:
        if self.with_memory:
            gc.collect()
            if sys.platform == "linux":
                ctypes.CDLL(None).malloc_trim(0)  # memory that is free but kept would hide what is needed next
            self._look_at_memory()
            threading.Thread(target=self._watch_memory, daemon=True).start()
        self.started = now()

    def _look_at_memory(self) -> None:
        memory = psutil.Process().memory_info()
        self.bytes.append(int(memory.rss - getattr(memory, "shared", 0)))

    def _watch_memory(self) -> None:
        while not self.stopped.wait(0.01):
            self._look_at_memory()

    def stop(self) -> None:
        self.seconds = now() - self.started
        self.stopped.set()
        if self.with_memory:
            self._look_at_memory()

    def results(self) -> dict[str, float]:
        peak = {"peak_mib": (max(self.bytes) - self.bytes[0]) / 2**20} if self.bytes else {}
        return {"seconds": self.seconds, **peak}
