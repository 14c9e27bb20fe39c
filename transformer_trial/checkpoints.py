"""What Determined's checkpoints hold: what we change there so that they serve elsewhere, and whether they are whole."""

import contextlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from determined.common import util

from transformer_trial.errors import TrialError, format_value, redact


def allow_determined_checkpoints() -> None:
    """Let torch >= 2.6 read Determined's checkpoints, which hold the state of NumPy's random numbers.

    They are plain arrays; everything else that a pickle could name stays forbidden.
    """
    if not hasattr(torch.serialization, "add_safe_globals"):
        return  # a torch whose torch.load is not restricted
    reconstruct: Any = np.zeros(1).__reduce__()[0]
    torch.serialization.add_safe_globals(
        [
            (reconstruct, "numpy._core.multiarray._reconstruct"),
            (reconstruct, "numpy.core.multiarray._reconstruct"),  # as NumPy 1 names it
            np.ndarray,
            np.dtype,
            type(np.dtype("uint32")),
        ]
    )


def write_plain_data(checkpoint: dict[str, Any]) -> None:
    """Name the weights to be saved as one process does, which Determined's loader needs, and write plain data only.

    NumPy's arrays are pickled under names that differ between its versions, and that torch refuses by default.
    """
    kind, numbers, *rest = checkpoint["rng_state"]["np_rng_state"]
    checkpoint["rng_state"]["np_rng_state"] = (kind, numbers.tolist(), *rest)
    _name_weights_as_one_process(checkpoint)


def _name_weights_as_one_process(checkpoint: dict[str, Any]) -> None:
    for weights in checkpoint["models_state_dict"]:
        torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(weights, "module.")


def read_labels(model: Any) -> dict[int, str]:
    """What the numbers that a model gives stand for."""
    return dict(model.config.id2label)


def refuse_another_model(checkpoint: dict[str, Any], model: Any, labels: Mapping[int, str]) -> None:
    """Compare a checkpoint, whose weights are named anew as one process names them, with the model it is to go into.

    Args:
        checkpoint: As Determined loads it.
        model: Without what several slots wrap it in.
        labels: Those of the checkpoint's model.

    Raises:
        TrialError: If it is not of such a model.
    """
    _name_weights_as_one_process(checkpoint)
    states = (model.state_dict(), checkpoint["models_state_dict"][0])
    shapes, its_shapes = ({name: weight.shape for name, weight in state.items()} for state in states)
    if wrong := sorted(name for name in {*shapes, *its_shapes} if shapes.get(name) != its_shapes.get(name)):
        what = f"{len(wrong)} weights are missing on one side, or have another shape, {wrong[0]} among them"
    elif labels != read_labels(model):
        known, given = (format_value("labels", list(names.values())) for names in (labels, read_labels(model)))
        what = f"its labels are {known}, not {given}"
    else:
        return
    raise TrialError(
        f"The checkpoint is of another model: {what}. Go on with the model and the labels that it was trained with."
    )


def redact_configurations(folder: Path) -> None:
    """Take the secrets out of the configurations in a checkpoint's copy of the code."""
    for file in [*folder.glob("code/**/*.yaml"), *folder.glob("code/**/*.yml")]:
        config = None
        with contextlib.suppress(Exception):  # not every yaml is a configuration
            config = util.yaml_safe_load(file.read_text())
        if redact(config) != config:
            file.write_text(util.yaml_safe_dump(redact(config)))


def complete_load_data(file: Path, model: Any) -> None:
    """Add the model's config, with which Determined's loader makes the trial from the checkpoint alone; no secrets."""
    load_data = redact(json.loads(file.read_text()))
    model_config = json.loads(model.config.to_json_string(use_diff=False))
    load_data["experiment_config"] = {**(load_data["experiment_config"] or {}), "model_config": model_config}
    load_data["is_trainer"] = True  # else the loader's context is like that of a training
    file.write_text(json.dumps(load_data))


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts and their collections, and runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, which Determined never writes there")


def read_trial_state(checkpoint: Path) -> dict[str, Any]:
    """Determined's own account of a training, as it is in a checkpoint; a pickle, which Determined runs unseen."""
    with (checkpoint / "trial_state.pkl").open("rb") as file:
        state = _PlainUnpickler(file).load()
    if not isinstance(state, dict) or not isinstance(state.get("batches_trained"), int):
        raise ValueError("trial_state.pkl does not say how many batches were trained")
    return state


def find_damage(checkpoint: Path) -> str | None:
    """What keeps a checkpoint from being resumed; None if nothing does."""
    try:
        for name in ("metadata.json", "load_data.json"):
            json.loads((checkpoint / name).read_text())
        read_trial_state(checkpoint)
        with zipfile.ZipFile(checkpoint / "state_dict.pth") as file:
            if broken := file.testzip():
                return f"state_dict.pth is damaged at {broken}"
    except Exception as error:  # whatever unpickling damaged bytes ends in
        return " ".join(str(error).split()) or type(error).__name__
    return None
