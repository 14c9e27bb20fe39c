"""Models that a Determined cluster keeps, as checkpoints and as versions in its registry."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from transformer_trial.errors import TrialError, reason_of

REGISTERED = re.compile(r"det://(.+?)(?::(\d+))?")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def find_model(key: str, model: str) -> str:
    """The folder of a model: that of its name, or of the download of `det://NAME[:VERSION]` or of a checkpoint's uuid.

    A download is kept in the user's cache, under the checkpoint's uuid: its contents never change. `key` is what named
    the model.
    """
    if os.path.exists(model) or not (REGISTERED.fullmatch(model) or UUID.fullmatch(model)):
        return model
    try:
        return str(_download(model))
    except ImportError:
        reason = "Determined's client is not installed. Install it (pip install determined)"
    except Exception as error:  # of the client, its storage, or the network: they have nothing in common
        reason = reason_of(error)
    accepted = "Accepted are det://NAME[:VERSION] of `det model list`, a checkpoint's uuid, and a folder"
    advice = "DET_MASTER names the cluster, and `det user login` logs in"
    raise TrialError(f"{key}: cannot get {model} from a cluster: {reason}. {accepted}. {advice}.")


def _download(model: str) -> Path:
    checkpoint = _find_checkpoint(model)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "determined-ner")
    folder = cache / checkpoint.uuid
    if not folder.exists():
        if not any(name.startswith("model/") for name in checkpoint.resources or {}):
            advice = "Take one of a training with export_model: true"
            raise ValueError(f"checkpoint {checkpoint.uuid} holds no exported model. {advice}")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as whole:  # a killed download leaves no half of a model
            downloaded = Path(checkpoint.download(f"{whole}/checkpoint"), "model")
            if not folder.exists():  # else another process was faster
                downloaded.replace(folder)
    return folder


def _find_checkpoint(model: str) -> Any:
    from determined.experimental import client

    if UUID.fullmatch(model):
        return client.get_checkpoint(model)
    name, version = REGISTERED.fullmatch(model).groups()  # type: ignore[union-attr]
    found = client.get_model(name).get_version(-1 if version is None else int(version))
    if found is None:
        raise ValueError(f"no version of {name} is registered. `det model register-version {name} UUID` registers one")
    return found.checkpoint
