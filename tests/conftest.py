"""Pytest's configuration: eight virtual devices, quick compilation, bounded memory."""

import atexit
import collections
import os
import shutil
import tempfile

import jaxlib

# JAX reads these when it is imported.
os.environ["JAX_PLATFORMS"] = "cpu"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What several tests compile is compiled once, whichever process they run in.
    _programs = tempfile.mkdtemp(prefix="growth_programs_")
    atexit.register(shutil.rmtree, _programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # Programs run once here: compiling them fast matters more than how fast they are.
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)
if jaxlib.__version__.startswith("0.10."):
    # A quarter of the time. A flag that a version does not know ends the process.
    os.environ["XLA_FLAGS"] += (
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )

import jax
import pytest
from hypothesis import HealthCheck, settings

from tests.helpers import networks

# Few tests that take long: they go first, or one process would be left with them at the end.
LONG_FILES = (
    "test_blocks.py",
    "test_certificate.py",
    "test_commands.py",
    "test_examples.py",
    "test_growth_step.py",
    "test_huggingface.py",
    "test_images.py",
    "test_initialization.py",
    "test_killed.py",
    "test_loop.py",
    "test_parameters.py",
    "test_random_compositions.py",
    "test_readme.py",
    "test_variants.py",
)

_slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "default", max_examples=20, derandomize=True, deadline=None, suppress_health_check=_slow
)
settings.register_profile("full", max_examples=200, deadline=None, suppress_health_check=_slow)


def pytest_addoption(parser):
    parser.addoption(
        "--full",
        action="store_true",
        help="also the long tests, and many more random cases",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "full: a long test, which runs with --full only")
    settings.load_profile("full" if config.getoption("--full") else "default")


def pytest_collection_modifyitems(config, items):
    numbers = collections.Counter(item.path for item in items)
    items.sort(key=lambda i: (i.path.name not in LONG_FILES, -numbers[i.path], i.path))
    if config.getoption("--full"):
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("full")])
    items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.fixture
def float64():
    """Lets a test compute in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _bounded_programs():
    """Keeps compiled programs from using up the memory maps that a process may have."""
    yield
    networks.forget_programs(every=32)


@pytest.fixture(scope="module", autouse=True)
def _no_old_programs():
    yield
    jax.clear_caches()
