"""What is measured in processes of their own: start-up, memory, two processes against one, and prediction.

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
from prediction import OURS, PIPELINES

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
FIRST_STEP = """
import os, runpy, sys
from torch.optim.optimizer import register_optimizer_step_post_hook

register_optimizer_step_post_hook(lambda *_: os._exit(0))
sys.argv, sys.path[0] = sys.argv[1:], os.path.dirname(sys.argv[1])
runpy.run_path(sys.argv[0], run_name="__main__")
sys.exit("It ended without a step.")
"""
"""Runs a script, and ends it once it has trained one step."""

Contestants = dict[str, Callable[[int], dict[str, Any]]]


def start(command: Sequence[str], folder: str, **environment: str) -> tuple[dict[str, float], str]:
    """Run Python with caches in `folder`; the seconds that it takes, and the last line that it prints.

    Beside the clock's are the processors' seconds, user's and system's, which other work on the machine sways less.
    """
    variables = {
        "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{PROJECT}{os.pathsep}{HERE}",
        "HF_HOME": folder, "HF_DATASETS_CACHE": f"{folder}/datasets", "XDG_DATA_HOME": folder,
    }  # fmt: skip
    options: Any = {"cwd": PROJECT, "env": {**os.environ, **variables, **environment}, "text": True}
    started, cpu_started = time.perf_counter(), sum(os.times()[2:4])  # of processes that have ended
    process = subprocess.run([sys.executable, *command], capture_output=True, **options)
    seconds, cpu_seconds = time.perf_counter() - started, sum(os.times()[2:4]) - cpu_started
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {process.stderr[-20000:]}")
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}, "".join(process.stdout.splitlines()[-1:])


def start_ups(job: Job) -> Contestants:
    """Seconds from the start of a process to its first optimizer step, with empty caches and with filled ones."""
    cases = itertools.product(("warm", "cold"), ("NERTrial", "run_ner"))
    job = replace(job, num_batches=1)
    return {f"{name}, {cache}": functools.partial(start_up, job, name, cache) for cache, name in cases}


def start_up(job: Job, name: str, cache: str, _: int) -> dict[str, float]:
    script = [str(PROJECT / "train.py"), *ner_trial_arguments(job)]
    if name != "NERTrial":
        script = [str(HERE / "run_ner_reference.py"), "--model", job.model_dir, "--data", job.data_dir]
        script += ["--output-dir", tempfile.mkdtemp(dir=job.work_dir), "--max-steps", "1"]
    folder = f"{job.work_dir}/start-up {name}" if cache == "warm" else tempfile.mkdtemp(dir=job.work_dir)
    if cache == "warm" and not Path(folder).exists():
        start(["-c", FIRST_STEP, *script], folder)
    return start(["-c", FIRST_STEP, *script], folder)[0]


def scalings(job: Job) -> Contestants:
    """Training in one process and in two, each with a thread of its own and batches of the same size."""
    cases = itertools.product(("NERTrial", "run_ner"), (1, 2))
    return {f"{name}, {n}": functools.partial(scaling, replace(job, num_processes=n), name) for name, n in cases}


def scaling(job: Job, name: str, index: int) -> dict[str, float]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.num_processes}"]
    launcher = launcher if job.num_processes > 1 else []
    job = replace(job, seed=job.seed + index)
    seconds = start_contender("train", name, job, f"{job.work_dir}/scaling", launcher)["seconds"]
    return {"seconds": seconds, "sentences_per_second": job.num_sentences / seconds}


def predictions(job: Job) -> Contestants:
    """Who tags the words of the validation split, in seconds of the process and of tagging alone."""
    rows = map(json.loads, Path(job.data_dir, "validation.json").read_text(encoding="utf-8").splitlines())
    lines = [json.dumps({"tokens": row["tokens"]}) for row in rows]
    Path(job.work_dir, "untagged.jsonl").write_text("\n".join(lines))
    return {name: functools.partial(predict, job, name) for name in (*OURS, *PIPELINES)}


def predict(job: Job, name: str, _: int) -> dict[str, Any]:
    model, file, output = job.model_dir, f"{job.work_dir}/untagged.jsonl", f"{job.work_dir}/{name}.jsonl"
    whole, tagging = start([str(HERE / "prediction.py"), name, model, file, output], job.work_dir)
    if name in OURS:
        options = ["--model", model, "--input", file, "--output", output, "--precision", OURS[name]]
        whole = start([str(PROJECT / "predict.py"), *options], job.work_dir)[0]
    rows = map(json.loads, Path(output).read_text(encoding="utf-8").splitlines())
    tags = [tag for row in rows for tag in row["tags"]]
    return {"seconds": whole["seconds"], "tagging": float(tagging), "tags": tags}


def measure_memory(job: Job, num_sentences: int, num_types: int | None, model_dir: str) -> dict[str, Any]:
    """Each contender's evaluation of so many sentences in a fresh process, with a tiny model of that tokenizer.

    The sentences are the validation split, repeated; `num_types` entity types replace the data's own, if given.
    """
    with tempfile.TemporaryDirectory(dir=job.work_dir) as folder:
        label_names = repeat_data(Path(job.data_dir), Path(folder), num_sentences, num_types)
        model = make_model(model_dir, "tiny", label_names, Path(folder) / "model")
        part = replace(job, data_dir=folder, model_dir=model, work_dir=folder)
        found = {name: start_contender("evaluate", name, part, folder) for name in ("NERTrial", "run_ner")}
    return {"sentences": num_sentences, "labels": len(label_names), **found}


def repeat_data(source: Path, target: Path, num_sentences: int, num_types: int | None) -> list[str]:
    """Write a validation split of so many sentences, and a short training split that has all labels; return these.

    With `num_types`, the entities of each sentence get another one of so many types.
    """
    rows: dict[str, list[dict[str, list[str]]]] = {}
    for split, size in (("train", 64), ("validation", num_sentences)):
        lines = itertools.cycle((source / f"{split}.json").read_text().splitlines())
        rows[split] = [*map(json.loads, itertools.islice(lines, size))]
        for number, row in enumerate(rows[split]):
            if num_types is not None:
                kind = f"type{number % num_types}"
                row["ner_tags"] = [tag if tag == "O" else f"{tag[:2]}{kind}" for tag in row["ner_tags"]]
    labels = {tag for part in rows.values() for row in part for tag in row["ner_tags"]}
    label_names = sorted(labels | {f"{mark}-type{kind}" for mark in "BI" for kind in range(num_types or 0)})
    rows["train"].insert(0, {"tokens": label_names, "ner_tags": label_names})
    for split, part in rows.items():
        (target / f"{split}.json").write_text("\n".join(map(json.dumps, part)))
    return label_names


def start_contender(what: str, name: str, job: Job, folder: str, launcher: Sequence[str] = ()) -> dict[str, Any]:
    """Let a contender train, with a thread a process, or evaluate, in processes of its own; what was measured."""
    command = [*launcher, str(HERE / "subprocesses.py"), what, name, json.dumps(asdict(job))]
    return json.loads(start(command, folder, **({"OMP_NUM_THREADS": "1"} if what == "train" else {}))[1])


if __name__ == "__main__":
    what, name, text = sys.argv[1:]
    job = Job(**json.loads(text))
    result = train(name, job, 0) if what == "train" else evaluate(name, job, 0, memory=True)
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(result))
