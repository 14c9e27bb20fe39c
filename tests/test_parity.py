"""NERTrial under Determined's trainer follows `transformers.Trainer`, step by step."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from conftest import SAMPLE_DATA, Config, Fit, read_metrics, slow
from run_ner_reference import tokenize
from torch.utils.data import DataLoader

from transformer_trial.data import SlotBatchSampler

NUM_BATCHES = 30


class RecordingTrainer(transformers.Trainer):
    """`transformers.Trainer` on given batches, which notes the loss of each."""

    def __init__(self, batches: list[list[int]], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.batches = batches
        self.losses: list[float] = []

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self.losses.append(float(loss))
        return loss


def train_reference(config: Config, folder: Path, *, sum_of_means: bool, **arguments: Any) -> RecordingTrainer:
    model_dir = config["hyperparameters"]["pretrained_model_name_or_path"]
    data = datasets.load_dataset("json", data_files=str(SAMPLE_DATA / "train.json"), split="train")
    names = sorted({tag for tags in data["ner_tags"] for tag in tags})
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    label_ids = {name: i for i, name in enumerate(names)}
    rows = data.map(lambda batch: tokenize(tokenizer, label_ids, batch), batched=True, remove_columns=data.column_names)
    seed = config["reproducibility"]["experiment_seed"]
    sampler = SlotBatchSampler(len(rows), 8, 1, seed=seed)
    batches = [batch.tolist() for epoch in range(2) for batch in sampler.global_batches(epoch)][:NUM_BATCHES]
    transformers.set_seed(seed)
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        model_dir, num_labels=len(names), id2label=dict(enumerate(names)), label2id=label_ids
    )
    trainer = RecordingTrainer(
        batches,
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder), report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, **arguments
        ),
        train_dataset=rows.remove_columns("length"),  # which transformers 4 hands to the model
        data_collator=transformers.DataCollatorForTokenClassification(tokenizer),
    )
    if not sum_of_means:
        # BERT's loss ignores the number of items that the Trainer hands it, and the Trainer then adds up the means of
        # an accumulation instead of averaging them. This is how it averages.
        trainer.model_accepts_loss_kwargs = False
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("hyperparameters", "optimizations", "arguments"),
    [
        pytest.param({}, {}, {}, id="defaults"),
        slow({"weight_decay": 0.1}, {}, {"weight_decay": 0.1}, id="weight-decay"),
        pytest.param({"lr_scheduler_type": "cosine", "num_warmup_steps": 7}, {},
                     {"lr_scheduler_type": "cosine", "warmup_steps": 7}, id="cosine-warmup"),
        pytest.param({"warmup_ratio": 0.31}, {}, {"warmup_steps": 10}, id="linear-warmup-ratio"),
        slow({"adafactor": True}, {}, {"optim": "adafactor"}, id="adafactor-linear"),
        pytest.param({"adafactor": True, "lr_scheduler_type": "cosine", "num_warmup_steps": 5, "weight_decay": 0.1}, {},
                     {"optim": "adafactor", "lr_scheduler_type": "cosine", "warmup_steps": 5, "weight_decay": 0.1},
                     id="adafactor-cosine-warmup"),
        pytest.param({"num_warmup_steps": 6}, {"aggregation_frequency": 3},
                     {"gradient_accumulation_steps": 3, "warmup_steps": 2}, id="accumulation"),
        slow({}, {"aggregation_frequency": 3, "average_aggregated_gradients": False},
             {"gradient_accumulation_steps": 3}, id="accumulation-summed"),
        slow({"adafactor": True, "lr_scheduler_type": "cosine"}, {"aggregation_frequency": 2},
             {"optim": "adafactor", "lr_scheduler_type": "cosine", "gradient_accumulation_steps": 2},
             id="adafactor-cosine-accumulation"),
        slow({"max_grad_norm": 0, "adam_beta2": 0.99, "adam_epsilon": 1e-6}, {},
             {"max_grad_norm": 0, "adam_beta2": 0.99, "adam_epsilon": 1e-6}, id="no-clipping"),
    ],
)  # fmt: skip
def test_losses_and_weights_follow_transformers_trainer(
    config: Config, fit: Fit, tmp_path: Path, hyperparameters: Config, optimizations: Config, arguments: Config
) -> None:
    config["hyperparameters"] |= {"learning_rate": 1e-3, **hyperparameters}
    config["optimizations"] = optimizations
    config["data"]["dataloader_num_workers"] = 2  # which change no order
    every = optimizations.get("aggregation_frequency", 1)
    summed = not optimizations.get("average_aggregated_gradients", True)
    arguments = {"learning_rate": 1e-3, "max_steps": NUM_BATCHES // every, **arguments}
    reference = train_reference(config, tmp_path / "reference", sum_of_means=summed, **arguments)
    trial = fit(config)
    losses = [line["loss"] for line in read_metrics(trial.output_dir, "training")]
    assert len(losses) == len(reference.losses) == NUM_BATCHES
    assert losses == pytest.approx(reference.losses, rel=1e-5)
    torch.testing.assert_close(trial.model.state_dict(), reference.model.state_dict(), rtol=0, atol=1e-5)
    assert losses[-1] < losses[0], "the model did not learn"
