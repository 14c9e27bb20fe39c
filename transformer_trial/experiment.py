"""What Determined's own parts of an experiment configuration tell a trial: its length, metric, seed and periods."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from transformer_trial.config import HYPERPARAMETER_CLASSES
from transformer_trial.errors import ConfigError, did_you_mean, explain_value
from transformer_trial.parsing import Section, read_known, read_number, unknown_key

LENGTH_UNITS = ("batches", "epochs", "records")


class HarnessConfig(Section):
    """The top-level keys that Determined's harness reads for `entrypoint: module:TrialClass`, with its defaults."""

    min_validation_period: Any = 0
    """How often to validate, such as `{batches: 500}`; 0 is at the end only."""
    min_checkpoint_period: Any = 0
    """How often to save a checkpoint beside those of `checkpoint_policy`."""
    scheduling_unit: int = Field(default=100, ge=1)
    """Batches between two reports of training metrics."""
    checkpoint_policy: Literal["best", "all", "none"] = "best"
    """After which validations to save a checkpoint."""
    perform_initial_validation: bool = False
    """Validate before training too."""


class CheckpointStorageConfig(Section):
    """The part of the `checkpoint_storage` section that counts off cluster too, where an experiment is one trial."""

    save_experiment_best: int = Field(default=0, ge=0)
    """The same as `save_trial_best`; the larger one counts."""
    save_trial_best: int = Field(default=1, ge=0)
    """Checkpoints to keep of those with the best validations."""
    save_trial_latest: int = Field(default=1, ge=0)
    """Checkpoints to keep of the newest."""


class OptimizationsConfig(Section):
    """The `optimizations` section, as far as torch has a use for it."""

    aggregation_frequency: int = Field(default=1, ge=1)
    """Batches whose gradients make one optimizer step."""
    average_aggregated_gradients: bool = True
    """Whether they are averaged, or summed up."""


class ReproducibilityConfig(Section):
    """The `reproducibility` section."""

    experiment_seed: int = Field(default=42, ge=0, le=2**32 - 1)
    """The seed off cluster, by default that of TrainingArguments; on a cluster each trial derives its own from it."""


class ProfilingConfig(Section):
    """The `profiling` section."""

    enabled: bool = False
    """Collect system metrics, on a cluster."""


# The keys that Determined knows, 0.38 and before: its master refuses all others, as `check_keys` does off cluster.
DETERMINED_KEYS = {
    "": "bind_mounts checkpoint_policy checkpoint_storage data data_layer debug description entrypoint environment "
    "hyperparameters integrations internal labels log_pattern_policies log_policies max_restarts min_checkpoint_period "
    "min_validation_period name optimizations pbs perform_initial_validation preemption_timeout profiling project "
    "records_per_epoch reproducibility resources retention_policy scheduling_unit searcher security slurm "
    "tensorboard_storage workspace",
    "searcher": "name metric smaller_is_better max_length max_time time_metric max_trials max_concurrent_trials budget "
    "num_rungs divisor mode max_rungs bracket_rungs stop_once train_stragglers source_trial_id source_checkpoint_uuid",
    "optimizations": "aggregation_frequency average_aggregated_gradients average_training_metrics mixed_precision "
    "gradient_compression grad_updates_size_file auto_tune_tensor_fusion tensor_fusion_threshold "
    "tensor_fusion_cycle_time",
    "resources": "slots_per_trial slots max_slots weight priority resource_pool native_parallel shm_size devices "
    "is_single_node agent_label",
    "checkpoint_storage": "save_experiment_best save_trial_best save_trial_latest type host_path storage_path user "
    "container_path propagation checkpoint_path tensorboard_path bucket prefix access_key secret_key endpoint_url "
    "container connection_string account_url credential",
    "reproducibility": "experiment_seed",
    "profiling": "enabled begin_on_batch end_after_batch sync_timings",
}


def check_keys(config: Mapping[str, Any]) -> None:
    """Raise a ConfigError where one of Determined's own sections has a key that nobody reads."""
    known = {section: keys.split() for section, keys in DETERMINED_KEYS.items()}
    known["hyperparameters"] = [key for c in HYPERPARAMETER_CLASSES for key in c.model_fields]
    sections = {section: config.get(section) if section else config for section in DETERMINED_KEYS}
    problems = [
        unknown_key(section, key, value, known)
        for section, values in sections.items()
        for key, value in (values.items() if isinstance(values, Mapping) else ())
        if key not in known[section]
    ]
    if problems:
        raise ConfigError(problems)


@dataclass(frozen=True)
class Length:
    """How long a training is, or how often something happens in it, in the units of Determined."""

    unit: str  # one of LENGTH_UNITS
    amount: int

    def in_batches(self, batches_per_epoch: int, global_batch_size: int) -> int:
        """The same in training batches; records are rounded down to batches as Determined does, but to one at least."""
        if self.unit == "epochs":
            return self.amount * batches_per_epoch
        return self.amount if self.unit == "batches" else max(self.amount // global_batch_size, 1)


def parse_length(key: str, value: Any, *, minimum: int = 0) -> Length:
    """`{epochs: 3}`, `{batches: 100}`, `{records: 800}` or a bare number of batches as a Length; `key` names it."""
    entries = value if isinstance(value, Mapping) else {"batches": value}
    entries = {unit: amount for unit, amount in entries.items() if amount is not None}
    with contextlib.suppress(ValueError):
        ((unit, amount),) = entries.items()
        number = read_number(amount)
        if unit in LENGTH_UNITS and isinstance(number, int) and number >= minimum:
            return Length(unit, number)
    accepted = f"one of {{batches: N}}, {{epochs: N}} and {{records: N}}, with a whole number N of at least {minimum}"
    advice = " ".join(did_you_mean(str(unit), LENGTH_UNITS) for unit in entries)
    if len(entries) > 1:
        advice = f"Set all units but one to null: --config {key}.{next(iter(entries))}=null."
    raise ConfigError([explain_value(key, value, accepted, advice)])


class SearcherConfig(Section):
    """What a trial reads of the `searcher` section; its other keys are Determined's own."""

    metric: str | None = None
    """The validation metric that decides which model is best."""
    smaller_is_better: bool = True
    """Whether that is the one with the smallest value of it."""
    max_length: Any = None
    """How long a trial trains: `{epochs: 3}`, `{batches: 500}` or `{records: 8000}`; a mere number counts batches."""
    max_time: int | None = Field(default=None, ge=1)
    """The same as a number, of what `time_metric` says."""
    time_metric: Literal["batches", "epochs"] | None = None
    """The unit of `max_time`."""

    def conflicts(self) -> Iterator[str]:
        if self.max_time is not None and self.time_metric is None:
            yield "time_metric: missing beside max_time. Accepted: one of batches, epochs."


def training_length(experiment_config: Mapping[str, Any]) -> Length:
    """How long the searcher lets a trial train: `max_length`, or `max_time` counted in `time_metric`. Needs one."""
    searcher = read_known("searcher", experiment_config, SearcherConfig)
    if searcher.max_length is not None:
        return parse_length("searcher.max_length", searcher.max_length, minimum=1)
    if searcher.max_time is not None and searcher.time_metric is not None:
        return Length(searcher.time_metric, searcher.max_time)
    advice = "give max_length, such as {epochs: 3}, or max_time with time_metric: epochs or batches"
    raise ConfigError([f"searcher.max_length: missing, and there is no max_time; {advice}."])


def searcher_metric(experiment_config: Mapping[str, Any], better_when_larger: Mapping[str, bool]) -> tuple[str, bool]:
    """The validation metric, one of those given unless there are none, and whether the smallest is the best model's."""
    searcher = read_known("searcher", experiment_config, SearcherConfig)
    metric, smaller_is_better = searcher.metric, searcher.smaller_is_better
    if metric is None or (better_when_larger and metric not in better_when_larger):
        accepted = ", ".join(better_when_larger) or "the name of a validation metric"
        advice = did_you_mean(str(metric), better_when_larger)
        raise ConfigError([explain_value("searcher.metric", metric, accepted, advice)])
    if smaller_is_better == better_when_larger.get(metric):
        accepted = f"{not smaller_is_better}".lower()
        wrong = f"searcher.smaller_is_better: found {str(smaller_is_better).lower()} (the default is true)"
        raise ConfigError([f"{wrong}, which would keep the worst model by {metric}; accepted is {accepted}."])
    return metric, smaller_is_better
