# Makes the container able to run this project: installs what requirements.txt asks for and the image lacks.
#
# Determined's entrypoint sources this file with bash, under `set -e` and `set -x`, in the model definition's folder,
# once per container. Hence it is a single command: nothing stays behind in that shell, and the command's exit status
# is the hook's. With nothing to install it takes a fraction of a second and needs no network.
"${DET_PYTHON_EXECUTABLE:-python3}" - <<'PYTHON'
import re
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib import metadata
from pathlib import Path

# What makes an image a Determined image: never installed, never replaced.
FROM_IMAGE = ("determined", "torch", "numpy")
# The packages that belong to the image's builds of torch, NumPy and CUDA: an installation must not change them.
IMAGE_STACK = re.compile(
    r"numpy$|apex$|torch|pytorch|triton|nvidia|nvfuser|cuda|cupy|tensorrt|transformer-engine|flash-attn|xformers"
)
# What a fresh interpreter must be able to do after an installation.
CHECK = """
import accelerate, datasets, determined.pytorch, seqeval.metrics, torch.utils.tensorboard, transformers.modeling_utils
from importlib.metadata import version
print(version("torch"), version("numpy"))
"""


def fail(*lines):
    sys.exit("startup-hook.sh: " + "\n    ".join(lines))


def run(command):
    """Runs a command and returns it with all that it printed as its `stdout`."""
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace"
    )


def installed_version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def fits(name, versions):
    version = installed_version(name)  # of a pre-release too: an NVIDIA image has torch 2.3.0a0+40ec155e58.nv24.3
    return version is not None and versions.contains(version, prereleases=True)


absent = [name for name in FROM_IMAGE if not installed_version(name)]
if absent:
    fail(
        f"{sys.executable} has no {' and no '.join(absent)}, which a Determined image brings along.",
        "Use such an image, or name the interpreter that has them in DET_PYTHON_EXECUTABLE.",
    )
if not Path("requirements.txt").is_file():
    fail(f"there is no requirements.txt in {Path.cwd()}.", "Source this file in the folder that holds both.")

from packaging.requirements import InvalidRequirement, Requirement  # determined requires packaging: it is there
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

# 1. What the project needs: package name -> the versions that will do.
needed = defaultdict(SpecifierSet)
for line in Path("requirements.txt").read_text(encoding="utf-8").splitlines():
    line = line.partition("#")[0].strip()
    if not line:
        continue
    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        fail(f"requirements.txt has the line {line!r}, which is not of the form: name>=1.0,<2 ; marker")
    if requirement.marker is None or requirement.marker.evaluate():
        needed[canonicalize_name(requirement.name)] &= requirement.specifier

# 2. What the image's own versions rule out. requirements.txt cannot say this: its markers know Python's version only.
torch, numpy = metadata.version("torch"), metadata.version("numpy")
if Version(torch) < Version("2.6"):  # transformers 5 would switch it off; transformers 4 needs huggingface_hub 0.x
    needed["transformers"] &= "<5"
    needed["huggingface-hub"] &= "<1"
    needed["datasets"] &= "<5"
if Version(numpy) < Version("2"):  # later ones die on import: "pyarrow requires NumPy 2.0 or newer"
    needed["pyarrow"] &= "<23"

# 3. What of it is missing.
for name in FROM_IMAGE:
    if not fits(name, needed.pop(name, SpecifierSet())):
        print(f"startup-hook.sh: note: the image's {name} {installed_version(name)} is not what requirements.txt wants")
missing = [f"{name}{versions}" for name, versions in needed.items() if not fits(name, versions)]
if not missing:
    sys.exit()

# 4. Install that, while what is there keeps within its range and the image's stack stays exactly as it is. pip obeys
# the image's own PIP_CONSTRAINT as well, and installs into the user's folder where it may not write to the image's.
print("startup-hook.sh: installing", shlex.join(missing), flush=True)
names = {canonicalize_name(dist.metadata["Name"] or "") for dist in metadata.distributions()}
pins = [f"{name}=={metadata.version(name)}" for name in sorted(names) if IMAGE_STACK.match(name)]
ranges = [f"{name}{versions}" for name, versions in needed.items()]
with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
    constraints.write("\n".join(pins + [line for line in ranges if line not in missing]))
    constraints.flush()
    # --use-pep517: without it an older pip and a newer setuptools together fail to build seqeval.
    options = ["--use-pep517", "--disable-pip-version-check", "--progress-bar=off", "--constraint", constraints.name]
    pip = run([sys.executable, "-m", "pip", "install", *options, *missing])
lines = [line for line in pip.stdout.splitlines() if line.strip()]
if pip.returncode:
    first = next((i for i, line in enumerate(lines) if line.lower().lstrip().startswith("error")), -1)
    doing = [line for line in lines[:first] if line.startswith(("Collecting ", "WARNING: Retrying "))]
    error = lines[first:] if len(lines[first:]) <= 16 else [*lines[first:][:4], "...", *lines[-12:]]
    fail(
        "this container lacks packages, and pip could not install them. pip says:",
        *doing[-1:],
        *error,
        "Give the container a way to a package index (PIP_INDEX_URL), or use an image that was built with",
        f"pip install --use-pep517 {shlex.join(missing)}",
    )
for line in lines:
    if ", but you have " in line:
        print(f"startup-hook.sh: note: pip says: {line}")

# 5. Check the outcome.
check = run([sys.executable, "-c", CHECK])
if check.returncode:
    fail(
        "pip installed everything, but it does not import:",
        *check.stdout.splitlines()[-1:],
        "Use another image, or narrow the ranges in requirements.txt to versions that work with this one.",
    )
if f"{torch} {numpy}" not in check.stdout:
    fail(f"pip has replaced the image's torch {torch} or NumPy {numpy}, which it was told to leave alone.")
PYTHON
