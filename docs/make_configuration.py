"""Write docs/configuration.md from the models that check the configuration: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ner.config import NERDataConfig
from transformer_trial import experiment
from transformer_trial.config import ModelConfig, OptimizerConfig, SchedulerConfig, TrainingConfig
from transformer_trial.parsing import Section, find_choices

INTRODUCTION = """# Configuration

- [`hyperparameters`](#hyperparameters)
- [`data`](#data)
- [What is read of Determined's own keys](#what-is-read-of-determineds-own-keys)

Two sections of the yaml are this project's; all others are
[Determined's](https://docs.determined.ai/latest/reference/training/experiment-config-reference.html). Every key of the
original example keeps its name, place and default. An unknown key of these two sections is an error, and so is a value
that is not accepted; all mistakes are told at once. Lengths are in batches, as everywhere in Determined.

A hyperparameter may be a search range, of which a trial that runs locally takes one value. Values mean the same through
`det`, the master and `train.py`, whatever their YAML parsers make of `no` or `5e-5`.

`make docs` writes this page from the classes in `transformer_trial/config.py`, `ner/config.py` and
`transformer_trial/experiment.py`."""

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
    parts = [INTRODUCTION]
    parts += [f"## {name}\n\n{table(classes)}" for name, classes in OWN_SECTIONS.items()]
    parts.append(
        "## What is read of Determined's own keys\n\nThey mean what they mean to Determined, on a cluster and off."
    )
    parts += [f"### {name}\n\n{table([section])}" for name, section in DETERMINED_SECTIONS.items()]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("configuration.md").write_text(make_page(), encoding="utf-8")
