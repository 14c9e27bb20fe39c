"""Models that a cluster keeps: the real client registers, finds and downloads them; the master is a stand-in."""

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Patch, refuses
from determined.experimental import client
from test_client import ANSWERS, StandInMaster, run_det

from transformer_trial import registry

TIME = "2026-01-01T00:00:00Z"
WHOLE, BARE, GONE = (f"{digit * 8}-1111-2222-3333-444444444444" for digit in "abc")
MODEL = {
    "archived": False, "creationTime": TIME, "id": 3, "lastUpdatedTime": TIME, "metadata": {}, "name": "ner",
    "numVersions": 2, "userId": 1, "username": "ada", "workspaceId": 1,
}  # fmt: skip


def checkpoint(uuid: str, storage: Path, *resources: str, state: str = "COMPLETED") -> dict[str, Any]:
    config = {"checkpoint_storage": {"type": "shared_fs", "host_path": str(storage)}, "searcher": {"metric": "f1"}}
    training = {"experimentConfig": config, "experimentId": 7, "trialId": 9, "hparams": {}}
    return {
        "uuid": uuid, "state": f"STATE_{state}", "metadata": {"steps_completed": 5}, "training": training,
        "resources": dict.fromkeys(("metadata.json", "state_dict.pth", *resources), "1"),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def master(tmp_path: Path, monkeypatch: Patch) -> Iterator[StandInMaster]:
    """A master that knows the model `ner`, of two versions, the model `new`, of none, and three checkpoints.

    Its user has a home, a name and a password.
    """
    storage = tmp_path / "storage"
    (storage / WHOLE / "model").mkdir(parents=True)
    for name in ("metadata.json", "state_dict.pth", "model/config.json"):
        (storage / WHOLE / name).write_text("{}")
    whole, bare = checkpoint(WHOLE, storage, "model/", "model/config.json"), checkpoint(BARE, storage)
    known = (whole, bare, checkpoint(GONE, storage, "model/config.json", state="DELETED"))
    version = {"creationTime": TIME, "id": 2, "lastUpdatedTime": TIME, "model": MODEL, "version": 2}
    old, new = ({"modelVersion": {**version, "checkpoint": of}} for of in (bare, whole))
    newest = {"model": MODEL, "modelVersions": [new["modelVersion"]], "pagination": {}}
    ner, empty = "GET /api/v1/models/ner", "GET /api/v1/models/new"
    answers = {
        "GET /api/v1/me": {"user": {"username": "ada", "admin": False, "active": True}},
        "POST /api/v1/models": {"model": MODEL}, "POST /api/v1/models/ner/versions": new,
        ner: {"model": MODEL}, f"{ner}/versions": newest, f"{ner}/versions/1": old, f"{ner}/versions/2": new,
        empty: {"model": {**MODEL, "name": "new"}}, f"{empty}/versions": {**newest, "modelVersions": []},
        **{f"GET /api/v1/checkpoints/{of['uuid']}": {"checkpoint": of} for of in known},
    }  # fmt: skip
    for name in [name for name in os.environ if name.startswith("DET_")]:
        monkeypatch.delenv(name)
    own = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}
    for name, value in {**own, "DET_USER": "ada", "DET_PASS": "Lovelace1815"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(client, "_determined", None)
    master = StandInMaster(answers={**ANSWERS, **answers})
    with master.listening() as address:
        monkeypatch.setenv("DET_MASTER", address)
        yield master


@pytest.mark.parametrize("name", ["det://ner", "det://ner:2", WHOLE])
def test_what_a_cluster_keeps_is_downloaded_once(name: str, tmp_path: Path) -> None:
    folder = registry.find_model("--model", name)
    assert folder == str(tmp_path / "cache" / "determined-ner" / WHOLE)
    assert [path.name for path in Path(folder).iterdir()] == ["config.json"], "the model alone is kept"
    assert os.listdir(tmp_path / "cache" / "determined-ner") == [WHOLE]
    shutil.rmtree(tmp_path / "storage")
    assert registry.find_model("--model", name) == folder


def test_a_folder_needs_no_cluster(master: StandInMaster, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / WHOLE).mkdir()
    for name in (WHOLE, "outputs/mine/model", "gone", "deb://ner"):
        assert registry.find_model("--model", name) == name
    assert not master.received


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("det://nor", "cannot get det://nor from a cluster: not found: GET /api/v1/models/nor", id="name"),
        pytest.param("det://ner:9", "not found: GET /api/v1/models/ner/versions/9", id="version"),
        pytest.param("det://new", "no version of new is registered. `det model register-version new UUID`", id="none"),
        pytest.param(WHOLE.replace("a", "d"), "not found: GET /api/v1/checkpoints/dddddddd-1111", id="checkpoint"),
        pytest.param("det://ner:1", f"checkpoint {BARE} holds no exported model. Take one", id="no-model"),
        pytest.param(GONE, "Only COMPLETED or PARTIALLY_DELETED checkpoints can be downloaded", id="deleted"),
    ],
)
def test_what_cannot_be_had_is_a_sentence(name: str, said: str, tmp_path: Path) -> None:
    with refuses(said, "Accepted are det://NAME[:VERSION]", "DET_MASTER names the cluster"):
        registry.find_model("--model", name)
    assert not list(tmp_path.glob("cache/*/*"))


@pytest.mark.parametrize(("problem", "said"), [("master", "refused"), ("login", "Unauth"), ("client", "pip install")])
def test_no_cluster_is_a_sentence(problem: str, said: str, master: StandInMaster, monkeypatch: Patch) -> None:
    if problem == "master":
        with socket.create_server(("127.0.0.1", 0)) as server:
            monkeypatch.setenv("DET_MASTER", f"http://127.0.0.1:{server.getsockname()[1]}")
    elif problem == "login":
        monkeypatch.delenv("DET_USER")
        master.answers = {**master.answers, "POST /api/v1/auth/login": None}
    else:
        monkeypatch.setitem(sys.modules, "determined.experimental", None)
    with refuses("--model: cannot get det://ner from a cluster: ", said):
        registry.find_model("--model", "det://ner")


def test_the_documented_commands_register_a_checkpoint(master: StandInMaster, tmp_path: Path) -> None:
    tmp_path.joinpath("project").mkdir()
    for command in (["create", "ner"], ["register-version", "ner", WHOLE]):
        run_det(master, tmp_path / "project", "model", *command)
    sent = {request: body for request, _, body in master.received if request.startswith("POST /api/v1/models")}
    assert sent["POST /api/v1/models"]["name"] == "ner"
    assert sent["POST /api/v1/models/ner/versions"]["checkpointUuid"] == WHOLE
