"""Hugging Face checkpoints: grown as they are, or loaded into the reference model and back.

Everything here opens when it is first used: to import this imports neither JAX, torch, transformers
nor safetensors.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growth.huggingface.conversion.loading import load as load
    from growth.huggingface.conversion.loading import load_architecture as load_architecture
    from growth.huggingface.conversion.saving import save as save
    from growth.huggingface.expansion.execution import execute_expansion as execute_expansion
    from growth.huggingface.expansion.execution import expand_checkpoint as expand_checkpoint
    from growth.huggingface.expansion.planning import CheckpointExpansion as CheckpointExpansion
    from growth.huggingface.expansion.planning import plan_expansion as plan_expansion
    from growth.huggingface.expansion.verification import Verification as Verification
    from growth.huggingface.expansion.verification import VerificationError as VerificationError
    from growth.huggingface.family import FamilyError as FamilyError
    from growth.huggingface.tensor_files import CheckpointFileError as CheckpointFileError

# The module that defines each name, opened when the name is asked for (PEP 562).
_HOMES: dict[str, str] = {
    "CheckpointExpansion": "expansion.planning",
    "CheckpointFileError": "tensor_files",
    "FamilyError": "family",
    "Verification": "expansion.verification",
    "VerificationError": "expansion.verification",
    "execute_expansion": "expansion.execution",
    "expand_checkpoint": "expansion.execution",
    "load": "conversion.loading",
    "load_architecture": "conversion.loading",
    "plan_expansion": "expansion.planning",
    "save": "conversion.saving",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'growth.huggingface' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"growth.huggingface.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
