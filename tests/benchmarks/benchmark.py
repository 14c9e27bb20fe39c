"""Measure NERTrial against run_ner.py and against the arithmetic alone, in turns, and print medians and spreads.

    python3 tests/benchmarks/benchmark.py [--data DIR --model DIR] [--only training ...] [--json FILE]

DIR holds `train.json` and `validation.json`, JSON lines of `tokens` and `ner_tags`; the default is the sample. Ratios
are of sentences a second, NERTrial's to the other's, of the same round; above 1 NERTrial is the faster one. The
contenders are those of contenders.py. Nothing else should run on the machine meanwhile.
"""

import argparse
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

import contenders  # noqa: E402
import datasets  # noqa: E402
import meters  # noqa: E402
import prediction  # noqa: E402
import subprocesses  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tabulate import tabulate  # noqa: E402

SAMPLE = PROJECT / "sample"
SECTIONS = ("training", "evaluation", "prediction", "memory", "start-up", "scaling")
PACKAGES = ("determined", "torch", "transformers", "accelerate", "datasets", "seqeval", "numpy")

Results = dict[str, list[dict[str, Any]]]


def parse_arguments() -> argparse.Namespace:
    cuda, sizes = torch.cuda.is_available(), ["small", "bert-base"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=SAMPLE / "data", metavar="DIR")
    model_help = "a model, or its config, and tokenizer"
    add("--model", default=str(SAMPLE / "model"), metavar="DIR", help=model_help)
    add("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    add("--rounds", type=int, default=5)
    add("--batches", type=int, default=200, help="of a training in a round")
    add("--batch-size", type=int, nargs="+", default=[8, 32] if cuda else [8], help="several: one after the other")
    add("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"] if cuda else ["fp32"])
    size_help = "small: that of --model; bert-base: of that shape, with random weights"
    add("--model-size", nargs="+", choices=sizes, default=sizes if cuda else sizes[:1], help=size_help)
    add("--threads", type=int, help="of torch (default: torch's own)")
    config_help = "of NERTrial, such as data.group_by_length=true"
    add("--config", action="append", default=[], metavar="KEY=VALUE", help=config_help)
    add("--memory-sentences", type=int, default=50_000, help="to evaluate")
    add("--memory-labels", type=int, nargs="*", default=[9, 65, 257], help="odd numbers, on a tenth of the sentences")
    add("--json", type=Path, metavar="FILE", help="keep all that was measured")
    return parser.parse_args()


def describe_machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = re.findall(r"^model name\s*: (.*)", info, re.MULTILINE)
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def take_turns(contestants: Mapping[str, Callable[[int], dict[str, Any]]], rounds: int) -> Results:
    """Let each contestant do a round, then each another, beginning with another one every time."""
    names = list(contestants)
    results: Results = {name: [] for name in names}
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(contestants[name](index))
            print(f"round {index + 1} of {rounds}: {name}", file=sys.stderr)
    return results


def spread(values: Sequence[float], digits: int) -> list[str]:
    return [f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))]


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    align = ("left", *["right"] * (len(header) - 1))
    print(f"\n{title}\n\n{tabulate(rows, header, 'plain', colalign=align, disable_numparse=True)}")


def print_speeds(
    title: str, results: Results, unit: str = "sentences_per_second", *, pairs: Any = None, label: str = "{} / {}",
    more: Mapping[str, Mapping[str, str]] = {}, digits: tuple[int, int] = (1, 3),
) -> None:  # fmt: skip
    """Tables of what each contestant reached, and of the ratios of each round.

    `pairs` says whose ratios; None: those of the first contestant to each other one. `more` are further columns.
    """
    rounds = {name: [r[unit] for r in found] for name, found in results.items()}
    rows = [[n, *spread(rounds[n], digits[0]), *(column[n] for column in more.values())] for n in rounds]
    print_table(title, ("", "median", "min", "max", *more), rows)
    pairs = pairs or [*itertools.product([*results][:1], [*results][1:])]
    ratios = {pair: [a / b for a, b in zip(*(rounds[name] for name in pair))] for pair in pairs}
    rows = [[label.format(*pair), *spread(ratios[pair], digits[1])] for pair in pairs]
    print_table("Ratios of the same round:", ("", "median", "min", "max"), rows)


def measure_training(job: contenders.Job, rounds: int, title: str) -> dict[str, Any]:
    """The parts of a step first, which also warms up what is timed after it."""
    contestants = {name: functools.partial(contenders.train, name, job) for name in contenders.TRAINERS}
    parts = {name: train(0, parts=True)["step_milliseconds"] for name, train in contestants.items()}
    results = take_turns(contestants, rounds)
    matmul = meters.measure_matmul(job.precision)
    columns = (
        ("real tokens/s", "tokens_per_second", 1, 0),
        ("real/padded", "real_tokens", 1, 3),
        ("useful TFLOP/s", "flops_per_second", 1e12, 3),
        (f"part of {matmul / 1e12:.2f}", "flops_per_second", matmul, 3),  # what a plain matrix product reaches
    )
    more = {
        head: {n: f"{statistics.median(r[key] for r in found) / by:,.{digits}f}" for n, found in results.items()}
        for head, key, by, digits in columns
    }
    print_speeds(f"Training, sentences a second ({title}):", results, more=more)
    rows = [[name, *(f"{ms:.2f}" for ms in (*split.values(), sum(split.values())))] for name, split in parts.items()]
    print_table("Milliseconds of a step, each part waited for:", ("", *meters.PARTS, "rest", "sum"), rows)
    return {"rounds": results, "step_milliseconds": parts, "matmul_flops_per_second": matmul}


def measure_memory(job: contenders.Job, options: argparse.Namespace) -> list[dict[str, Any]]:
    sizes = [(options.memory_sentences, None)]
    sizes += [(options.memory_sentences // 10, (labels - 1) // 2) for labels in options.memory_labels]
    results = [subprocesses.measure_memory(job, *size, options.model) for size in sizes]
    names = contenders.EVALUATORS
    rows = [[f"{r['sentences']:,}", f"{r['labels']}", *(f"{r[n]['peak_mib']:,.1f}" for n in names)] for r in results]
    title = "Evaluation, peak memory in MiB above that before it (a tiny model):"
    print_table(title, ("sentences", "labels", *names), rows)
    return results


def measure_prediction(job: contenders.Job, rounds: int) -> dict[str, Any]:
    """Whole processes, and tagging alone; the ratios are of seconds, to the fastest one of `pipeline`'s variants."""
    results = take_turns(subprocesses.predictions(job), rounds)
    expected = results["predict.py"][0]["tags"]
    changed = {name: sum(a != b for a, b in zip(r[0]["tags"], expected)) for name, r in results.items()}
    more = {"other tags": {name: f"{count:,}" for name, count in changed.items()}}
    for key, what in (("seconds", "the whole process"), ("tagging", "tagging alone")):
        best = min(prediction.PIPELINES, key=lambda name: statistics.median(r[key] for r in results[name]))
        pairs, label = [(best, name) for name in prediction.OURS], "{1}, times as fast as {0}"
        print_speeds(
            f"Prediction, seconds of {what}:", results, key, pairs=pairs, label=label, more=more, digits=(2, 2)
        )
    rounds_found = {n: [{k: r[k] for k in ("seconds", "tagging")} for r in found] for n, found in results.items()}
    return {"rounds": rounds_found, "other_tags": changed, "words": len(expected)}


def measure(options: argparse.Namespace, work_dir: Path, found: dict[str, Any]) -> None:
    """Add to `found` everything that was asked for; the sections that no size or precision changes once only."""
    found |= {"command": sys.argv, "machine": describe_machine(), "training": {}, "evaluation": {}}
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    files = [options.data / f"{split}.json" for split in ("train", "validation")]
    label_names = sorted({tag for file in files for line in file.open() for tag in json.loads(line)["ner_tags"]})
    models = {s: contenders.make_model(options.model, s, label_names, work_dir / s) for s in options.model_size}
    sizes = itertools.product(options.model_size, options.precision, options.batch_size)
    jobs = {
        f"{size}, {precision}, batch {batch_size}": contenders.Job(
            models[size], str(options.data.resolve()), str(work_dir), batch_size, options.batches,
            precision=precision, overrides=tuple(options.config),
        )
        for size, precision, batch_size in sizes
    }  # fmt: skip
    first = next(iter(jobs.values()))
    for title, job in jobs.items():
        if "training" in options.only:
            found["training"][title] = measure_training(job, options.rounds, title)
        if "evaluation" in options.only:
            evaluators = {name: functools.partial(contenders.evaluate, name, job) for name in contenders.EVALUATORS}
            found["evaluation"][title] = {"rounds": take_turns(evaluators, options.rounds)}
            what = f"Evaluation with metrics, sentences a second ({title}):"
            print_speeds(what, found["evaluation"][title]["rounds"])
    if "prediction" in options.only:
        found["prediction"] = measure_prediction(first, options.rounds)
    if "memory" in options.only:
        found["memory"] = measure_memory(first, options)
    if "start-up" in options.only:
        found["start-up"] = results = take_turns(subprocesses.start_ups(first), options.rounds)
        pairs = [(f"NERTrial, {cache}", f"run_ner, {cache}") for cache in ("warm", "cold")]
        print_speeds("Seconds to the first optimizer step (warm: with filled caches):", results, "seconds", pairs=pairs)
        print_speeds("The same, seconds of the processors:", results, "cpu_seconds", pairs=pairs)
    if "scaling" in options.only:
        found["scaling"] = results = take_turns(subprocesses.scalings(first), options.rounds)
        pairs = [("NERTrial, 2", "NERTrial, 1"), ("run_ner, 2", "run_ner, 1"), ("NERTrial, 2", "run_ner, 2")]
        print_speeds("Sentences a second of 1 and 2 processes with a thread each (2 is perfect):", results, pairs=pairs)


def main() -> None:
    options = parse_arguments()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the processes that are started
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    found: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            datasets.config.HF_DATASETS_CACHE = Path(folder) / "datasets"
            measure(options, Path(folder), found)
    finally:  # what was measured until a failure took an hour, perhaps
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
