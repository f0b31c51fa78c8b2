"""Whether transformers says the same with the larger model: logits, and what is generated.

The growth step itself is judged in float64, with tensors that are grown in float64. transformers
computes some things in float32 whatever the dtype (RMSNorm, the angles of rotary positions); while
it is the judge of the growth step it computes them in float64, too. The files are judged as they
are, in float32, by transformers as it is.
"""

import contextlib
import dataclasses
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from growth.errors import InputError
from growth.huggingface import writing
from growth.huggingface.expansion import Expansion

# The largest difference of logits, relative to the largest logit: of the growth step, and of files
# of each dtype. In float32 the angle of a rotary position is wrong by 1e-7 of the position, and the
# larger base, which has the same angles, is wrong by another 1e-7; in the others it is the rounding
# of what is multiplied.
_EXACT = 1e-12
_LIMITS = {"F64": 1e-3, "F32": 1e-3, "F16": 1e-1, "BF16": 1e-1}

_SEQUENCES, _LENGTH = 2, 256
_PROMPT, _GENERATED = 16, 32


class VerificationError(InputError):
    """The larger model does not say what the smaller one says; the message lists how."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """What transformers made of the two models.

    Attributes:
      exact: how far the logits of a model grown and computed in float64 differ, relative to the
        largest.
      stored: the same for the tensors as they are in the files, computed in float32.
      agreement: the share of positions where the likeliest token is the same, in the latter.
      generated: of how many tokens, chosen greedily after random prompts, how many are the same.
      tokens: how many random tokens were looked at.
      problems: what is not as it must be, in words.
    """

    exact: float
    stored: float
    agreement: float
    generated: tuple[int, int]
    tokens: int
    problems: tuple[str, ...]

    def require(self) -> None:
        """Raises `VerificationError` if there is a problem."""
        if self.problems:
            raise VerificationError("not the same function:\n  " + "\n  ".join(self.problems))

    def __str__(self) -> str:
        same, number = self.generated
        return "\n".join(
            [
                f"logits of {self.tokens:,} random tokens, largest difference / largest logit",
                f"  in float64               {self.exact:.1e}",
                f"  the files, in float32    {self.stored:.1e}",
                f"same likeliest token       {self.agreement:.1%}",
                f"same greedy continuation   {same} of {number} tokens",
            ]
        )


def why_unverifiable(expansion: Expansion, at: Path) -> str | None:
    """Why a growth step cannot be verified here; None if it can.

    Args:
      expansion: the growth step.
      at: a directory on the disk that is written to.
    """
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        return f"{' and '.join(missing)} cannot be imported: pip install 'flax-growth[verify]'"
    # The larger model in float64, in a file and in memory; in memory also what it computes.
    needed = 12 * max(cost.parameters for cost in expansion.costs)
    for what, free in (("memory", _free_memory()), ("disk", shutil.disk_usage(at).free)):
        if needed > free:
            return f"it takes {needed / 1e9:.1f} GB of {what}, and {free / 1e9:.1f} GB are free"
    return None


def verify(expansion: Expansion, directory: Path) -> Verification:
    """Compares the source with its larger model, which `directory` holds.

    Raises:
      Exception: whatever transformers raises if it cannot load a model.
    """
    import torch

    source = expansion.source
    vocab, longest = source.architecture.vocab_size, source.architecture.max_length
    random = np.random.default_rng(expansion.seed)
    tokens = torch.from_numpy(random.integers(0, vocab, (_SEQUENCES, min(longest, _LENGTH))))
    number = min(_GENERATED, longest // 2)
    prompts = tokens[:, : min(_PROMPT, longest - number)]

    # Its files are in float64, too: others would be read as what they are called meanwhile.
    logits = []
    for write in (writing.write_source, writing.write):
        exactly = directory / "float64"
        exactly.mkdir()
        write(expansion.with_dtype("float64"), exactly)
        with float64_everywhere():
            logits.append(_logits(_load(exactly, "float64"), tokens))
        shutil.rmtree(exactly)
    exact = _difference(*logits)

    model = _load(source.directory, "float32")
    old, said = _logits(model, tokens), _continued(model, prompts, number)
    model = _load(directory, "float32")
    new, says = _logits(model, tokens), _continued(model, prompts, number)
    stored = _difference(old, new)
    agreement = float((old.argmax(-1) == new.argmax(-1)).mean())
    generated = int((said == says).sum()), said.size

    dtypes = {spec.dtype for spec in expansion.specs.values()}
    limit = max(_LIMITS[dtype] for dtype in dtypes)
    problems = []
    if not exact <= _EXACT:
        problems.append(f"logits differ by {exact:.1e} in float64, more than {_EXACT}")
    if not stored <= limit:
        problems.append(f"logits differ by {stored:.1e} in float32, more than {limit}")
    return Verification(exact, stored, agreement, generated, tokens.numel(), tuple(problems))


def _load(directory: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {}
    with _quiet():
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        if hasattr(config, "num_local_experts"):
            options["experts_implementation"] = "eager"  # the fast one knows no float64
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, dtype), local_files_only=True, **options
        )
    return model.eval()


def _logits(model: Any, tokens: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(tokens).logits.numpy()


def _continued(model: Any, prompts: Any, number: int) -> np.ndarray:
    import torch

    with torch.no_grad(), _quiet():
        whole = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            num_beams=1,
            max_new_tokens=number,
            min_new_tokens=number,
            pad_token_id=0,
        )
    return whole[:, prompts.shape[1] :].numpy()


def _difference(old: np.ndarray, new: np.ndarray) -> float:
    return float(np.abs(new - old).max() / np.abs(old).max())


@contextlib.contextmanager
def float64_everywhere() -> Iterator[None]:
    """What transformers' code calls float32 is float64 here, in this process, also for threads."""
    import torch

    names: Any = torch
    before = names.float32, names.float, names.Tensor.float
    names.float32 = names.float = names.float64
    names.Tensor.float = names.Tensor.double
    try:
        yield
    finally:
        names.float32, names.float, names.Tensor.float = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from printing."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _free_memory() -> int:
    """Bytes that a process may take: what Linux says is available, or all that there is."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
