"""startup-hook.sh, sourced by a real bash under `set -e`, the way Determined's entrypoint does it.

Virtual environments and pip are real. Packages in all but the running interpreter's environment are stand-ins: wheels
with name, version and requirements of a real one, and empty modules. They show what the hook makes pip do, offline.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Mapping
from importlib.metadata import distribution, distributions
from pathlib import Path
from typing import Any

import packaging
import pip
import pytest
from conftest import PROJECT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from test_house import MODULES, imported

Result = subprocess.CompletedProcess[str]
Packages = dict[str, str]
"""Versions by name."""

# What the hook imports after an installation, beyond the package itself.
SUBMODULES = {
    "determined": ["pytorch.py"], "seqeval": ["metrics.py"], "torch": ["utils/__init__.py", "utils/tensorboard.py"],
    "transformers": ["modeling_utils.py"],
}  # fmt: skip

CLUSTER_IMAGE = {
    "determined": "0.38.1", "torch": "2.3.0a0+40ec155e58.nv24.3", "numpy": "1.24.4", "nvidia-cublas": "12.4.2",
    "apex": "0.1",
}  # fmt: skip
CURRENT_IMAGE = {"determined": "0.38.1", "torch": "2.13.0", "numpy": "2.4.6", "nvidia-cublas": "13.0.1"}


def read_pins(file: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (PROJECT / file).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def read_exact_versions(file: str) -> Packages:
    return {str(canonicalize_name(name)): version for name, version in (line.split("==") for line in read_pins(file))}


def read_requirements(python_version: str) -> dict[str, SpecifierSet]:
    requirements = map(Requirement, read_pins("requirements.txt"))
    applicable = (r for r in requirements if r.marker is None or r.marker.evaluate({"python_version": python_version}))
    return {str(canonicalize_name(r.name)): r.specifier for r in applicable}


def choose_packages(file: str) -> Packages:
    """The packages that the hook has to install, in the versions of such a file."""
    names = {*read_requirements("3.10"), *read_requirements("3.11")} - CURRENT_IMAGE.keys()
    return {name: version for name, version in read_exact_versions(file).items() if name in names}


CLUSTER_CONSTRAINTS = "tests/fixtures/constraints-cluster.txt"
WITH_TRANSFORMERS_4 = choose_packages(CLUSTER_CONSTRAINTS)
WITH_TRANSFORMERS_5 = choose_packages("constraints.txt")
TRANSFORMERS_4_57 = {"transformers": "4.57.0"}

OUTDATED_IMAGE = {**CLUSTER_IMAGE, **WITH_TRANSFORMERS_4, "seqeval": "0.0.1"}
TOO_NEW_IMAGE = {**CLUSTER_IMAGE, **WITH_TRANSFORMERS_5}

REQUIRES = {
    ("transformers", "4"): ["huggingface-hub<1", "tokenizers<0.23", "numpy"],
    ("transformers", "5"): ["huggingface-hub>=1.31", "tokenizers>=0.23", "numpy"],
    ("datasets", "4"): ["pyarrow>=21", "huggingface-hub", "numpy"],
    ("datasets", "5"): ["pyarrow>=24", "huggingface-hub>=1.31", "numpy"],
    ("accelerate", "1"): ["torch>=2.0", "numpy"],
}
"""(name, major version) -> requirements."""

INDEX: dict[tuple[str, str], list[str]] = {
    (name, version): REQUIRES.get((name, version.partition(".")[0]), [])
    for packages in (WITH_TRANSFORMERS_4, WITH_TRANSFORMERS_5, TRANSFORMERS_4_57)
    for name, version in packages.items()
} | {
    # Temptations: each newest version would have pip replace a part of every image.
    ("accelerate", "1.99.0"): ["torch>=9", "nvidia-cublas>=99", "apex>=9"],
    ("tensorboard", "2.99.0"): ["numpy>=9"],
    **{(name, "9.0"): [] for name in ("numpy", "torch", "apex")},
    ("nvidia-cublas", "99.0"): [],
}
"""(name, version) -> requirements of the wheels that pip finds."""


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


def source(folder: Path, env: Mapping[str, str], *, shell: str = "bash -e", preexec_fn: Any = None) -> Result:
    """Sources the hook in a folder."""
    command = [*shell.split(), "-c", ". ./startup-hook.sh; echo sourced"]
    options: Any = {"preexec_fn": preexec_fn, "capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(command, cwd=folder, env=env, **options)


class Workshop:
    """A folder with the project's two files, an index of wheels, and environments."""

    def __init__(self, root: Path) -> None:
        self.root, self.project, self.index, self.tools = root, root / "project", root / "index", root / "tools"
        for folder in (self.project, self.index, self.tools):
            folder.mkdir()
        for name in ("startup-hook.sh", "requirements.txt"):
            shutil.copy(PROJECT / name, self.project)
        for (name, version), requires in INDEX.items():
            build_wheel(self.index, name, version, requires)
        for package in (pip, packaging):  # pip, and the one requirement of determined that the hook makes use of
            folder = Path(str(package.__file__)).parent
            shutil.copytree(folder, self.tools / folder.name, ignore=shutil.ignore_patterns("__pycache__"))

    def make_environment(self, packages: Packages, *options: str) -> Path:
        """Makes a virtual environment that holds stand-ins of `packages`, and returns its interpreter."""
        environment = Path(tempfile.mkdtemp(dir=self.root, prefix="environment-"))
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", *options, environment], check=True)
        (site_packages,) = environment.glob("lib/python*/site-packages")
        (site_packages / "tools.pth").write_text(str(self.tools))
        for name, version in packages.items():
            wheel = build_wheel(environment, name, version, INDEX.get((name, version), []))
            zipfile.ZipFile(wheel).extractall(site_packages)
        return environment / "bin" / "python"

    def source_hook(self, python: Path, *, preexec_fn: Any = None, **env: str) -> Result:
        """Sources the hook under `set -e`; pip finds the index and nothing else unless `env` says otherwise."""
        usual = {
            "PATH": os.environ["PATH"], "HOME": str(self.root), "DET_PYTHON_EXECUTABLE": str(python),
            "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.index),
        }  # fmt: skip
        return source(self.project, usual | env, preexec_fn=preexec_fn)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


def write_as_an_ordinary_user() -> None:
    """Give up root's rights to write and read whatever it likes, from the next program on; others have none of them."""
    if os.getuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
            if libc.prctl(24, capability, 0, 0, 0) != 0:  # PR_CAPBSET_DROP
                raise OSError(ctypes.get_errno(), "cannot give up a right of root's")


def list_packages(environment: Path) -> Packages:
    """Returns name -> version of the packages in an environment."""
    (site_packages,) = environment.glob("lib/python*/site-packages")
    return {package.metadata["Name"]: package.version for package in distributions(path=[str(site_packages)])}


def assert_one_message(result: Result, *parts: str) -> None:
    """Asserts that the hook failed, stopped the shell, and printed one message, with these parts."""
    assert result.returncode == 1 and "sourced" not in result.stdout and "Traceback" not in result.stderr
    assert result.stderr.startswith("startup-hook.sh: ") and result.stderr.count("startup-hook.sh: ") == 1
    assert [part for part in parts if part not in result.stderr] == []


# Where nothing is missing: the environment of the running interpreter, with the real packages.

HERE = {**os.environ, "DET_PYTHON_EXECUTABLE": sys.executable, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
"""Nothing is ever installed into it."""


@pytest.mark.parametrize("shell", ["bash -e", "bash -eu -o pipefail", "bash -ex", "sh -ex", "bash --posix -ex"])
def test_hook_is_quick_and_silent_where_nothing_is_missing(shell: str) -> None:
    started = time.monotonic()
    result = source(PROJECT, HERE, shell=shell)
    assert time.monotonic() - started < 5  # seconds; some 0.1 on an idle machine
    assert (result.returncode, result.stdout) == (0, "sourced\n"), result.stderr
    assert [line for line in result.stderr.splitlines() if not line.startswith("+")] == []


def test_hook_leaves_the_shell_as_it_was(tmp_path: Path) -> None:
    script = """
        set -eux -o pipefail
        snapshot() { set +o; shopt -p; declare -p; declare -f; alias; trap -p; pwd; umask; jobs; }
        snapshot > "$FOLDER/before"
        source startup-hook.sh
        snapshot > "$FOLDER/after"
    """
    subprocess.run(["bash", "-c", script], cwd=PROJECT, env={**HERE, "FOLDER": str(tmp_path)}, check=True)
    # Variables that bash itself keeps changing.
    restless = re.compile(r"declare \S+ (_|BASH_\w+|EPOCH\w+|LINENO|PIPESTATUS|S?RANDOM|SECONDS)=")
    before, after = (
        [line for line in (tmp_path / name).read_text().splitlines() if not restless.match(line)]
        for name in ("before", "after")
    )
    assert after == before and len(before) > 50


# Where something is missing: environments with stand-ins.

NEWEST = WITH_TRANSFORMERS_5 if sys.version_info >= (3, 11) else WITH_TRANSFORMERS_4
IMAGES = {
    "torch-2.3-numpy-1": (CLUSTER_IMAGE, "", WITH_TRANSFORMERS_4),
    "old-pyarrow": ({**CLUSTER_IMAGE, "pyarrow": "14.0.1"}, "", WITH_TRANSFORMERS_4),
    "too-new-for-the-image": (TOO_NEW_IMAGE, "", WITH_TRANSFORMERS_4),
    "a-constraint-of-the-image": (CLUSTER_IMAGE, "transformers==4.57.0\n", WITH_TRANSFORMERS_4 | TRANSFORMERS_4_57),
    "torch-2.13-numpy-2": (CURRENT_IMAGE, "", NEWEST),
}
"""Packages of an image, its constraint, and what the hook installs into it."""


@pytest.mark.parametrize(("image", "constraint", "expected"), IMAGES.values(), ids=IMAGES)
def test_hook_installs_what_the_image_lacks_and_leaves_its_stack_alone(
    workshop: Workshop, tmp_path: Path, image: Packages, constraint: str, expected: Packages
) -> None:
    (tmp_path / "constraint.txt").write_text(constraint)
    python = workshop.make_environment(image)
    result = workshop.source_hook(python, PIP_CONSTRAINT=str(tmp_path / "constraint.txt"))
    assert result.returncode == 0, result.stderr
    assert list_packages(python.parents[1]) == {**image, **expected}
    again = workshop.source_hook(python, PIP_FIND_LINKS="")
    assert (again.returncode, again.stdout, again.stderr) == (0, "sourced\n", "")


def test_hook_leaves_a_version_of_the_image_alone_that_is_out_of_range(workshop: Workshop) -> None:
    image = {**CURRENT_IMAGE, "torch": "2.1.0", "numpy": "1.22.0"}
    python = workshop.make_environment({**image, **WITH_TRANSFORMERS_4})
    result = workshop.source_hook(python, PIP_FIND_LINKS="")
    assert result.returncode == 0, result.stderr
    assert "note: the image's torch 2.1.0 is not what requirements.txt wants" in result.stdout
    assert list_packages(python.parents[1]) == {**image, **WITH_TRANSFORMERS_4}


@pytest.mark.parametrize("user_base", ["base", "closed/base"])
def test_hook_installs_for_the_user_who_may_not_write_to_the_image(
    workshop: Workshop, tmp_path: Path, user_base: str
) -> None:
    # --system-site-packages: without it a virtual environment, unlike an image, has no per-user packages.
    python = workshop.make_environment(CLUSTER_IMAGE, "--system-site-packages")
    (tmp_path / "closed").mkdir()
    for folder in (tmp_path / "closed", *(path for path in python.parents[1].rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    env, user = {"PYTHONUSERBASE": str(tmp_path / user_base)}, write_as_an_ordinary_user
    result = workshop.source_hook(python, preexec_fn=user, **env)
    if user_base == "base":
        installed = list_packages(tmp_path / "base")  # the interpreter's own has the others, which `again` needs
        assert installed["transformers"] and installed.items() <= WITH_TRANSFORMERS_4.items(), result.stderr
        again = workshop.source_hook(python, preexec_fn=user, PIP_FIND_LINKS="", **env)
        assert (again.returncode, again.stdout, again.stderr) == (0, "sourced\n", "")
    else:
        assert_one_message(result, "pip could not install them", "Permission denied")


# Where it cannot work: one message, and the shell stops.

FAILURES = {
    "pip-finds-nothing": (
        OUTDATED_IMAGE, {"PIP_FIND_LINKS": ""},
        ["No matching distribution found for seqeval", "PIP_INDEX_URL", "pip install --use-pep517 'seqeval<2"],
    ),
    "the-image-forbids-it": (
        CLUSTER_IMAGE, {"PIP_CONSTRAINT": "{tmp_path}/constraint.txt"},
        ["The user requested (constraint) transformers==4.40.0"],
    ),
    "it-does-not-import": (OUTDATED_IMAGE, {"PIP_FIND_LINKS": "{tmp_path}"}, ["ImportError: broken on purpose"]),
    "the-index-has-a-password": (  # at an address where nobody listens
        OUTDATED_IMAGE,
        {"PIP_FIND_LINKS": "", "PIP_NO_INDEX": "0", "PIP_RETRIES": "0", "PIP_INDEX_URL": "http://me:hf_planted@127.0.0.1:9"},
        ["seqeval", "PIP_INDEX_URL"],
    ),
}  # fmt: skip
"""Packages of an image, variables of pip, and what the message says."""


@pytest.mark.parametrize(("image", "environment", "messages"), FAILURES.values(), ids=FAILURES)
def test_hook_fails_with_one_message_where_it_cannot_install(
    workshop: Workshop, tmp_path: Path, image: Packages, environment: Any, messages: list[str]
) -> None:
    (tmp_path / "constraint.txt").write_text("transformers==4.40.0\n")
    build_wheel(tmp_path, "seqeval", "1.3.0", [], code="raise ImportError('broken on purpose')")
    python = workshop.make_environment(image)
    options: dict[str, Any] = {name: value.format(tmp_path=tmp_path) for name, value in environment.items()}
    result = workshop.source_hook(python, **options)
    assert_one_message(result, *messages)
    assert "hf_planted" not in result.stdout + result.stderr
    assert list_packages(python.parents[1]).keys() == image.keys()
    assert (list_packages(python.parents[1]) == image) == ("broken" not in messages[0])


@pytest.mark.parametrize("name", ["determined", "torch", "numpy"])
def test_hook_installs_no_part_of_a_determined_image(workshop: Workshop, name: str) -> None:
    python = workshop.make_environment({key: version for key, version in CLUSTER_IMAGE.items() if key != name})
    assert_one_message(workshop.source_hook(python), f"{python} has no {name}", "DET_PYTHON_EXECUTABLE")


@pytest.mark.parametrize(
    ("requirements", "message"),
    [(None, "there is no requirements.txt in"), ("-r more.txt\n", "requirements.txt has the line '-r more.txt'")],
)
def test_hook_says_what_is_wrong_with_requirements_txt(tmp_path: Path, requirements: str | None, message: str) -> None:
    shutil.copy(PROJECT / "startup-hook.sh", tmp_path)
    if requirements is not None:
        (tmp_path / "requirements.txt").write_text(requirements)
    assert_one_message(source(tmp_path, HERE), message)


@pytest.mark.parametrize(("file", "python_version"), [("constraints.txt", "3.11"), (CLUSTER_CONSTRAINTS, "3.10")])
def test_exact_versions_are_within_the_ranges(file: str, python_version: str) -> None:
    exact, ranges = read_exact_versions(file), read_requirements(python_version)
    assert {name: exact[name] for name, versions in ranges.items() if not versions.contains(exact[name])} == {}


@pytest.mark.parametrize("python_version", ["3.10", "3.11"])
def test_whatever_the_project_imports_is_in_requirements_txt_with_a_range(python_version: str) -> None:
    ranges = read_requirements(python_version)
    assert {name for name, versions in ranges.items() if not re.search("<.*>=", str(versions))} == set()
    scripts = [file.relative_to(PROJECT) for file in (PROJECT / "sample").glob("*.py")]
    modules = {name for file in (*MODULES, *scripts) for name in imported(file)}
    names = {".".join(module.split(".")[: 2 if module.startswith("ruamel.") else 1]) for module in modules}
    own = {file.parts[0].removesuffix(".py") for file in MODULES}
    needed = {str(canonicalize_name(name)) for name in names - own - sys.stdlib_module_names}
    assert needed >= {"torch", "datasets", "ruamel-yaml", "spacy"}
    needed -= {"spacy"}  # for files that spaCy wrote; without it their reader says how to install it
    assert needed - ranges.keys() == ({"determined"} if python_version == "3.10" else set())


def test_the_one_package_that_only_drawing_needs_comes_with_determined() -> None:
    packages = {name.partition(".")[0] for name in imported(Path("figures/draw_metrics.py"))}
    assert packages - sys.stdlib_module_names == {"matplotlib"}
    assert "matplotlib" in (distribution("determined").requires or [])


@pytest.mark.slow
@pytest.mark.parametrize("version", ["22.0.2", "23.0.1"])  # of Ubuntu 22.04, and of Debian 12
def test_the_command_of_requirements_txt_installs_sources_with_an_old_pip(tmp_path: Path, version: str) -> None:
    """seqeval comes as source: of all requirements it is the one that an old pip fails at without an option."""
    command = re.search(r"#     (pip install .*?)  ", (PROJECT / "requirements.txt").read_text())
    assert command is not None and command[1].endswith("-r requirements.txt -c constraints.txt")
    options = command[1].removeprefix("pip install ").removesuffix(" -r requirements.txt -c constraints.txt").split()
    (pin,) = [line for line in (PROJECT / "constraints.txt").read_text().splitlines() if line.startswith("seqeval==")]
    venv.create(tmp_path / "venv", with_pip=True)
    pip = [str(tmp_path / "venv" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    for arguments in ([f"pip=={version}"], ["--no-deps", *options, pin]):
        subprocess.run([*pip, *arguments], check=True)
