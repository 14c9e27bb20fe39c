"""Train NERTrial without a cluster, under torchrun, or as the entrypoint of an experiment; see README.md.

python3 train.py [CONFIG.yaml] [--config KEY=VALUE ...] [--epochs N | --batches N] [--output-dir DIR] [--test]
    [--inspect] [--resume CHECKPOINT|auto]
"""

from ner_trial import NERTrial
from transformer_trial.run import run

if __name__ == "__main__":
    run(NERTrial)
