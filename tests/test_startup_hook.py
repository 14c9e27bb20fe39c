"""startup-hook.sh, sourced by a real bash under `set -e`, the way Determined's entrypoint does it.

The virtual environments are real, and so is pip. The packages in all but the running interpreter's environment are
stand-ins: wheels with the name, version and requirements of a real package, and empty modules. They show what the hook
makes pip do and leave alone, without a network and in seconds; that the real packages work is not theirs to show.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import packaging
import pip
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

Result = subprocess.CompletedProcess[str]

REPOSITORY = Path(__file__).resolve().parent.parent
NOBODY = 65534
"""User id of a user who is neither root nor the owner of anything here."""

# What the hook imports after an installation, beyond the package itself.
SUBMODULES = {
    "determined": ["pytorch.py"],
    "seqeval": ["metrics.py"],
    "torch": ["utils/__init__.py", "utils/tensorboard.py"],
    "transformers": ["modeling_utils.py"],
}

CLUSTER_IMAGE = {
    "determined": "0.38.1",
    "torch": "2.3.0a0+40ec155e58.nv24.3",
    "numpy": "1.24.4",
    "nvidia-cublas": "12.4.2",
    "apex": "0.1",
}
CURRENT_IMAGE = {"determined": "0.38.1", "torch": "2.13.0", "numpy": "2.4.6", "nvidia-cublas": "13.0.1"}

INDEX: dict[tuple[str, str], list[str]] = {
    ("transformers", "4.57.0"): ["huggingface-hub<1", "numpy"],
    ("transformers", "4.57.6"): ["huggingface-hub<1", "numpy"],
    ("transformers", "5.23.0"): ["huggingface-hub>=1.31", "numpy"],
    ("huggingface-hub", "0.36.2"): [],
    ("huggingface-hub", "2.4.0"): [],
    ("datasets", "4.8.5"): ["pyarrow>=21", "huggingface-hub", "numpy"],
    ("datasets", "5.2.0"): ["pyarrow>=24", "huggingface-hub>=1.31", "numpy"],
    ("pyarrow", "22.0.0"): [],
    ("pyarrow", "26.0.1"): [],
    ("seqeval", "1.2.2"): ["numpy"],
    ("sentencepiece", "0.2.3"): [],
    ("jinja2", "3.1.6"): [],
    ("matplotlib", "3.10.9"): ["numpy"],
    ("tabulate", "0.10.0"): [],
    ("wcwidth", "0.9.4"): [],
    # Temptations: each newest version would have pip replace a part of every image.
    ("accelerate", "1.15.0"): ["torch>=2.0", "numpy"],
    ("accelerate", "1.99.0"): ["torch>=9", "nvidia-cublas>=99", "apex>=9"],
    ("tensorboard", "2.21.0"): ["numpy"],
    ("tensorboard", "2.99.0"): ["numpy>=9"],
    ("numpy", "9.0"): [],
    ("torch", "9.0"): [],
    ("nvidia-cublas", "99.0"): [],
    ("apex", "9.0"): [],
}
"""(name, version) -> requirements of the wheels that pip finds."""

WITH_TRANSFORMERS_4 = {
    "transformers": "4.57.6",
    "datasets": "4.8.5",
    "huggingface-hub": "0.36.2",
    "pyarrow": "22.0.0",
    "accelerate": "1.15.0",
    "seqeval": "1.2.2",
    "sentencepiece": "0.2.3",
    "jinja2": "3.1.6",
    "matplotlib": "3.10.9",
    "tabulate": "0.10.0",
    "wcwidth": "0.9.4",
    "tensorboard": "2.21.0",
}
WITH_TRANSFORMERS_5 = {
    **WITH_TRANSFORMERS_4,
    "transformers": "5.23.0",
    "datasets": "5.2.0",
    "huggingface-hub": "2.4.0",
    "pyarrow": "26.0.1",
}


def build_wheel(folder: Path, name: str, version: str, requires: list[str], code: str = "") -> Path:
    """Writes a stand-in's wheel, whose modules hold nothing but `code`, and returns its path."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    header = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        **{f"{module}/{file}": code for file in ["__init__.py", *SUBMODULES.get(name, [])]},
        f"{info}/METADATA": header + "".join(f"Requires-Dist: {requirement}\n" for requirement in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return path


class Workshop:
    """A folder that other users can read too: the project's two files, an index of wheels, and environments."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.project = root / "project"
        self.index = root / "index"
        self.tools = root / "tools"
        for folder in (self.project, self.index, self.tools):
            folder.mkdir()
        for name in ("startup-hook.sh", "requirements.txt"):
            shutil.copy(REPOSITORY / name, self.project)
        for (name, version), requires in INDEX.items():
            build_wheel(self.index, name, version, requires)
        for package in (pip, packaging):  # pip, and the one requirement of determined that the hook makes use of
            folder = Path(str(package.__file__)).parent
            shutil.copytree(folder, self.tools / folder.name, ignore=shutil.ignore_patterns("__pycache__"))

    def make_environment(self, packages: dict[str, str], *options: str, interpreter: str = sys.executable) -> Path:
        """Makes a virtual environment that holds stand-ins of `packages`, and returns its interpreter."""
        environment = Path(tempfile.mkdtemp(dir=self.root, prefix="environment-"))
        environment.chmod(0o755)
        subprocess.run([interpreter, "-m", "venv", "--without-pip", *options, environment], check=True)
        (site_packages,) = environment.glob("lib/python*/site-packages")
        (site_packages / "tools.pth").write_text(str(self.tools))
        for name, version in packages.items():
            zipfile.ZipFile(build_wheel(environment, name, version, INDEX.get((name, version), []))).extractall(
                site_packages
            )
        return environment / "bin" / "python"

    def source_hook(self, python: Path, *, user: int | None = None, **environment: str) -> Result:
        """Sources the hook under `set -e`; pip finds the index and nothing else unless `environment` says otherwise."""
        return subprocess.run(
            ["bash", "-c", "set -e; source startup-hook.sh; echo sourced"],
            cwd=self.project,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.root),
                "DET_PYTHON_EXECUTABLE": str(python),
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_NO_CACHE_DIR": "1",
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": str(self.index),
                **environment,
            },
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        yield Workshop(Path(root))


def list_packages(python: Path) -> dict[str, str]:
    """Returns name -> version of the packages in an environment."""
    program = """
from importlib.metadata import distributions
for package in distributions():
    print(package.metadata["Name"], package.version)
"""
    lines = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: version for name, version in map(str.split, lines)}


def assert_one_message(result: Result, *parts: str) -> None:
    """Asserts that the hook failed, stopped the shell, and printed one message, with these parts."""
    assert result.returncode == 1
    assert "sourced" not in result.stdout
    assert result.stderr.startswith("startup-hook.sh: ")
    assert result.stderr.count("startup-hook.sh: ") == 1
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


# Where nothing is missing: the environment of the running interpreter, with the real packages.


@pytest.mark.parametrize("options", ["-e", "-eu -o pipefail", "-ex"])
def test_hook_is_quick_and_silent_where_nothing_is_missing(options: str) -> None:
    environment = {**os.environ, "DET_PYTHON_EXECUTABLE": sys.executable, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    started = time.monotonic()
    result = subprocess.run(
        ["bash", "-c", f"set {options}; source startup-hook.sh; echo sourced"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - started < 5  # seconds; some 0.1 on an idle machine
    assert (result.returncode, result.stdout) == (0, "sourced\n"), result.stderr
    assert [line for line in result.stderr.splitlines() if not line.startswith("+")] == []


def test_hook_leaves_the_shell_as_it_was(tmp_path: Path) -> None:
    script = """
        set -eu -o pipefail
        snapshot() { set +o; shopt -p; declare -p; declare -f; alias; trap -p; pwd; umask; jobs; }
        snapshot > "$FOLDER/before"
        source startup-hook.sh
        snapshot > "$FOLDER/after"
    """
    environment = {**os.environ, "DET_PYTHON_EXECUTABLE": sys.executable, "FOLDER": str(tmp_path)}
    subprocess.run(["bash", "-c", script], cwd=REPOSITORY, env=environment, check=True)
    # Variables that bash itself keeps changing.
    restless = re.compile(r"declare \S+ (_|BASH_\w+|EPOCH\w+|LINENO|PIPESTATUS|S?RANDOM|SECONDS)=")
    before, after = (
        [line for line in (tmp_path / name).read_text().splitlines() if not restless.match(line)]
        for name in ("before", "after")
    )
    assert len(before) > 50
    assert after == before


# Where something is missing: environments with stand-ins.


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(CLUSTER_IMAGE, WITH_TRANSFORMERS_4, id="torch-2.3-numpy-1"),
        pytest.param({**CLUSTER_IMAGE, "pyarrow": "14.0.1"}, WITH_TRANSFORMERS_4, id="torch-2.3-numpy-1-old-pyarrow"),
        pytest.param(
            CURRENT_IMAGE,
            WITH_TRANSFORMERS_5 if sys.version_info >= (3, 11) else WITH_TRANSFORMERS_4,
            id="torch-2.13-numpy-2",
        ),
    ],
)
def test_hook_installs_what_the_image_lacks_and_leaves_its_stack_alone(
    workshop: Workshop, image: dict[str, str], expected: dict[str, str]
) -> None:
    python = workshop.make_environment(image)
    result = workshop.source_hook(python)
    assert result.returncode == 0, result.stderr
    assert list_packages(python) == {**image, **expected}

    again = workshop.source_hook(python, PIP_FIND_LINKS="")
    assert (again.returncode, again.stdout, again.stderr) == (0, "sourced\n", "")


def test_hook_replaces_packages_that_do_not_work_with_the_image(workshop: Workshop) -> None:
    python = workshop.make_environment({**CLUSTER_IMAGE, **WITH_TRANSFORMERS_5})
    result = workshop.source_hook(python)
    assert result.returncode == 0, result.stderr
    assert list_packages(python) == {**CLUSTER_IMAGE, **WITH_TRANSFORMERS_4}


def test_hook_obeys_the_pip_constraint_of_the_image(workshop: Workshop, tmp_path: Path) -> None:
    constraint = tmp_path / "constraint.txt"
    constraint.write_text("transformers==4.57.0\n")
    python = workshop.make_environment(CLUSTER_IMAGE)
    result = workshop.source_hook(python, PIP_CONSTRAINT=str(constraint))
    assert result.returncode == 0, result.stderr
    assert list_packages(python) == {**CLUSTER_IMAGE, **WITH_TRANSFORMERS_4, "transformers": "4.57.0"}


def test_hook_leaves_a_version_of_the_image_alone_that_is_out_of_range(workshop: Workshop) -> None:
    image = {**CURRENT_IMAGE, "torch": "2.1.0", "numpy": "1.22.0"}
    python = workshop.make_environment({**image, **WITH_TRANSFORMERS_4})
    result = workshop.source_hook(python, PIP_FIND_LINKS="")
    assert result.returncode == 0, result.stderr
    assert "note: the image's torch 2.1.0 is not what requirements.txt wants" in result.stdout
    assert list_packages(python) == {**image, **WITH_TRANSFORMERS_4}


def test_hook_installs_for_the_user_who_may_not_write_to_the_image(workshop: Workshop) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    interpreter = find_interpreter_of_everybody()
    # --system-site-packages: without it a virtual environment, unlike an image, has no per-user packages.
    python = workshop.make_environment(CLUSTER_IMAGE, "--system-site-packages", interpreter=interpreter)
    subprocess.run(["chmod", "--recursive", "a+rX", workshop.root], check=True)
    home = workshop.root / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)

    result = workshop.source_hook(python, user=NOBODY, HOME=str(home), PYTHONUSERBASE=str(home / "base"))
    assert result.returncode == 0, result.stderr
    (site_packages,) = (home / "base").glob("lib/python*/site-packages")
    assert {path.name for path in site_packages.glob("*.dist-info")} == {
        f"{name.replace('-', '_')}-{version}.dist-info" for name, version in WITH_TRANSFORMERS_4.items()
    }


def find_interpreter_of_everybody() -> str:
    """Returns an interpreter that other users may run too: not one in root's home."""
    for interpreter in (str(Path(sys.executable).resolve()), "/usr/bin/python3"):
        try:
            program = "import sys, venv; sys.exit(sys.version_info < (3, 10))"
            subprocess.run([interpreter, "-c", program], user=NOBODY, check=True, cwd="/", capture_output=True)
            return interpreter
        except (OSError, subprocess.CalledProcessError):
            pass
    pytest.skip("no interpreter here that a user other than root may run")


# Where it cannot work: one message, and the shell stops.


def test_hook_fails_with_one_message_where_pip_finds_nothing(workshop: Workshop) -> None:
    python = workshop.make_environment({**CLUSTER_IMAGE, **WITH_TRANSFORMERS_4, "seqeval": "0.0.1"})
    result = workshop.source_hook(python, PIP_FIND_LINKS="")
    assert_one_message(
        result, "No matching distribution found for seqeval", "PIP_INDEX_URL", "pip install --use-pep517 'seqeval<2"
    )
    assert list_packages(python) == {**CLUSTER_IMAGE, **WITH_TRANSFORMERS_4, "seqeval": "0.0.1"}


def test_hook_fails_where_the_image_forbids_what_is_needed(workshop: Workshop, tmp_path: Path) -> None:
    constraint = tmp_path / "constraint.txt"
    constraint.write_text("transformers==4.40.0\n")
    python = workshop.make_environment(CLUSTER_IMAGE)
    result = workshop.source_hook(python, PIP_CONSTRAINT=str(constraint))
    assert_one_message(result, "The user requested (constraint) transformers==4.40.0")
    assert list_packages(python) == CLUSTER_IMAGE


def test_hook_fails_where_what_it_installed_does_not_import(workshop: Workshop, tmp_path: Path) -> None:
    build_wheel(tmp_path, "seqeval", "1.3.0", [], code="raise ImportError('broken on purpose')")
    python = workshop.make_environment({**CLUSTER_IMAGE, **WITH_TRANSFORMERS_4, "seqeval": "0.0.1"})
    result = workshop.source_hook(python, PIP_FIND_LINKS=str(tmp_path))
    assert_one_message(result, "ImportError: broken on purpose")


@pytest.mark.parametrize("name", ["determined", "torch", "numpy"])
def test_hook_installs_no_part_of_a_determined_image(workshop: Workshop, name: str) -> None:
    python = workshop.make_environment({key: version for key, version in CLUSTER_IMAGE.items() if key != name})
    assert_one_message(workshop.source_hook(python), f"{python} has no {name}", "DET_PYTHON_EXECUTABLE")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("-r more.txt\n", "requirements.txt has the line '-r more.txt'", id="not-a-requirement"),
        pytest.param(None, "there is no requirements.txt in", id="no-file"),
    ],
)
def test_hook_names_the_fault_of_requirements_txt(tmp_path: Path, text: str | None, message: str) -> None:
    shutil.copy(REPOSITORY / "startup-hook.sh", tmp_path)
    if text is not None:
        (tmp_path / "requirements.txt").write_text(text)
    result = subprocess.run(
        ["bash", "-c", "set -e; source startup-hook.sh; echo sourced"],
        cwd=tmp_path,
        env={**os.environ, "DET_PYTHON_EXECUTABLE": sys.executable},
        capture_output=True,
        text=True,
    )
    assert_one_message(result, message)


# The lists of versions.


@pytest.mark.parametrize(
    ("file", "python_version"), [("constraints.txt", "3.11"), ("tests/fixtures/constraints-cluster.txt", "3.10")]
)
def test_exact_versions_are_within_the_ranges(file: str, python_version: str) -> None:
    lines = [line.partition("#")[0].strip() for line in (REPOSITORY / file).read_text().splitlines()]
    exact = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}
    for line in (REPOSITORY / "requirements.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line.partition("#")[0])
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python_version}):
            assert requirement.specifier.contains(exact[canonicalize_name(requirement.name)]), requirement
