"""The house: which room may import which, what each opens, and what its front door names.

All imports count, also those inside functions and those for type checkers alone. What a package
opens when it is asked for stands in its `__init__.pyi`.
"""

import ast
import collections
import functools
import graphlib
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import growth

ROOT = Path(growth.__file__).parent
FRONT_DOOR = "growth"

# A room imports what stands on floors before its own.
FLOORS = (
    ("errors",),
    ("files", "types", "version"),
    ("architecture",),
    ("rules",),
    ("blueprints",),
    ("models", "expansion"),
    ("optimizer", "certification", "huggingface"),
    ("growing",),
    ("training",),
    (FRONT_DOOR,),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# These map plain pytrees, and know no module system, no files of others and no terminal.
CORE = ("architecture", "rules", "blueprints", "expansion", "optimizer", "certification")
LIBRARIES_OF_CORE = {"chex", "einops", "jax", "jaxtyping", "numpy", "optax"}

# The only places that open a library: the rest of growth works where it is not installed.
PLACES = {
    "absl": ("growth.cli",),
    "annotated_types": ("growth.training",),
    "cyclopts": ("growth.cli",),
    "docstring_parser": ("growth.cli",),
    "flax": ("growth.models",),
    "grain": ("growth.training",),
    "matplotlib": ("growth.training.report",),
    "ml_collections": ("growth.training", "growth.cli"),
    "orbax": ("growth.training.checkpoints",),
    "pydantic": ("growth.huggingface.config_keys", "growth.training"),
    "rich": ("growth.training", "growth.cli"),
    "safetensors": ("growth.huggingface.tensor_files",),
    "sklearn": ("growth.training.data.images",),
    "tensorboardX": ("growth.training",),
    "tokenizers": ("growth.training.data.tokenizers",),
    "torch": (
        "growth.huggingface.expansion.streamed_models",
        "growth.huggingface.expansion.transformers_models",
    ),
    "transformers": (
        "growth.huggingface.expansion.streamed_models",
        "growth.huggingface.expansion.transformers_models",
        "growth.huggingface.transformers_config",
    ),
    "wandb": ("growth.training",),
}

MOST_LINES = 350


def name_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
PACKAGES = [name for name, path in FILES.items() if path.name == "__init__.py"]


@functools.cache
def tree_of(module):
    return ast.parse(FILES[module].read_text())


def room_of(module):
    return module.split(".")[1] if "." in module else module


def submodules(package):
    return [name for name in FILES if name.rpartition(".")[0] == package]


@functools.cache
def opened_lazily(package):
    """The names that a package opens when they are asked for, each with its module."""
    stub = FILES[package].with_suffix(".pyi")
    found = {}
    for node in ast.parse(stub.read_text()).body if stub.exists() else ():
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, f"{alias.name} is not exported"
            found[alias.name] = f"{package}.{node.module or alias.name}"
    return found


def named(module, name):
    """The module that `from module import name` opens."""
    if f"{module}.{name}" in FILES:
        return f"{module}.{name}"
    return opened_lazily(module).get(name, module) if module in PACKAGES else module


def imports(module):
    """The modules that a module imports anywhere, as a list of names."""
    found = []
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: an import that is relative"
            found += [named(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found += computed(module, node.args[0])
    return found


def computed(module, name):
    """What `import_module(name)` opens: any module of a package that computes names of its own."""
    if isinstance(name, ast.Constant):
        return [name.value]
    assert module in PACKAGES, f"{module}, line {name.lineno}: which module is imported is unknown"
    return [] if module == FRONT_DOOR else submodules(module)


def arrows():
    """How many imports lead from one room to another: `{(importing, imported): number}`."""
    counts = collections.Counter()
    for module in FILES:
        for other in imports(module):
            if other.partition(".")[0] == "growth" and room_of(other) != room_of(module):
                counts[room_of(module), room_of(other)] += 1
    return counts


def test_every_module_stands_in_a_room():
    assert {room_of(module) for module in FILES} <= set(FLOOR_OF)


@pytest.mark.parametrize("module", FILES)
def test_imports_lead_down(module):
    for other in imports(module):
        here, there = room_of(module), room_of(other)
        if other.partition(".")[0] != "growth" or here == there:
            continue
        assert FLOOR_OF[there] < FLOOR_OF[here], f"{module} imports {other}"


def test_there_is_no_circle():
    graph = {module: set(imports(module)) & set(FILES) - {module} for module in FILES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_every_file_can_be_read_at_once():
    lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert {name: number for name, number in lines.items() if number > MOST_LINES} == {}


@pytest.mark.parametrize("module", FILES)
def test_libraries_are_opened_where_they_belong(module):
    known = sys.stdlib_module_names | {"growth"}
    for library in {name.partition(".")[0] for name in imports(module)} - known:
        places = PLACES.get(library, ("growth",))
        assert any(f"{module}.".startswith(f"{place}.") for place in places), library
        assert room_of(module) not in CORE or library in LIBRARIES_OF_CORE, library


def opened_by(*modules):
    """The packages that are open once the modules are imported in a process of their own."""
    program = (
        "import importlib, sys\n"
        "for module in sys.argv[1:]: importlib.import_module(module)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", program, *modules]
    run = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_the_front_door_opens_nothing():
    opened = opened_by("growth")
    assert "growth" in opened
    assert opened & {"jax", "numpy", "optax", *PLACES} == set()


def test_the_core_opens_no_module_system():
    """Nor do the libraries that it opens."""
    opened = opened_by(*(module for module in FILES if room_of(module) in CORE))
    assert "optax" in opened
    assert opened & set(PLACES) <= {"absl"}  # which JAX, chex and optax open


LAZY = [package for package in PACKAGES if opened_lazily(package)]


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in LAZY for name in opened_lazily(package)]
)
def test_every_public_name_is_what_its_module_defines(package, name):
    home = opened_lazily(package)[name]
    value = getattr(sys.modules[package], name)
    if home == f"{package}.{name}":
        assert value is sys.modules[home]
        return
    assert value is vars(importlib.import_module(home))[name]
    defined = getattr(value, "__module__", home)
    assert defined == home or (home in PACKAGES and defined.startswith(f"{home}."))


@pytest.mark.parametrize("package", LAZY)
def test_a_package_names_all_that_it_opens(package):
    names = set(sys.modules[package].__all__)
    assert names == set(opened_lazily(package)) <= set(dir(sys.modules[package]))


def bound(package):
    """The names that a package binds, each with the module that it is, or else none."""
    for node in ast.walk(tree_of(package)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                opened = named(node.module, alias.name)
                is_module = opened == f"{node.module}.{alias.name}"
                yield alias.asname or alias.name, opened if is_module else None
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, None
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, None


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_hides_a_module(package):
    modules = {name.rpartition(".")[2]: name for name in submodules(package)}
    lazy = opened_lazily(package).items()
    for name, module in [*bound(package), *lazy]:
        assert name not in modules or module == modules[name], f"{name} hides {modules[name]}"


def test_every_module_is_the_attribute_of_its_package():
    for info in pkgutil.walk_packages(growth.__path__, "growth."):
        if info.name == "growth.__main__":
            continue  # it is a program
        package, _, name = info.name.rpartition(".")
        module = importlib.import_module(info.name)
        assert getattr(sys.modules[package], name) is module
