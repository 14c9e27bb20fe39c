"""What the real `det` client hands over for an experiment, and what it registers, finds and downloads of models."""

import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT, Patch, refuses
from determined.common import util
from determined.experimental import client
from training_process import run_python

from transformer_trial import registry

NEEDED = (
    "ner_*.py", "train.py", "*predict.py", "ner/*.py", "ner/*.j2", "ner/formats/*.py", "transformer_trial/*.py",
    "requirements.txt", "startup-hook.sh", "*.yaml", "sample/ner_config.yaml",
    "sample/data/*", "sample/model/*",
)  # fmt: skip
"""The project's files that a trial, its search, or the sample's trial reads: these travel, and no others."""

DATA = (
    "mine.csv", "words.conll", "notes.json", "data/train.csv", "data/train.json.gz", "data/deep/er/dev.conll",
    "data/tests/test.conll", "data/outputs/train.parquet", "data/figures/a.tsv", "data/checkpoints/b.json",
    "data/constraints.txt", "data/sample/grammar.txt", ".data/hidden.json",
)  # fmt: skip
"""Data files of a user, in folders of all sorts of names."""

JUNK = (
    ".git/config", ".venv/lib/torch.py", ".venv-cluster/lib/torch.py", ".hypothesis/v", ".pytest_cache/v",
    ".mypy_cache/v", ".ruff_cache/v", "__pycache__/ner_trial.cpython-311.pyc", "data/__pycache__/reader.pyc",
    "transformer_trial/__pycache__/run.cpython-311.pyc", "determined_ner.egg-info/PKG-INFO",
    "outputs/run/model/model.safetensors", "outputs/run/checkpoints/determined/uuid/state_dict.pth",
    "checkpoints/uuid/state_dict.pth",
)  # fmt: skip
"""What tools and runs leave behind; `det checkpoint download` writes to checkpoints/."""

DET = Path(sys.executable).parent / "det"
TIME = "2026-01-01T00:00:00Z"
EXPERIMENT: dict[str, object] = {
    "id": 7, "name": "stand-in", "state": "STATE_ACTIVE", "archived": False, "config": {}, "originalConfig": "",
    "jobId": "job", "numTrials": 1, "projectId": 1, "projectOwnerId": 1, "searcherType": "single",
    "startTime": TIME, "username": "ada",
}  # fmt: skip
ANSWERS = {
    "GET /info": {"version": "0.38.1", "cluster_id": "cluster", "master_id": "master"},
    "POST /api/v1/auth/login": {"token": "planted", "user": {"username": "ada", "admin": False, "active": True}},
    "POST /api/v1/experiments": {"experiment": EXPERIMENT, "config": {}},
}
"""All that the client asks for when it creates an experiment."""


@dataclass
class StandInMaster:
    """Stands in for Determined's master, which cannot be had here: answers the client, and keeps what it sent."""

    answers: Mapping[str, Any] = field(default_factory=lambda: ANSWERS)
    """By request line; an HTTP status refuses, as 404 does whatever else is asked for."""
    received: list[tuple[str, Mapping[str, str], Any]] = field(default_factory=list)
    """Request line, headers and body of each request."""

    def experiment(self) -> dict[str, Any]:
        """Body of the only request for an experiment."""
        (body,) = (body for request, _, body in self.received if request == "POST /api/v1/experiments")
        return body

    def upload(self) -> dict[str, bytes]:
        """The files of that experiment, by path."""
        files = (file for file in self.experiment()["modelDefinition"] if chr(file["type"]) == "0")
        return {file["path"]: base64.b64decode(file["content"]) for file in files}

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        """Answer on loopback; yields the address."""
        master = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = f"{self.command} {self.path.partition('?')[0]}"
                master.received.append((request, dict(self.headers), json.loads(sent or "null")))
                answer = master.answers.get(request, 404)
                status = HTTPStatus(answer if isinstance(answer, int) else 200)
                said = {"code": 5, "message": f"{status.phrase}: {request}"}
                content = json.dumps(answer if status == HTTPStatus.OK else said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()


def log_in(patch: Patch, home: Path, address: str) -> None:
    """Let this process, and those that it starts, be of a user with that home, who has a name and a password."""
    for name in [name for name in os.environ if name.startswith(("DET_", "XDG_"))]:
        patch.delenv(name)
    own = {"HOME": str(home), "DET_USER": "ada", "DET_PASS": "Lovelace1815", "DET_MASTER": address}
    for name, value in {**own, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}.items():
        patch.setenv(name, value)


def create(master: StandInMaster, project: Path, *arguments: str) -> None:
    """`det experiment create` by somebody whose home is beside the project."""
    with pytest.MonkeyPatch.context() as patch, master.listening() as address:
        log_in(patch, project.with_suffix(".home"), address)
        said, _ = run_python(DET, "experiment", "create", *arguments, folder=project)
    assert "Created experiment 7" in said


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The project's files, as git knows them, and its modules that are not in git yet."""
    if not (PROJECT / ".git").exists():
        pytest.skip("not a git checkout: which files are the project's is unknown")
    git = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    new_modules = ["--others", "--exclude-standard", "ner_*.py", "ner/*.py", "ner/*.j2", "transformer_trial/*.py"]
    listings = [subprocess.check_output(command, cwd=PROJECT, text=True) for command in (git, git + new_modules)]
    return [name for name in "".join(listings).split("\0") if name and (PROJECT / name).is_file()]


@pytest.fixture(scope="module")
def project(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project as somebody has it who has worked with it: with data, environments and outputs."""
    folder = tmp_path_factory.mktemp("project")
    for name in (*DATA, *JUNK, *tracked):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((PROJECT / name).read_bytes() if name in tracked else b"planted")
    return folder


@pytest.fixture(scope="module")
def sample(project: Path) -> StandInMaster:
    """A master that got the sample's experiment."""
    master = StandInMaster()
    create(master, project, "sample/ner_config.yaml", ".")
    assert (project.with_suffix(".home") / ".config/determined/auth.json").exists(), "the client used another home"
    return master


@pytest.mark.parametrize("file", ["ner_config.yaml", "ner_search.yaml", "distributed.yaml", "sample/ner_config.yaml"])
def test_a_configuration_arrives_as_written_but_for_overrides(file: str, project: Path, sample: StandInMaster) -> None:
    master = StandInMaster()
    create(master, project, "--config=data.train_file=data/train.csv", file, ".")
    expected = util.safe_load_yaml_with_exceptions((PROJECT / file).read_text())
    expected["data"]["train_file"] = "data/train.csv"
    assert util.safe_load_yaml_with_exceptions(master.experiment()["config"]) == expected
    assert master.upload() == sample.upload()


def test_the_upload_is_what_a_trial_needs_and_data(sample: StandInMaster, project: Path, tracked: list[str]) -> None:
    upload = sample.upload()
    found = {pattern: {str(path.relative_to(project)) for path in project.glob(pattern)} for pattern in NEEDED}
    assert all(found.values()), f"a pattern that fits no file: {found}"
    needed = set().union(*found.values()) & set(tracked)
    assert set(upload) == {*needed, *DATA}
    assert all(upload[name] == (PROJECT / name).read_bytes() for name in needed)
    assert all(upload[name] == b"planted" for name in DATA)
    assert sum(map(len, upload.values())) < 2**20


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


@pytest.fixture
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
    monkeypatch.setattr(client, "_determined", None)
    master = StandInMaster({**ANSWERS, **answers})
    with master.listening() as address:
        log_in(monkeypatch, tmp_path / "home", address)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield master


@pytest.mark.usefixtures("master")
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


@pytest.mark.usefixtures("master")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("det://nor", "cannot get det://nor from a cluster: Not Found: GET /api/v1/models/nor", id="name"),
        pytest.param("det://ner:9", "Not Found: GET /api/v1/models/ner/versions/9", id="version"),
        pytest.param("det://new", "no version of new is registered. `det model register-version new UUID`", id="none"),
        pytest.param(WHOLE.replace("a", "d"), "Not Found: GET /api/v1/checkpoints/dddddddd-1111", id="checkpoint"),
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
        master.answers = {**master.answers, "POST /api/v1/auth/login": 403}
    else:
        monkeypatch.setitem(sys.modules, "determined.experimental", None)
    with refuses("--model: cannot get det://ner from a cluster: ", said):
        registry.find_model("--model", "det://ner")


def test_the_documented_commands_register_a_checkpoint(master: StandInMaster) -> None:
    commands = re.findall(r"^det (model .*?) +#", (PROJECT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        run_python(DET, *command.replace("UUID", WHOLE).split())
    sent = {request: body for request, _, body in master.received if request.startswith("POST /api/v1/models")}
    assert sent["POST /api/v1/models"]["name"] == "ner"
    assert sent["POST /api/v1/models/ner/versions"]["checkpointUuid"] == WHOLE
