"""A seeded fuzzer: mutated configurations, command lines, data files and exported models.

None ends in a traceback or a signal, touches a file outside of its output folder, or lets a secret into any file.
FUZZ_SECONDS says for how long, FUZZ_SEED where to begin; a failure names its seed.
"""

import itertools
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PROJECT, Capture, Config
from test_ner_formats import CASES, SENTENCES, write_file
from test_safety import contents_of
from test_secrets import KEYS, VALUES
from test_tools import TOOLS
from training_process import CONTEXT, Run, send_output_to
from training_process import run as run  # a fixture

from ner.formats import FILE_FORMATS

SECONDS, SEED = float(os.environ.get("FUZZ_SECONDS", "60")), int(os.environ.get("FUZZ_SEED", "0"))
PLANTED = "PlantedByTheFuzzer"  # shows itself to be nothing: its key has to tell
SECRETS = [*((key, PLANTED) for key in KEYS), *(("description", value) for value in VALUES if "planted" not in value)]
NEEDLES = [
    value.encode() for value in (PLANTED, "abcdefghijklmnopqrst", "pa55", "MIIE", "SflKxwRJSM", "1234567890-abc")
]
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 10**20, 0.5, float("nan"), float("inf"), "", " ", "x", "\x1b[31m", "\u202e", "\0",
    "../../up", "~nobody/x", "~nouser/x", "\ud83d", "é" * 300, [], [1], [[]], {}, {"a": 1}, {"type": "int"}, "no",
    "1e-3", "/dev/null", "2024-01-01", "auto",
]  # fmt: skip

Case = tuple[str, list[str]]


def run_case(
    program: str, arguments: list[str], log: Path, folder: Path, change: Callable[[], object] = int
) -> None:  # fmt: skip
    send_output_to(log)
    import predict
    from ner_trial import NERTrial
    from transformer_trial import local

    os.chdir(folder)
    change()
    predict.main(arguments) if program == "predict" else local.run(NERTrial, arguments)


def mutate_tree(rng: random.Random, value: Any) -> Any:
    """Change, misspell, add or remove something somewhere in mappings and lists."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key, (name, secret) = rng.choice(list(value)), rng.choice(SECRETS)
        others = {other: value[other] for other in value if other != key}
        half = len(str(key)) // 2
        changes = [
            {**value, key: mutate_tree(rng, value[key])},
            {**others, f"{str(key)[:half]}{rng.choice('xyz_')}{str(key)[half:]}": value[key]},
            {**value, name: secret}, {**value, rng.choice(["new", 5]): 5}, others,
        ]  # fmt: skip
        return rng.choices(changes, (12, 3, 2, 1, 2))[0]
    if isinstance(value, list) and value and rng.random() < 0.7:
        i = rng.randrange(len(value))
        return [*value[:i], mutate_tree(rng, value[i]), *value[i + 1 :]]
    return rng.choice(ODD)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.randint(1, 4)):
        i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        j = min(j, i + 40)
        piece = rng.choice(
            [b"", b"\xff", b"\0", b"\t", b"\n\n", b'"', b"[[", b"{", b"\r", b"B-", data[i:j] * 3, "é😀".encode()]
        )
        data = rng.choice([data[:i] + piece + data[j:], data[:i] + piece + data[i:], data[:i] or b"x"])
    return data


def write_data(rng: random.Random, folder: Path, options: Config) -> str:
    """Write data of some format or tool to a folder, damaged, and add its options; return its file's name."""
    if rng.random() < 0.5:
        written = [t for t in TOOLS.values() if all(isinstance(c, (str, bytes)) for c in t.files.values())]
        tool = rng.choice(written)
        files, others = dict(tool.files), tool.options
    else:
        case = rng.choice(list(CASES.values()))
        content = case.write([sentence for sentence in SENTENCES if case.holds(sentence[0])])
        files, others = {f"a.{case.ending}": content}, case.options
    options |= others if rng.random() < 0.8 else {}
    for name, content in files.items():
        write_file(folder / name, content)
    name = rng.choice(list(files))
    damaged = mutate_bytes(rng, (folder / name).read_bytes())
    if rng.random() < 0.1:  # what its name does not say
        name = f"b.{rng.choice([*FILE_FORMATS, '.spacy', '.ann', '.json.gz', '.xz', '.csv.zst']).lstrip('.')}"
    (folder / name).write_bytes(damaged)
    return name


def make_case(rng: random.Random, folder: Path, config: Config, model: Path) -> Case:
    """Write what a case needs into the folder, and return its program and arguments."""
    kind = rng.choice(["config", "command", "data", "data", "model"])
    given, data = json.loads(json.dumps(config)), folder / "data"

    def tag(model: Path, file: Path | str) -> Case:
        output = str(folder / "out" / "o.jsonl")
        return "predict", ["--model", str(model), "--input", str(file), "--output", output]

    if kind == "data":
        given["data"] |= {"train_file": str(data / write_data(rng, data, given["data"]))}
        if rng.random() < 0.4:
            return tag(model, given["data"]["train_file"])
    if kind == "config":
        for _ in range(rng.randint(1, 3)):
            given = mutate_tree(rng, given)
    if kind == "model":
        copy = shutil.copytree(model, folder / "model")
        file = rng.choice([file for file in copy.iterdir() if file.suffix == ".json"])
        if rng.random() < 0.8:
            changed = json.dumps(mutate_tree(rng, json.loads(file.read_text())))
            for needle in NEEDLES:  # what others' models hold is theirs
                changed = changed.replace(needle.decode(), "x")
            file.write_text(changed)
        else:
            target = rng.choice(list(copy.iterdir()))
            target.write_bytes(mutate_bytes(rng, target.read_bytes()))
        if rng.random() < 0.7:
            return tag(copy, data / "in.txt")
        given["hyperparameters"]["pretrained_model_name_or_path"] = str(copy)
    (folder / "config.yaml").write_text(yaml.safe_dump(given, allow_unicode=True))
    arguments = [str(folder / "config.yaml"), rng.choice(["--test", "--inspect"])]
    arguments += ["--output-dir", str(folder / "out" / "run")]
    if kind == "command":
        keys = "hyperparameters.learning_rate data.train_file searcher name a.b.c data min_validation_period".split()  # noqa: SIM905
        for _ in range(rng.randint(1, 3)):
            odd = str(rng.choice(ODD)).replace("\0", "")
            arguments += rng.choice(
                [["--config", f"{rng.choice(keys)}={odd}"], ["--config", odd], ["--resume", odd], ["--epochs", "0"],
                 ["--batches", odd], ["--train-file", odd], [odd]]
            )  # fmt: skip
    return "train", arguments


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".") and path.name != "outputs"}


@pytest.mark.slow
def test_no_input_ends_in_a_traceback_a_signal_a_touched_file_or_a_leak(
    config: Config, run: Run, tmp_path: Path, capsys: Capture
) -> None:
    config["data"] |= {"max_train_samples": 20, "max_eval_samples": 10}
    config["searcher"]["max_length"] = {"batches": 2}
    run("run")
    failures, end, count = list[str](), time.monotonic() + SECONDS, 0
    for seed in itertools.count(SEED):
        if time.monotonic() > end or len(failures) > 5:
            break
        folder = tmp_path / f"case{seed}"
        out = folder / "out"
        for name in ("data", "out", "precious"):
            (folder / name).mkdir(parents=True)
        (folder / "data" / "in.txt").write_text("Ada lives in London\n")
        (folder / "precious" / "file").write_text("precious")
        program, arguments = make_case(random.Random(seed), folder, config, tmp_path / "run" / "model")
        before, beside = contents_of(folder), names_in(PROJECT)
        process = CONTEXT.Process(target=run_case, args=(program, arguments, out / "log", folder))
        process.start()
        process.join(120)
        after = contents_of(folder)
        log = after.get(out / "log", b"").decode(errors="replace")
        written = {path for path in after if path.is_relative_to(out)}
        leaks = [str(path) for path in written if any(needle in after[path] for needle in NEEDLES)]
        touched = [str(path) for path in {*before, *after} - written if after.get(path) != before.get(path)]
        touched += sorted(names_in(PROJECT) ^ beside)
        problems = [
            "a traceback" if "Traceback" in log else "",
            f"status {process.exitcode}" if process.exitcode not in (0, 1, 2) else "",
            f"touched {touched}" if touched else "",
            f"a secret in {leaks}" if leaks else "",
        ]
        if found := ", ".join(filter(None, problems)):
            failures.append(f"seed {seed}: {found}: {program} {arguments}\n{log[-1500:]}")
        process.kill()
        shutil.rmtree(folder)
        count += 1
    with capsys.disabled():
        print(f"\n{count} inputs tried, from seed {SEED} on: {len(failures)} failures")
    assert failures == [] and not (PROJECT / "outputs" / "up").exists(), "\n\n".join(failures)
