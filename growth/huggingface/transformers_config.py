"""The judgement of transformers' own config classes, where the library is installed."""

import copy
import importlib.util
from typing import Any

from growth.huggingface.family import Config


def load_problem(config: Config) -> str | None:
    """Why transformers does not load a config, in words; None if it does, or is not installed."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return None
    from transformers import CONFIG_MAPPING
    from transformers.utils import logging

    given: dict[str, Any] = copy.deepcopy(dict(config))  # what it reads, it also changes
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        CONFIG_MAPPING[str(given["model_type"])].from_dict(given)
    except Exception as error:  # its classes raise whatever their checks raise
        return " ".join(f"{type(error).__name__}: {error}".split())
    finally:
        logging.set_verbosity(level)
    return None
