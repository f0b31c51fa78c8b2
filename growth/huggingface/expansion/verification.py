"""Whether transformers says the same with the larger model: logits, and what is generated.

The growth step itself is judged in float64, with tensors that are grown in float64. transformers
computes some things in float32 whatever the dtype (RMSNorm, the angles of rotary positions); while
it is the judge of the growth step it computes them in float64, too. The files are judged as they
are, in float32, by transformers as it is.
"""

import dataclasses
import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np

from growth.errors import InputError
from growth.huggingface.expansion import writing
from growth.huggingface.expansion.planning import CheckpointExpansion
from growth.huggingface.expansion.transformers_models import (
    compute_logits,
    float64_everywhere,
    generate_greedily,
    load_model,
)
from growth.huggingface.tensor_files import DTYPES
from growth.rules.tolerances import MEASURED_BY_TRANSFORMERS, PROMISED

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

    Examples:
      >>> from growth import huggingface
      >>> verified = huggingface.expand_checkpoint(
      ...     "checkpoint", "verified", verify=True, mlp_dim=24
      ... )
      >>> verified.exact < 1e-12, verified.problems
      (True, ())
      >>> verified.require()

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
      It proves what is measured here.
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


def unmet_requirement(expansion: CheckpointExpansion, directory: Path) -> str | None:
    """What a verification needs and is not there, in words; None if it can be done.

    Args:
      expansion: the growth step.
      directory: one on the disk that is written to.
    """
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        return f"{' and '.join(missing)} cannot be imported: pip install 'flax-growth[verify]'"
    # The larger model in float64, in a file and in memory; in memory also what it computes.
    needed = 12 * max(cost.parameters for cost in expansion.costs)
    for what, free in (("memory", _free_memory()), ("disk", shutil.disk_usage(directory).free)):
        if needed > free:
            return f"it takes {needed / 1e9:.1f} GB of {what}, and {free / 1e9:.1f} GB are free"
    return None


def verify(expansion: CheckpointExpansion, directory: Path) -> Verification:
    """Compares the source with its larger model.

    Args:
      expansion: the growth step.
      directory: where the larger model is; it needs room for both in float64, for a while.

    Raises:
      Exception: whatever transformers raises if it cannot load a model.
    """
    source = expansion.source
    vocab, longest = source.architecture.vocab_size, source.architecture.max_length
    random = np.random.default_rng(expansion.seed)
    tokens = random.integers(0, vocab, (_SEQUENCES, min(longest, _LENGTH)))
    number = min(_GENERATED, longest // 2)
    prompts = tokens[:, : min(_PROMPT, longest - number)]
    exact = _difference_in_float64(expansion, directory, tokens)

    model = load_model(source.directory, "float32")
    old_logits, old_text = compute_logits(model, tokens), generate_greedily(model, prompts, number)
    model = load_model(directory, "float32")
    new_logits, new_text = compute_logits(model, tokens), generate_greedily(model, prompts, number)
    stored = _difference(old_logits, new_logits)
    agreement = float((old_logits.argmax(-1) == new_logits.argmax(-1)).mean())
    generated = int((old_text == new_text).sum()), old_text.size

    dtypes = {DTYPES[spec.dtype].name for spec in expansion.specs.values()}
    limits = {
        "float64": (exact, PROMISED["float64"]),
        "float32": (stored, max(MEASURED_BY_TRANSFORMERS[dtype] for dtype in dtypes)),
    }
    problems = [
        f"logits differ by {difference:.1e} in {dtype}, more than {limit}"
        for dtype, (difference, limit) in limits.items()
        if not difference <= limit
    ]
    return Verification(exact, stored, agreement, generated, tokens.size, tuple(problems))


def _difference_in_float64(
    expansion: CheckpointExpansion, directory: Path, tokens: np.ndarray
) -> float:
    # The files are in float64, too: others would be read as what they are called meanwhile.
    logits = []
    for write in (writing.write_source, writing.write_grown):
        exactly = directory / "float64"
        exactly.mkdir()
        write(expansion.with_dtype("float64"), exactly)
        with float64_everywhere():
            logits.append(compute_logits(load_model(exactly, "float64"), tokens))
        shutil.rmtree(exactly)
    return _difference(*logits)


def _difference(old: np.ndarray, new: np.ndarray) -> float:
    return float(np.abs(new - old).max() / np.abs(old).max())


def _free_memory() -> int:
    """Bytes that a process may take: what Linux says is available, or all that there is."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
