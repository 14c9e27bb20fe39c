"""batch_predict.py: on a cluster, under torchrun or alone, killed or not, it writes what predict.py writes."""

import json
import logging
import os
from pathlib import Path

import datasets
import pytest
import transformers
import yaml
from conftest import PROJECT, SAMPLE_DATA, Capture, Patch, check_message, read_lines, save_tiny_model, write_lines
from training_process import TORCHRUN, run_python

import predict

handlers, level = logging.root.handlers[:], logging.root.level
import batch_predict  # noqa: E402  Determined's module, which it imports, sets up the log of the whole process

logging.root.handlers[:], logging.root.level = handlers, level

SCRIPT = """
import contextlib, os, signal, sys
from pathlib import Path

sys.path[:0] = [sys.argv[1]]
import batch_predict
from stand_in import batch_task

size, written = int(os.environ["WORLD_SIZE"]), 0

def to_line(sentences, original=batch_predict.to_line):
    global written
    written += 1
    if os.environ["RANK"] == "1" and str(written) == os.environ.get("KILLED_AT"):
        os.kill(os.getpid(), signal.SIGKILL)  # in the midst of writing a shard
    return original(sentences)

batch_predict.to_line, batch_predict.CHECKPOINT_CHUNKS = to_line, 2
storage, checkpoint = os.environ.get("STORAGE"), os.environ.get("CHECKPOINT")
with batch_task(Path(storage), checkpoint, size) if storage else contextlib.nullcontext():
    batch_predict.main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that tags at random, but with the tags of the sample."""
    folder = save_tiny_model(tmp_path_factory.mktemp("model"), num_hidden_layers=1)
    labels = ["O", *(f"{prefix}-{name}" for name in ("PER", "LOC", "ORG", "MISC") for prefix in "BI")]
    config = transformers.AutoConfig.from_pretrained(folder, id2label=dict(enumerate(labels)), initializer_range=0.5)
    config.ner = {"label_scheme": "IOB2", "document_context": "neighbours"}
    transformers.AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(model: Path, tmp_path: Path) -> list[str]:
    """Arguments, but for the output, that cut the sample's 200 sentences into 6 chunks of whole documents."""
    rows = enumerate(read_lines(SAMPLE_DATA / "test.json"))
    file = write_lines([row | {"document_id": f"document {i // 5}"} for i, row in rows], tmp_path / "input.json")
    return ["--model", str(model), "--input", file, "--batch-size", "1"]


@pytest.fixture
def expected(arguments: list[str], tmp_path: Path) -> Path:
    """The folder with what predict.py writes: out.jsonl and a report."""
    (tmp_path / "expected").mkdir()
    predict.main([*arguments, "--output", str(tmp_path / "expected" / "out.jsonl")])
    return tmp_path / "expected"


def run_two(folder: Path, arguments: list[str], status: int = 0, **env: str) -> str:
    """Run the command in two processes of torchrun; returns what they wrote to their errors."""
    (folder / "script.py").write_text(SCRIPT)
    command = [*TORCHRUN, folder / "script.py", PROJECT / "tests", *arguments]
    return run_python(*command, status=status, folder=folder, PYTHONPATH=str(PROJECT), **env)[1]


def assert_same_files(folder: Path, expected: Path) -> None:
    files = [path.relative_to(expected) for path in expected.rglob("*") if path.is_file()]
    assert len(files) >= 3 and Path("out.jsonl") in files
    for file in files:
        found, told = ((where / file).read_bytes() for where in (folder, expected))
        assert found == told, file


def test_two_processes_of_which_one_was_killed(arguments: list[str], expected: Path, tmp_path: Path) -> None:
    assert "SIGKILL" in run_two(tmp_path, [*arguments, "--output", "out.jsonl"], status=1, KILLED_AT="3")
    shards = tmp_path / "out.jsonl.shards"
    first, *others = shards.glob("*.shard")
    assert 1 <= len(others) < 5 and not (tmp_path / "out.jsonl").exists()
    os.truncate(first, 10)  # as a loss of power may
    # What was tagged stays, whoever goes on: here the rest is done by one.
    batch_predict.main([*arguments, "--output", str(tmp_path / "out.jsonl")])
    assert not shards.exists()
    assert_same_files(tmp_path, expected)


def test_on_a_cluster_a_restart_after_a_kill_goes_on(arguments: list[str], expected: Path, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    command = [*arguments, "--output", "out.jsonl"]
    assert "SIGKILL" in run_two(tmp_path, command, status=1, KILLED_AT="3", STORAGE=str(storage))
    assert not (storage / "reports.jsonl").exists()
    (checkpoint,) = storage.glob("*/batch_completed.json")
    assert json.loads(checkpoint.read_text()) == {"batch_completed": 2}
    output = storage / json.loads(checkpoint.with_name("metadata.json").read_text())["default_output_uuid"]
    run_two(tmp_path, command, STORAGE=str(storage), CHECKPOINT=checkpoint.parent.name)
    shards = [path.relative_to(output) for path in output.rglob("*.shard")]
    assert sorted(map(str, shards)) == sorted(f"rank_{number % 2}/{number:08}.shard" for number in range(6))
    assert_same_files(output / "rank_0", expected)
    scores = json.loads((expected / "report" / "report.json").read_text())
    ((group, steps, metrics),) = read_lines(storage / "reports.jsonl")
    assert (group, steps) == ("test", 6) and metrics["f1"] == scores["overall"]["f1"] > 0
    assert metrics["accuracy_score"] == scores["accuracy"]


def test_the_shipped_experiment_gives_arguments_that_are_accepted() -> None:
    entrypoint = yaml.safe_load((PROJECT / "det_predict.yaml").read_text())["entrypoint"]
    launcher, _, given = entrypoint.partition(" batch_predict.py ")
    assert launcher == "python3 -m determined.launch.torch_distributed python3"
    assert predict.parse_arguments(given.split()).model.startswith("det://")


def test_text_and_columns_of_a_hub_data_set_are_written_alike(arguments: list[str], tmp_path: Path) -> None:
    rows = read_lines(SAMPLE_DATA / "test.json")
    texts = datasets.Dataset.from_list([{"text": " ".join(row["tokens"])} for row in rows])
    for split in ("dev", "test"):
        texts.to_parquet(tmp_path / "hub" / f"{split}-00000-of-00001.parquet")
    hub = ["--input", f"hf://{tmp_path / 'hub'}:test", "--min-score", "0.4"]
    for name in ("out.jsonl", "out.conll"):
        for module, folder in ((predict, tmp_path / "one"), (batch_predict, tmp_path / "many")):
            folder.mkdir(exist_ok=True)
            module.main([*arguments, *hub, "--output", str(folder / name)])
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    row = read_lines(tmp_path / "many" / "out.jsonl")[0]
    assert row["text"] == " ".join(rows[0]["tokens"]) and all(span["score"] >= 0.4 for span in row["spans"])


OTHERS = "out.jsonl.shards holds shards of another input, model or precision"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(["--output", "-"], "--input, --output: found -; accepted are names of files", id="stdout"),
        pytest.param(["--input", "hf://HUB"], "the splits validation, test; name one: hf://HUB:SPLIT", id="split"),
        pytest.param(["--input", "hf://:a"], "--input: cannot load hf://:a: it names none. Accepted", id="no-name"),
        pytest.param(["--input", "hf://HUB/gone:a"], "--input: cannot load hf://HUB/gone:a: ", id="no-data-set"),
        pytest.param(["--input", "hf://HUB-bad:train"], "hf://HUB-bad:train: JSON parse error: ", id="damaged"),
        pytest.param(["--batch-size", "2"], OTHERS, id="other-chunks"),
        pytest.param(["--precision", "bf16"], OTHERS, id="another-precision"),
        pytest.param(["--output", "HUB.csv"], "--output: found hub.csv; accepted are json lines (.jsonl)", id="csv"),
        pytest.param(["--output", "no/out.jsonl"], "--output: cannot write no/out.jsonl.shards: No such", id="folder"),
        pytest.param(["--model", "gone"], "--model: cannot load gone: there is no such folder", id="model"),
    ],
)
def test_a_mistake_is_told(
    arguments: list[str], tmp_path: Path, monkeypatch: Patch, capsys: Capture, change: list[str], said: str
) -> None:
    for split in ("dev", "test"):
        datasets.Dataset.from_list([{"text": "a"}]).to_parquet(tmp_path / "hub" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "hub-bad").mkdir()
    (tmp_path / "hub-bad" / "train.json").write_text("{")
    command = [*arguments, "--output", str(tmp_path / "out.jsonl")]
    if said == OTHERS:
        with monkeypatch.context() as patch, pytest.raises(TypeError):
            patch.setattr(batch_predict.Job, "merge", None)  # a stop between the last shard and the merged output
            batch_predict.main(command)
    change = [text.replace("HUB", str(tmp_path / "hub")) for text in change]
    with pytest.raises(SystemExit) as ended:
        batch_predict.main([*command, *change])
    assert ended.value.code == 1
    check_message(capsys.readouterr().err.splitlines()[-1], said.replace("HUB", str(tmp_path / "hub")))
    assert not (tmp_path / "out.jsonl").exists() and not (tmp_path / "hub.csv.shards").exists()
