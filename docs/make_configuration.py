"""Write the tables of docs/configuration.md from the models that check the configuration: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ner.config import NERDataConfig
from transformer_trial import experiment
from transformer_trial.config import ModelConfig, OptimizerConfig, SchedulerConfig, TrainingConfig
from transformer_trial.parsing import Section, find_choices

PAGE = Path(__file__).with_name("configuration.md")

OWN_SECTIONS: dict[str, list[type[Section]]] = {
    "`hyperparameters`": [ModelConfig, OptimizerConfig, SchedulerConfig, TrainingConfig],
    "`data`": [NERDataConfig],
}
DETERMINED_SECTIONS: dict[str, type[Section]] = {
    "Top level": experiment.HarnessConfig,
    "`searcher`": experiment.SearcherConfig,
    "`optimizations`": experiment.OptimizationsConfig,
    "`checkpoint_storage`": experiment.CheckpointStorageConfig,
    "`reproducibility`": experiment.ReproducibilityConfig,
    "`profiling`": experiment.ProfilingConfig,
}


def table(classes: list[type[Section]]) -> str:
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, field in (item for c in classes for item in c.model_fields.items()):
        default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        default = "required" if field.is_required() else {"None": "null"}.get(default, default)
        choices = find_choices(field)
        one_of = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
        meaning = " ".join((field.description or "").split())
        rows.append(f"| `{key}` | {default.lower() if default in ('True', 'False') else default} | {meaning}{one_of} |")
    return "\n".join(rows)


def make_page() -> str:
    """The page: its introduction as it is, and the tables anew."""
    parts = [PAGE.read_text(encoding="utf-8").partition("\n## ")[0].rstrip()]
    parts += [f"## {name}\n\n{table(classes)}" for name, classes in OWN_SECTIONS.items()]
    parts.append(
        "## What is read of Determined's own keys\n\nThey mean what they mean to Determined, on a cluster and off."
    )
    parts += [f"### {name}\n\n{table([section])}" for name, section in DETERMINED_SECTIONS.items()]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
