"""Who is compared: NERTrial, `transformers.Trainer` with and without its best flags, a bare loop; each trains alike.

All start from the same weights and see the same sentences, once. Nothing here decides when or how often.
"""

import contextlib
import functools
import gc
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported

import torch
import transformers
from determined import pytorch
from meters import Meter, StepWatch
from run_ner_reference import build_trainer

from ner_trial import NERTrial
from transformer_trial.local import run

YAML = Path(__file__).with_name("wnut17.yaml")
SHAPES = {
    "bert-base": {},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
"""Models that are made from their config, with random weights."""

# What helps the Trainer most: no padding, no check of each loss for NaN (which waits for a GPU), no logging.
BEST_FLAGS: dict[str, Any] = {
    "train_sampling_strategy": "group_by_length", "length_column_name": "length", "logging_strategy": "no",
    "logging_nan_inf_filter": False,
}  # fmt: skip
if torch.cuda.is_available():
    BEST_FLAGS |= {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}


@dataclass(frozen=True)
class Job:
    """What each contender is to do."""

    model_dir: str
    data_dir: str
    work_dir: str  # takes everything that is written
    batch_size: int = 8  # sentences of a step in each process
    num_batches: int = 200
    num_processes: int = 1
    precision: str = "fp32"
    seed: int = 1
    overrides: tuple[str, ...] = ()  # KEY=VALUE of NERTrial's configuration

    @property
    def num_sentences(self) -> int:
        return self.num_batches * self.batch_size * self.num_processes


class Finished(Exception):
    """Ends a run of Determined's trainer, once all is measured: no last validation, checkpoint or export."""


def make_model(source: str, size: str, label_names: list[str], folder: Path) -> str:
    """Write a model with a head for the labels, and its tokenizer, for all contenders to start from.

    `size` is "small" for the model of the folder `source`, which need not have weights, or one of SHAPES.
    """
    transformers.set_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    ids = dict(enumerate(label_names))
    labels: dict[str, Any] = {"id2label": ids, "label2id": {name: i for i, name in ids.items()}}
    config = transformers.AutoConfig.from_pretrained(source, **labels)
    if size in SHAPES:
        vocab_size = max(len(tokenizer), 30522 if size == "bert-base" else 0)
        config = transformers.BertConfig(vocab_size=vocab_size, **SHAPES[size], **labels)
    auto_class, files = transformers.AutoModelForTokenClassification, [*Path(source).glob("*.safetensors")]
    has_weights = size not in SHAPES and [*files, *Path(source).glob("pytorch_model*.bin")]
    model = auto_class.from_pretrained(source, config=config) if has_weights else auto_class.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def ner_trial_arguments(job: Job, *overrides: str) -> list[str]:
    """The command line of train.py for the job: the shipped defaults but for data, model, length and `overrides`."""
    settings = (
        f"hyperparameters.pretrained_model_name_or_path={job.model_dir}",
        f"hyperparameters.global_batch_size={job.batch_size * job.num_processes}",
        f"hyperparameters.mixed_precision={'none' if job.precision == 'fp32' else job.precision}",
        *(f"data.{split}_file={job.data_dir}/{split}.json" for split in ("train", "validation")),
        f"reproducibility.experiment_seed={job.seed}",
    )
    options = [part for setting in (*settings, *overrides, *job.overrides) for part in ("--config", setting)]
    # Determined's trainer makes the folder; nothing may have been written there.
    output_dir = Path(tempfile.mkdtemp(dir=job.work_dir)) / "output"
    return [str(YAML), *options, "--batches", str(job.num_batches), "--output-dir", str(output_dir)]


def run_ner_trial(trial_class: type[NERTrial], job: Job, *overrides: str) -> None:
    """What train.py does with NERTrial, until `trial_class` raises Finished."""
    with contextlib.chdir(job.work_dir), suppressed_output(job.work_dir), contextlib.suppress(Finished):
        run(trial_class, ner_trial_arguments(job, *overrides))


@contextlib.contextmanager
def suppressed_output(work_dir: str) -> Iterator[None]:
    """Send what the libraries print to a file, and show it where the run ended in an error."""
    with tempfile.TemporaryFile("w+", dir=work_dir) as file:
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        except (Exception, SystemExit) as error:
            file.seek(0)
            raise RuntimeError(f"A contender failed ({error!r}), and printed: {file.read()[-5000:]}") from error


def train_ner_trial(job: Job, watch: StepWatch) -> None:
    class WatchedTrial(NERTrial):
        def wrap(self) -> None:
            super().wrap()
            watch.see(self.model)

        def train_batch(self, *arguments: Any, **options: Any) -> dict[str, Any]:
            metrics = super().train_batch(*arguments, **options)
            if watch.done:
                raise Finished
            return metrics

    run_ner_trial(WatchedTrial, job, f"data.max_train_samples={job.num_sentences}")


def train_bare_loop(job: Job, watch: StepWatch) -> None:
    """The limit of every harness: NERTrial's batches, ready on the device, and nothing but the arithmetic."""

    class BareLoop(NERTrial):
        def build_training_data_loader(self) -> pytorch.DataLoader:
            loader = super().build_training_data_loader().get_data_loader(repeat=True, skip=0, num_replicas=1, rank=0)
            batches = [self.context.to_device(batch) for batch in itertools.islice(loader, job.num_batches)]
            optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, weight_decay=0, fused=True)
            schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, len(batches))
            self.model.train()
            watch.see(self.model)
            for batch in batches:
                with self.autocast():
                    loss = self.model(**batch)["loss"]
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            raise Finished

    run_ner_trial(BareLoop, job, f"data.max_train_samples={job.num_sentences}")


def build_run_ner(job: Job, **arguments: Any) -> Any:
    # use_cpu: else the Trainer refuses bf16 without a GPU, and lets each of several processes train alone.
    return build_trainer(
        job.model_dir, job.data_dir, job.work_dir, max_train_samples=job.num_sentences, max_steps=job.num_batches,
        per_device_train_batch_size=job.batch_size, per_device_eval_batch_size=job.batch_size, seed=job.seed,
        save_strategy="no", bf16=job.precision == "bf16", use_cpu=not torch.cuda.is_available(), **arguments,
    )  # fmt: skip


def train_run_ner(job: Job, watch: StepWatch, **flags: Any) -> None:
    with suppressed_output(job.work_dir):
        trainer = build_run_ner(job, **flags)
        if trainer.args.world_size != job.num_processes:
            raise RuntimeError(f"The Trainer trains in {trainer.args.world_size} processes, not {job.num_processes}.")
        watch.see(trainer.model)
        trainer.train()


def evaluate_ner_trial(job: Job, meter: Meter) -> dict[str, float]:
    """The validation of Determined's trainer with its metrics, and without what follows the best one."""
    found: dict[str, Any] = {}

    class Watcher(pytorch.PyTorchCallback):
        def on_validation_start(self) -> None:
            meter.start()

        def on_validation_end(self, metrics: dict[str, Any]) -> None:
            meter.stop()
            found.update(metrics)
            raise Finished

    class WatchedTrial(NERTrial):
        def build_callbacks(self) -> dict[str, pytorch.PyTorchCallback]:
            return {"watcher": Watcher(), **super().build_callbacks()}

    run_ner_trial(WatchedTrial, job, "perform_initial_validation=true")
    return {"accuracy": float(found["accuracy_score"]), "f1": float(found["f1"])}


def evaluate_run_ner(job: Job, meter: Meter) -> dict[str, float]:
    with suppressed_output(job.work_dir):
        trainer = build_run_ner(job)
        meter.start()
        metrics = trainer.evaluate()
        meter.stop()
    return {"accuracy": metrics["eval_accuracy"], "f1": metrics["eval_f1"]}


TRAINERS: dict[str, Callable[[Job, StepWatch], None]] = {
    "NERTrial": train_ner_trial,
    "run_ner": train_run_ner,
    "run_ner, best flags": functools.partial(train_run_ner, **BEST_FLAGS),
    "bare loop": train_bare_loop,
}
EVALUATORS = {"NERTrial": evaluate_ner_trial, "run_ner": evaluate_run_ner}


def train(name: str, job: Job, index: int, *, parts: bool = False) -> dict[str, Any]:
    """Let a contender train in the round of that index, which has a seed of its own; what was measured."""
    gc.collect()  # what the one before left behind is none of this one's time
    watch = StepWatch(job.num_batches, parts=parts)
    with watch.watching():
        TRAINERS[name](replace(job, seed=job.seed + index), watch)
    return watch.results()


def evaluate(name: str, job: Job, index: int, *, memory: bool = False) -> dict[str, Any]:
    """Let a contender evaluate the validation split, alike in every round; what was measured."""
    gc.collect()
    meter = Meter(memory=memory)
    metrics = EVALUATORS[name](replace(job, num_batches=1), meter)
    num_sentences = len((Path(job.data_dir) / "validation.json").read_text().splitlines())
    speed = num_sentences / meter.seconds
    return {**meter.results(), "sentences": num_sentences, "sentences_per_second": speed, **metrics}
