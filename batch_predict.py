"""Tag large inputs on any number of slots: as an experiment, see `det_predict.yaml`, under torchrun, or alone.

    det experiment create det_predict.yaml .
    torchrun --nproc-per-node 2 batch_predict.py --model MODEL --input FILE --output FILE

The arguments are those of `predict.py`, and so is the output, byte for byte: each chunk of sentences that it would tag
at once is tagged by one of the slots, and kept as a shard under the chunk's number. Whatever ends this, the same
command, or Determined's restart, goes on with the shards that are missing; the first slot merges all in the end.
"""

import argparse
import functools
import json
import logging
import operator
import shutil
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
import tqdm
from determined import core
from determined.pytorch import experimental

import predict
from ner.report import ErrorReport
from ner.sentences import Sentence
from transformer_trial import private
from transformer_trial.builders import silence_progress_bars
from transformer_trial.errors import TrialError
from transformer_trial.files import refuse_unwritable, replacing
from transformer_trial.local import set_up_logging
from transformer_trial.processes import get_cluster_task, join_torchrun, local_chief_first

logger = logging.getLogger(__name__)

CHECKPOINT_CHUNKS = 20  # chunks of each slot between two of Determined's checkpoints: so many are tagged again at most


def to_line(sentences: Sequence[Sentence]) -> bytes:
    return json.dumps([vars(sentence) for sentence in sentences]).encode() + b"\n"


def from_line(line: bytes) -> list[Sentence]:
    return [Sentence(**fields) for fields in json.loads(line)]


class Job:
    """The command: a model and the chunks of an input, which become shards, which become the output."""

    def __init__(self, options: argparse.Namespace, distributed: core.DistributedContext, own_folder: str) -> None:
        if "-" in (options.input, options.output):
            raise TrialError("--input, --output: found -; accepted are names of files. predict.py takes both.")
        spool = Path(distributed.broadcast_local(own_folder), "chunks")
        with local_chief_first(distributed):  # it downloads, and reads the input for all processes of its machine
            self.tagger, source, sentences = predict.open_input(options)
            if distributed.local_rank == 0:
                with spool.open("wb") as file:
                    file.writelines(map(to_line, self.tagger.chunks(predict.check_gold(sentences, self.tagger))))
        self.options, self.source = options, source.name
        self.spool = spool.open("rb")  # stays readable after the process that wrote it has removed it
        self.chunks, self.checksum, start = list[tuple[int, int]](), 0, 0  # number and place of each
        for number, line in enumerate(self.spool):
            self.chunks.append((number, start))
            self.checksum, start = zlib.crc32(line, self.checksum), start + len(line)

    def tag(self, number: int, start: int, folder: Path) -> None:
        """Tag a chunk, and keep it as a shard; a kill leaves all of it or nothing."""
        self.spool.seek(start)
        with replacing(folder / f"{number:08}.shard") as new:
            new.write_bytes(to_line([*self.tagger.tag(from_line(self.spool.readline()))]))

    def merge(self, folder: Path, output: Path) -> ErrorReport:
        """Write the output as `predict.py` does, of the shards in a folder and those below it."""
        shards = {int(file.stem): file for file in folder.rglob("*.shard")}
        if shards.keys() != set(range(len(self.chunks))):
            found = f"{folder} has {len(shards)} of {len(self.chunks)} shards"
            raise TrialError(f"{found}. All processes have to see that folder. Give the same command again.")
        tagged = (sentence for number in sorted(shards) for sentence in from_line(shards[number].read_bytes()))
        options = argparse.Namespace(**{**vars(self.options), "output": str(output)})
        return predict.write_tagged(options, self.tagger, self.source, tagged)


class BatchTagger(experimental.TorchBatchProcessor):
    """Tags the chunks that Determined deals out to this slot into the experiment's storage, where they are merged."""

    def __init__(self, context: experimental.TorchBatchProcessorContext, job: Job) -> None:
        self.context, self.job = context, job
        context.prepare_model_for_inference(job.tagger.model)

    def process_batch(self, batch: tuple[int, int], batch_idx: int) -> None:
        with self.context.upload_path() as folder:
            self.job.tag(*batch, folder)

    def on_finish(self) -> None:
        """Merge on the first slot: when it comes here, all slots have uploaded their shards."""
        if self.context.get_distributed_rank() != 0:
            return
        with tempfile.TemporaryDirectory() as merged:
            with private.read_uploads(self.context) as shards:
                report = self.job.merge(shards, Path(merged, Path(self.job.options.output).name))
            with self.context.upload_path() as folder:
                shutil.copytree(merged, folder, dirs_exist_ok=True)
        if report.num_sentences:
            self.context.report_metrics("test", len(self.job.chunks), report.metrics())


def process_here(job: Job, distributed: core.DistributedContext) -> None:
    """Do what `torch_batch_process` does, which needs a cluster; shards lie beside the output until they are merged."""
    output = Path(job.options.output).expanduser()
    folder = output.with_name(f"{output.name}.shards")
    mark = folder / "made_of"
    model = [(file.name, file.stat().st_mtime_ns) for file in sorted(Path(job.tagger.model.name_or_path).iterdir())]
    made_of = json.dumps([job.checksum, job.options.batch_size, str(job.tagger.model.dtype), model])
    with local_chief_first(distributed):
        folder.mkdir(exist_ok=True)
        if mark.exists() and mark.read_text() != made_of:
            found = f"{folder} holds shards of another input, model or precision"
            raise TrialError(f"--output: {found}. Remove that folder, or name another output.")
        if distributed.rank == 0:
            mark.write_text(made_of)
    own = job.chunks[distributed.rank :: distributed.size]
    for number, start in tqdm.tqdm(own, unit=" chunks", disable=None if distributed.rank == 0 else True):
        shard = folder / f"{number:08}.shard"
        if not shard.exists() or not shard.read_bytes().endswith(b"\n"):  # a loss of power may have cut it
            job.tag(number, start, folder)
    distributed.allgather(None)
    if distributed.rank == 0:
        job.merge(folder, output)
        shutil.rmtree(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    options, task = predict.parse_arguments(arguments), get_cluster_task()
    set_up_logging(task is not None)
    silence_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as own_folder, join_torchrun() as joined:
            distributed = joined or core.DummyDistributedContext()
            if torch.cuda.is_available():
                torch.cuda.set_device(distributed.local_rank)
            job = Job(options, distributed, own_folder)
            if task is None:
                with refuse_unwritable("--output", Path(options.output)):
                    process_here(job, distributed)
                return
            processor, first = functools.partial(BatchTagger, job=job), operator.itemgetter(0)
            how = {"checkpoint_interval": CHECKPOINT_CHUNKS, "dataloader_kwargs": {"collate_fn": first}}
            experimental.torch_batch_process(processor, job.chunks, 1, distributed_context=joined, **how)
    except TrialError as error:
        logger.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
