"""Train what the entrypoint of a yaml names, NERTrial or a trial of your own; see README.md.

It runs without a cluster, under torchrun, or as the entrypoint of an experiment:

python3 train.py [CONFIG.yaml] [--config KEY=VALUE]... [--epochs N | --batches N]
    [--output-dir DIR] [--test] [--inspect] [--resume CHECKPOINT|auto]
"""

import gc

gc.disable()  # what is imported stays: to look for garbage in it takes a fifth of the time of the imports

from ner_trial import NERTrial  # noqa: E402
from transformer_trial.local import run  # noqa: E402
from transformer_trial.machine import keep_freed_memory  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    keep_freed_memory()
    run(NERTrial, follows_entrypoint=True)
