"""Run a script, and end it with a mark once it has trained one step: `first_step.py SCRIPT [ARGUMENT ...]`."""

import os
import runpy
import sys
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook


def stop(*_: Any) -> None:
    print("FIRST STEP", flush=True)
    os._exit(0)


if __name__ == "__main__":
    register_optimizer_step_post_hook(stop)
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
