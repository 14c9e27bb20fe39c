"""Write the tables of docs/configuration.md from the models that check the configuration: `make docs`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ner.config import NERDataConfig
from transformer_trial import experiment
from transformer_trial.config import ModelConfig, OptimizerConfig, SchedulerConfig, TrainingConfig
from transformer_trial.parsing import Section, find_choices

PAGE = Path(__file__).with_name("configuration.md")

DETERMINED = "## What is read of Determined's own keys\n\nThey mean what they mean to Determined, on a cluster and off."
SECTIONS: dict[str, list[type[Section]]] = {
    "## `hyperparameters`": [ModelConfig, OptimizerConfig, SchedulerConfig, TrainingConfig],
    "## `data`": [NERDataConfig],
    f"{DETERMINED}\n\n### Top level": [experiment.HarnessConfig],
    "### `searcher`": [experiment.SearcherConfig],
    "### `optimizations`": [experiment.OptimizationsConfig],
    "### `checkpoint_storage`": [experiment.CheckpointStorageConfig],
    "### `reproducibility`": [experiment.ReproducibilityConfig],
    "### `profiling`": [experiment.ProfilingConfig],
}


def table(classes: list[type[Section]]) -> str:
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, field in (item for c in classes for item in c.model_fields.items()):
        default = "required" if field.is_required() else json.dumps(field.default).strip('"').removesuffix(".0")
        choices = find_choices(field)
        one_of = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
        rows.append(f"| `{key}` | {default} | {' '.join((field.description or '').split())}{one_of} |")
    return "\n".join(rows)


def make_page() -> str:
    """The page: its introduction as it is, and the tables anew."""
    introduction = PAGE.read_text(encoding="utf-8").partition("\n## ")[0].rstrip()
    tables = [f"{heading}\n\n{table(classes)}" for heading, classes in SECTIONS.items()]
    return "\n\n".join([introduction, *tables]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
