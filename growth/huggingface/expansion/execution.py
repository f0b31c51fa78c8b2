"""A Hugging Face checkpoint to a larger one that computes the same function, from start to end.

What is planned is written, tensor by tensor, so that the largest tensor bounds the memory; then it
is verified, described in a model card, and only then appears under its name.
"""

import os
from pathlib import Path
from typing import Any

from growth.errors import InputError
from growth.files import atomic_directory
from growth.huggingface.expansion import verification
from growth.huggingface.expansion.model_card import write_model_card
from growth.huggingface.expansion.planning import CheckpointExpansion, plan_expansion
from growth.huggingface.expansion.runnable import check_runnable
from growth.huggingface.expansion.verification import Verification
from growth.huggingface.expansion.writing import Progress, no_progress, write_grown


def expand_checkpoint(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    verify: bool | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> Verification | None:
    """Writes a larger checkpoint that computes the same function.

    Args:
      source: the directory of a Hugging Face checkpoint: `config.json` and safetensors.
      output: the directory to write, which must not exist. It appears when it is whole.
      verify: whether both models are run and what they say is compared, by transformers, or by the
        reference model where that is not installed; None: where one of them can. It takes memory
        for the largest tensor, in float64.
      progress: is told of each tensor that is written.
      **options: the sizes to reach and more; see `plan_expansion`.

    Returns:
      What was verified; None if nothing was.

    Raises:
      InputError: see `plan_expansion`. Or `output` exists, or its disk is full; or `verify` is
        True and cannot be done.
      VerificationError: the larger model does not say the same; nothing is left of it.

    Examples:
      >>> from growth import huggingface
      >>> huggingface.expand_checkpoint(
      ...     "checkpoint", "larger", verify=False, embed_dim=16, num_heads=4
      ... )
      >>> print(huggingface.load_architecture("larger"))
      1 layers × [4 heads, qk 4, v 4, mlp 16], embed 16, vocab 256, length 16, rmsnorm, rope, silu

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, table 1.
      The documentation of transformers on `config.json`, and that of safetensors on its format.
    """
    expansion = plan_expansion(source, **options)
    return execute_expansion(expansion, output, verify=verify, progress=progress)


def execute_expansion(
    expansion: CheckpointExpansion,
    output: str | os.PathLike,
    *,
    verify: bool | None = None,
    progress: Progress = no_progress,
) -> Verification | None:
    """Does what `plan_expansion` planned.

    Args:
      expansion: the plan.
      output, verify, progress: as for `expand_checkpoint`, and so are what it returns and raises.

    Examples:
      >>> from growth import huggingface
      >>> expansion = huggingface.plan_expansion("checkpoint", mlp_dim=24)
      >>> huggingface.execute_expansion(expansion, "executed", verify=False)
      >>> huggingface.load_architecture("executed").mlp_dim
      24

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, table 1.
      The documentation of transformers on `config.json`, and that of safetensors on its format.
    """
    output, source = Path(output).absolute(), expansion.source
    if output.resolve().is_relative_to(source.directory.resolve()):
        raise InputError(f"output {output} lies in the source, which is left as it is")
    output.parent.mkdir(parents=True, exist_ok=True)
    unmet = verification.unmet_requirement(expansion)
    if verify and unmet:
        raise InputError(f"verify is True, but {unmet}")
    verifies = verify or (verify is None and not unmet)
    if verifies:
        check_runnable(expansion)
    num_bytes = expansion.bytes + source.carried_bytes
    with atomic_directory(output, num_bytes) as directory:
        source.carry_over(directory)
        write_grown(expansion, directory, progress=progress)
        verified = None
        if verifies:
            verified = verification.verify(expansion, directory)
            verified.require()
        why_not = verification.why_not_verified(expansion, verify)
        write_model_card(expansion, directory, proof=verified or why_not)
    return verified
