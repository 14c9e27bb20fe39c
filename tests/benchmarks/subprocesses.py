"""What is measured in processes of their own: start-up, memory, and two processes against one.

subprocesses.py train|evaluate CONTENDER JOB     is such a process; JOB as json
"""

import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from contenders import Job, evaluate, make_model, ner_trial_arguments, train

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
MARK = "RESULT "
FIRST_STEP = """
import os, runpy, sys
from torch.optim.optimizer import register_optimizer_step_post_hook

register_optimizer_step_post_hook(lambda *_: print("FIRST STEP", flush=True) or os._exit(0))
sys.argv, sys.path[0] = sys.argv[1:], os.path.dirname(sys.argv[1])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script, and ends it with a mark once it has trained one step."""


def start(command: Sequence[str], mark: str, folder: str, **environment: str) -> tuple[dict[str, float], str]:
    """Start a process with caches in `folder`; seconds until it prints a line that begins with `mark`, and the line.

    Beside the clock's are the processors' seconds, user's and system's, which other work on the machine sways less.
    """
    variables = {
        "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{PROJECT}{os.pathsep}{HERE}",
        "HF_HOME": folder, "HF_DATASETS_CACHE": f"{folder}/datasets", "XDG_DATA_HOME": folder,
    }  # fmt: skip
    options: Any = {"cwd": PROJECT, "env": {**os.environ, **variables, **environment}, "text": True}
    with tempfile.TemporaryFile("w+") as errors:
        started, cpu_started = time.perf_counter(), sum(os.times()[2:4])  # of processes that have ended
        with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=errors, **options) as process:
            for line in process.stdout or ():
                if line.startswith(mark):
                    seconds = time.perf_counter() - started
                    process.communicate()
                    return {"seconds": seconds, "cpu_seconds": sum(os.times()[2:4]) - cpu_started}, line
        errors.seek(0)
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {errors.read()[-20000:]}")


def start_ups(job: Job) -> dict[str, Callable[[int], dict[str, float]]]:
    """Seconds from the start of a process to its first optimizer step, with empty caches and with filled ones."""
    cases = itertools.product(("warm", "cold"), ("NERTrial", "run_ner"))
    job = replace(job, num_batches=1)
    return {f"{name}, {cache}": functools.partial(start_up, job, name, cache) for cache, name in cases}


def start_up(job: Job, name: str, cache: str, _: int) -> dict[str, float]:
    script = [str(PROJECT / "train.py"), *ner_trial_arguments(job)]
    if name != "NERTrial":
        script = [str(HERE / "run_ner_reference.py"), "--model", job.model_dir, "--data", job.data_dir]
        script += ["--output-dir", tempfile.mkdtemp(dir=job.work_dir), "--max-steps", "1"]
    command = ["-c", FIRST_STEP, *script]
    if cache == "cold":
        with tempfile.TemporaryDirectory(dir=job.work_dir) as folder:
            return start(command, "FIRST STEP", folder)[0]
    warm = f"{job.work_dir}/start-up {name}"
    if not Path(warm).exists():
        start(command, "FIRST STEP", warm)
    return start(command, "FIRST STEP", warm)[0]


def scalings(job: Job) -> dict[str, Callable[[int], dict[str, float]]]:
    """Training in one process and in two, each with a thread of its own and batches of the same size."""
    cases = itertools.product(("NERTrial", "run_ner"), (1, 2))
    return {f"{name}, {n}": functools.partial(scaling, replace(job, num_processes=n), name) for name, n in cases}


def scaling(job: Job, name: str, index: int) -> dict[str, float]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.num_processes}"]
    launcher = launcher if job.num_processes > 1 else []
    job = replace(job, seed=job.seed + index)
    seconds = start_contender("train", name, job, f"{job.work_dir}/scaling", launcher)["seconds"]
    return {"seconds": seconds, "sentences_per_second": job.num_sentences / seconds}


def measure_memory(job: Job, num_sentences: int, num_types: int | None, model_dir: str) -> dict[str, Any]:
    """Each contender's evaluation of so many sentences in a fresh process, with a tiny model of that tokenizer.

    The sentences are the validation split, repeated; `num_types` entity types replace the data's own, if given.
    """
    with tempfile.TemporaryDirectory(dir=job.work_dir) as folder:
        label_names = repeat_data(Path(job.data_dir), Path(folder), num_sentences, num_types)
        model = make_model(model_dir, "tiny", label_names, Path(folder) / "model")
        part = replace(job, data_dir=folder, model_dir=model, work_dir=folder)
        results: dict[str, Any] = {"sentences": num_sentences, "labels": len(label_names)}
        for name in ("NERTrial", "run_ner"):
            results[name] = start_contender("evaluate", name, part, folder)
        return results


def repeat_data(source: Path, target: Path, num_sentences: int, num_types: int | None) -> list[str]:
    """Write a validation split of so many sentences, and a short training split that has all labels; return these.

    With `num_types`, the entities of each sentence get another one of so many types.
    """

    def rename(tags: list[str], kind: int) -> list[str]:
        return [tag if tag == "O" or num_types is None else f"{tag[:2]}type{kind % num_types}" for tag in tags]

    rows = {}
    for split, size in (("train", 64), ("validation", num_sentences)):
        lines = itertools.cycle((source / f"{split}.json").read_text().splitlines())
        parsed = map(json.loads, itertools.islice(lines, size))
        rows[split] = [{"tokens": r["tokens"], "ner_tags": rename(r["ner_tags"], i)} for i, r in enumerate(parsed)]
    label_names = sorted({tag for part in rows.values() for row in part for tag in row["ner_tags"]})
    if num_types is not None:
        label_names = sorted({"O", *(f"{mark}-type{kind}" for mark in "BI" for kind in range(num_types))})
    rows["train"].insert(0, {"tokens": label_names, "ner_tags": label_names})
    for split, part in rows.items():
        (target / f"{split}.json").write_text("\n".join(map(json.dumps, part)))
    return label_names


def start_contender(what: str, name: str, job: Job, folder: str, launcher: Sequence[str] = ()) -> dict[str, Any]:
    """Let a contender train, with a thread a process, or evaluate, in processes of its own; what was measured."""
    command = [*launcher, str(HERE / "subprocesses.py"), what, name, json.dumps(asdict(job))]
    _, line = start(command, MARK, folder, **({"OMP_NUM_THREADS": "1"} if what == "train" else {}))
    return json.loads(line.removeprefix(MARK))


def main() -> None:
    what, name, text = sys.argv[1:]
    fields = json.loads(text)
    job = Job(**{**fields, "overrides": tuple(fields["overrides"])})
    result = train(name, job, 0) if what == "train" else evaluate(name, job, 0, memory=True)
    if int(os.environ.get("RANK", "0")) == 0:
        print(MARK + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
