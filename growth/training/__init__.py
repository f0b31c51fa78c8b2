"""Training with a growth schedule, on a mesh.

Everything here opens when it is first used, so that what needs no data, no checkpoints and no
figures, such as `growth.training.schedule`, does not wait for their libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growth.training.checkpoints import CheckpointError as CheckpointError
    from growth.training.checkpoints import Checkpoints as Checkpoints
    from growth.training.config import TrainConfig as TrainConfig
    from growth.training.config import defaults as defaults
    from growth.training.config import parse as parse
    from growth.training.config_sections import ConfigError as ConfigError
    from growth.training.config_sections import MeshConfig as MeshConfig
    from growth.training.config_sections import OptimizerConfig as OptimizerConfig
    from growth.training.config_sections import SamplesConfig as SamplesConfig
    from growth.training.data.config import DataConfig as DataConfig
    from growth.training.data.config import DataError as DataError
    from growth.training.generation import generate as generate
    from growth.training.growth_step import PreservationError as PreservationError
    from growth.training.loop import train as train
    from growth.training.mesh import MeshError as MeshError
    from growth.training.offline import expand_run as expand_run
    from growth.training.offline import is_run as is_run
    from growth.training.offline import plan_run as plan_run
    from growth.training.report.metrics import MetricsError as MetricsError
    from growth.training.report.metrics import read_metrics as read_metrics
    from growth.training.report.page import write_report as write_report
    from growth.training.report.preview import dry_run as dry_run
    from growth.training.run.restore import load_model as load_model
    from growth.training.run.restore import open_run as open_run
    from growth.training.run.stopping import DivergedError as DivergedError
    from growth.training.schedule import ScheduleError as ScheduleError
    from growth.training.schedule import Stage as Stage
    from growth.training.schedule import stages as stages

# The module that defines each name, opened when the name is asked for (PEP 562).
_HOMES: dict[str, str] = {
    "CheckpointError": "checkpoints",
    "Checkpoints": "checkpoints",
    "ConfigError": "config_sections",
    "DataConfig": "data.config",
    "DataError": "data.config",
    "DivergedError": "run.stopping",
    "MeshConfig": "config_sections",
    "MeshError": "mesh",
    "MetricsError": "report.metrics",
    "OptimizerConfig": "config_sections",
    "PreservationError": "growth_step",
    "SamplesConfig": "config_sections",
    "ScheduleError": "schedule",
    "Stage": "schedule",
    "TrainConfig": "config",
    "defaults": "config",
    "dry_run": "report.preview",
    "expand_run": "offline",
    "generate": "generation",
    "is_run": "offline",
    "load_model": "run.restore",
    "open_run": "run.restore",
    "parse": "config",
    "plan_run": "offline",
    "read_metrics": "report.metrics",
    "stages": "schedule",
    "train": "loop",
    "write_report": "report.page",
}

# Modules and sub-packages that open as attributes.
_MODULES = (
    "checkpoints",
    "config",
    "config_sections",
    "data",
    "formatting",
    "generation",
    "growth_step",
    "loop",
    "mesh",
    "offline",
    "optimization",
    "report",
    "run",
    "schedule",
    "state",
    "step",
)

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
