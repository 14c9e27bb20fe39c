"""What the tests share: tiny models made on the spot, small data, and ways to train that need no cluster."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests" / "benchmarks")]
os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported: no test ever asks a hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start: their models are tiny

import datasets  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import yaml  # noqa: E402
from determined import pytorch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from ner_trial import NERTrial  # noqa: E402
from transformer_trial import local  # noqa: E402
from transformer_trial.callbacks import build_callbacks  # noqa: E402
from transformer_trial.errors import PrintableFormatter, TrialError  # noqa: E402

Config = dict[str, Any]
"""An experiment configuration."""
Fit = Callable[..., Any]
"""The fixture `fit`."""
Patch = pytest.MonkeyPatch
Log = pytest.LogCaptureFixture
Capture = pytest.CaptureFixture[str]
"""The fixtures `monkeypatch`, `caplog`, and `capsys` or `capfd`."""

for name, max_examples in (("fast", 25), ("full", 60)):
    steady: Config = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile(name, max_examples=max_examples, **steady)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))  # CI takes the full one

SAMPLE_DATA = PROJECT / "sample" / "data"
SAMPLE_MODEL = PROJECT / "sample" / "model"
SHARED_DATA = PROJECT.parent / "shared" / "data"

needs_wnut = pytest.mark.skipif(not (SHARED_DATA / "wnut17").is_dir(), reason="../shared/data/wnut17 is not there")


def slow(*values: Any, id: str | None = None) -> Any:
    """A row of a table of tests that takes long."""
    return pytest.param(*values, id=id, marks=pytest.mark.slow)


def watch(owner: Any, name: str, patch: pytest.MonkeyPatch, *, first: Any = None, then: Any = None) -> None:
    """Let a function call `first` with its arguments before it runs, or `then` with its result and its arguments."""
    original = getattr(owner, name)

    def watched(*arguments: Any, **options: Any) -> Any:
        if first is not None:
            first(*arguments, **options)
        result = original(*arguments, **options)
        if then is not None:
            then(result, *arguments, **options)
        return result

    patch.setattr(owner, name, watched)


def read_lines(path: Path) -> list[Any]:
    """The rows of a file of json lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(rows: Iterable[Any], path: Path) -> str:
    """Write rows as json lines; returns the name of the file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_config(config: Config, folder: Path, output: str = "run") -> list[str]:
    """Write config.yaml to a folder; returns what `train.py` takes to train it into another one in that folder."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return [str(folder / "config.yaml"), "--output-dir", str(folder / output)]


def train_here(*arguments: str) -> None:
    """Train as `train.py` does with a command line, in this process; what that sets is undone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "set_up_logging", lambda on_cluster: None)
        patch.setenv("XDG_DATA_HOME", "what the run sets is undone")
        patch.chdir(PROJECT)
        local.run(NERTrial, arguments)


@contextlib.contextmanager
def refuses(*said: str) -> Iterator[pytest.ExceptionInfo[TrialError]]:
    """Expects an error of one paragraph that holds these texts."""
    with pytest.raises(TrialError) as raised:
        yield raised
    check_message(str(raised.value), *said)


def check_message(message: str, *said: str) -> None:
    """Asserts that a message is one paragraph that holds these texts, or counts problems and lists the first five."""
    assert [text for text in said if text not in message] == [], message
    assert "Traceback" not in message
    problems = message.partition(" has a problem:\n  - ")[2] or message
    first, *listed = problems.split("\n  - ")
    assert len(first) < 700 and "\n" not in problems.replace("\n  - ", ""), message
    assert not listed or (first.endswith("The first of them:") and len(listed) <= 5), message


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what the libraries cache, and Determined's local checkpoints, out of the user's home."""
    folder = tmp_path_factory.mktemp("caches")
    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    os.environ["HF_HOME"] = os.environ["XDG_DATA_HOME"] = str(folder)
    os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # tiny models gain nothing by more


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Leave levels of logs as they were, and let none go to what was standard error in a test: it is closed."""
    root = logging.getLogger()
    levels = {log: log.level for log in (root, *map(logging.getLogger, root.manager.loggerDict))}
    yield
    for log, level in levels.items():
        log.setLevel(level)
    for handler in [handler for handler in root.handlers if isinstance(handler.formatter, PrintableFormatter)]:
        root.removeHandler(handler)


def save_tiny_model(folder: Path, **shape: Any) -> Path:
    """Write the sample's tokenizer and a BERT of that shape to a folder, its weights random but fixed."""
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(SAMPLE_MODEL)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_attention_heads=2, intermediate_size=64, **shape
    )
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    for file in SAMPLE_MODEL.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample's tokenizer and a two-layer BERT without dropout, its weights random but fixed."""
    folder = tmp_path_factory.mktemp("tiny_model")
    return save_tiny_model(folder, num_hidden_layers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture
def config(tiny_model: Path) -> Config:
    """An experiment configuration that trains the tiny model on the sample."""
    return {
        "name": "test",
        "entrypoint": "ner_trial:NERTrial",
        "hyperparameters": {
            "pretrained_model_name_or_path": str(tiny_model),
            "model_mode": "token-classification",
            "finetuning_task": "ner",
            "global_batch_size": 8,
        },
        "data": {
            "dataset_name": None,
            "train_file": str(SAMPLE_DATA / "train.json"),
            "validation_file": str(SAMPLE_DATA / "validation.json"),
        },
        "reproducibility": {"experiment_seed": 7},
        "searcher": {
            "name": "single", "metric": "f1", "smaller_is_better": False, "max_length": {"batches": 30},
        },
    }  # fmt: skip


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Train a configuration with Determined's own trainer, off cluster; returns the trial.

    Its `output_dir` then holds `metrics.jsonl`, with the training loss of every `reporting_period` batches; the
    checkpoints of all trials are in `tmp_path / "checkpoints"`.
    """
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")  # which every checkpoint copies
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "checkpoints"))

    def fit(config: Config, trial_class: Any = NERTrial, *, reporting_period: int = 1, **arguments: Any) -> Any:
        optimizations = config.get("optimizations", {})
        with pytorch.init(
            hparams=config["hyperparameters"],
            exp_conf=config,
            aggregation_frequency=optimizations.get("aggregation_frequency", 1),
            enable_tensorboard_logging=False,
        ) as context:
            trial = trial_class(context)
            folder = trial.output_dir = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
            folder.mkdir()
            trial.callbacks = build_callbacks(trial, folder)
            pytorch.Trainer(trial, context).fit(
                max_length=pytorch.Batch(config["searcher"]["max_length"]["batches"]),
                reporting_period=pytorch.Batch(reporting_period),
                checkpoint_policy="none",
                **arguments,
            )
        return trial

    return fit


def read_metrics(folder: Path, group: str) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` that report training or validation."""
    return [line for line in read_lines(folder / "metrics.jsonl") if line["group"] == group]
