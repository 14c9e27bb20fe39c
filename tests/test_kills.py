"""Training processes killed at random moments: KILLS of them, 20 unless the environment says otherwise."""

import collections
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_resume import KILL, assert_same_run, config, dropout_model  # noqa: F401
from training_process import PHASES, Training

NUM_KILLS = int(os.environ.get("KILLS", "20"))


@pytest.mark.slow
def test_every_kill_is_survived(
    config: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config | {"min_checkpoint_period": {"batches": 2}}))
    seed = random.randrange(2**32)
    rng, folder, num_runs = random.Random(seed), tmp_path / "run", 0
    command = [str(file), "--output-dir", str(folder), "--resume", "auto"]
    begun = time.monotonic()
    assert Training(command, tmp_path / "log").wait() == 0
    seconds = time.monotonic() - begun
    whole_run = folder.rename(tmp_path / "whole")
    killed_in: collections.Counter[str] = collections.Counter()
    while sum(killed_in.values()) < NUM_KILLS:
        # At a moment at random, or as a phase begins: the short ones would seldom be hit.
        phase, call = rng.choice(tuple(PHASES)), rng.choice((1, 1, 2, 3))
        process = Training(command, tmp_path / "log", [(phase, call, KILL)] if rng.random() < 0.5 else ())
        process.process.join(rng.uniform(0.1, 0.9) * seconds)
        phase = process.phase_name()
        process.process.kill()
        status = process.wait()
        assert status in (0, -KILL), f"seed {seed}:\n{(tmp_path / 'log').read_text()}"
        if status == 0:
            assert_same_run(folder, whole_run)
            shutil.rmtree(folder)
            num_runs += 1
        else:
            killed_in[phase] += 1
    assert Training(command, tmp_path / "log").wait() == 0, f"seed {seed}:\n{(tmp_path / 'log').read_text()}"
    assert_same_run(folder, whole_run)
    counts = ", ".join(f"{count} in {phase}" for phase, count in killed_in.most_common())
    with capsys.disabled():
        print(f"\n{NUM_KILLS} kills ({counts}): {num_runs + 1} runs, each equal to one that was left alone")
