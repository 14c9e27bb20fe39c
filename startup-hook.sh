# Makes the container able to run this project: installs what requirements.txt asks for and the image lacks.
#
# Determined's entrypoint sources this file with bash, under `set -e` and `set -x`, in the model definition's folder,
# once per container. Hence it is a single command: nothing stays behind in that shell, and the command's exit status
# is the hook's. With nothing to install it takes a fraction of a second and needs no network.
"${DET_PYTHON_EXECUTABLE:-python3}" - <<'PYTHON'
import re, shlex, subprocess, sys, tempfile
from collections import defaultdict
from importlib import metadata
from pathlib import Path

# What makes an image a Determined image, which is never installed; and the packages that belong to the image's builds
# of torch, NumPy and CUDA, which an installation must leave as they are.
IMAGE = ("determined", "torch", "numpy")
BUILDS = re.compile(
    r"numpy$|apex$|torch|pytorch|triton|nvidia|nvfuser|cuda|cupy|tensorrt|transformer-engine|flash-attn|xformers"
)
CHECK = """import accelerate, datasets, determined.pytorch, pydantic, seqeval.metrics
import torch.utils.tensorboard, transformers.modeling_utils"""

def fail(message):
    sys.exit(f"startup-hook.sh: {message}")

def installed_version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

for name in IMAGE:
    if installed_version(name) is None:
        fail(f"{sys.executable} has no {name}, which a Determined image brings along. Use such an image, or name the "
             "interpreter that has it in DET_PYTHON_EXECUTABLE.")
if not Path("requirements.txt").is_file():
    fail(f"there is no requirements.txt in {Path.cwd()}. Source this file in the folder that holds both.")

from packaging.requirements import InvalidRequirement, Requirement  # determined requires packaging: it is there
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

# 1. What the project needs. The image's own versions rule some of it out, of which requirements.txt cannot know.
lines = Path("requirements.txt").read_text(encoding="utf-8").splitlines()
if Version(metadata.version("torch")) < Version("2.6"):  # transformers 5 needs it; 4 needs huggingface_hub 0.x
    lines += ["transformers<5", "huggingface_hub<1", "datasets<5"]
if Version(metadata.version("numpy")) < Version("2"):  # later ones die on import: "pyarrow requires NumPy 2.0 or newer"
    lines += ["pyarrow<23"]
needed = defaultdict(SpecifierSet)  # package name -> the versions that will do
for line in filter(None, (line.partition("#")[0].strip() for line in lines)):
    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        fail(f"requirements.txt has the line {line!r}, which is not of the form: name>=1.0,<2 ; marker")
    if requirement.marker is None or requirement.marker.evaluate():
        needed[canonicalize_name(requirement.name)] &= requirement.specifier

# 2. What of it is missing. A pre-release fits, too: an NVIDIA image has torch 2.3.0a0+40ec155e58.nv24.3.
missing, present = [], []
for name, versions in needed.items():
    version = installed_version(name)
    fits = version is not None and versions.contains(version, prereleases=True)
    if name not in IMAGE:
        (present if fits else missing).append(f"{name}{versions}")
    elif not fits:
        print(f"startup-hook.sh: note: the image's {name} {version} is not what requirements.txt wants")
if not missing:
    sys.exit()

# 3. Install that, while what is there keeps within its range and the image's builds stay exactly as they are. pip obeys
# the image's own PIP_CONSTRAINT as well, and installs into the user's folder where it may not write to the image's.
def run(*command):
    """Run Python with these arguments; all that it prints becomes the result's `stdout`."""
    return subprocess.run([sys.executable, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace")

print("startup-hook.sh: installing", shlex.join(missing), flush=True)
names = {canonicalize_name(dist.metadata["Name"] or "") for dist in metadata.distributions()}
limits = [*present, *(f"{name}=={metadata.version(name)}" for name in names if BUILDS.match(name))]
with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
    print(*limits, sep="\n", file=constraints, flush=True)
    # --use-pep517: without it an older pip and a newer setuptools together fail to build seqeval.
    options = ["--use-pep517", "--disable-pip-version-check", "--progress-bar=off", "--constraint", constraints.name]
    pip = run("-m", "pip", "install", *options, *missing)
if pip.returncode:
    fail("this container lacks packages, and pip could not install them. Give the container a way to a package index "
         "(PIP_INDEX_URL), or use an image that was built with\n    pip install --use-pep517 "
         f"{shlex.join(missing)}\npip says:\n{pip.stdout}")
for line in pip.stdout.splitlines():
    if ", but you have " in line:  # of determined and requests: it works with later ones too
        print(f"startup-hook.sh: note: pip says: {line}")
check = run("-c", CHECK)
if check.returncode:
    fail(f"pip installed everything, but it does not import: {check.stdout.strip().splitlines()[-1]}\nUse another "
         "image, or narrow the ranges in requirements.txt to versions that work with this one.")
PYTHON
