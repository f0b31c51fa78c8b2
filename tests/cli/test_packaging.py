"""What is installed: the wheel holds the whole package, and says what it needs."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

from growth.__main__ import BY_TRAIN
from tests.helpers import runs

PROJECT = tomllib.loads((runs.ROOT / "pyproject.toml").read_text())["project"]
CORE = {
    "absl-py", "chex", "einops", "flax", "jax", "jaxtyping", "lazy-loader", "numpy", "optax"
}  # fmt: skip

# As `python -m build` does it: an archive of the source, and a wheel of that archive alone.
BUILD = (
    "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
)


def build(kind, source, output):
    """The archive that the project's build backend makes."""
    output.mkdir()
    command = [sys.executable, "-c", BUILD, f"build_{kind}", output]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (archive,) = output.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this checkout."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    for name in ("growth", "configs"):
        shutil.copytree(
            runs.ROOT / name, source / name, symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )  # fmt: skip
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(runs.ROOT / name, source)
    with tarfile.open(build("sdist", source, folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    with zipfile.ZipFile(build("wheel", unpacked, folder / "wheel")) as archive:
        yield archive


def names(requirements):
    """The names of distributions that are required."""
    return {re.match(r"[\w-]+", text)[0].lower().replace("_", "-") for text in requirements}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    package = runs.ROOT / "growth"
    files = [path for ending in ("py", "pyi") for path in package.rglob(f"*.{ending}")]
    modules = [str(path.relative_to(runs.ROOT)) for path in files]
    presets = [f"growth/configs/{path.name}" for path in (runs.ROOT / "configs").iterdir()]
    data = ["growth/py.typed", "growth/training/report/template.html"]
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert "growth/configs/quickstart.py" in held
    assert held == {*modules, *data, *(name for name in presets if name.endswith(".py"))}
    for name in held:
        assert wheel.read(name) == (runs.ROOT / name).read_bytes()


def test_the_wheel_brings_the_command(wheel):
    (entry_points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    lines = wheel.read(entry_points).decode().split("\n")
    assert lines[:2] == ["[console_scripts]", "growth = growth.__main__:main"]


def test_the_core_needs_no_more_than_the_core(wheel):
    (metadata,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
    required = re.findall(r"^Requires-Dist: (.*)$", wheel.read(metadata).decode(), re.MULTILINE)
    assert names(text for text in required if "extra ==" not in text) == CORE


def test_the_extra_that_is_named_brings_the_libraries():
    distributions = importlib.metadata.packages_distributions()
    bringing = {name for library in BY_TRAIN for name in names(distributions[library])}
    assert names(PROJECT["optional-dependencies"]["train"]) == bringing


@pytest.mark.parametrize(
    ("library", "command"),
    [
        ("cyclopts", []),
        ("ml_collections", ["plan", "--config=quickstart"]),
        ("orbax", ["sample", "--workdir=x", "--prompt=a"]),
    ],
)
def test_a_library_that_is_missing_is_one_line(library, command):
    program = (
        "import sys; sys.modules[sys.argv.pop(1)] = None\n"
        "from growth.__main__ import main; sys.exit(main())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, library, *command],
        cwd=runs.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr == (
        f"error: {' '.join(['growth', *command[:1]])} needs {library}, which is not installed: "
        "pip install 'flax-growth[train]'\n"
    )
