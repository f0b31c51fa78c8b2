"""Batches of examples.

They are shuffled without end for training, and a fixed selection for evaluation. What an example
is, is said by `growth.training.data.text` and `growth.training.data.images`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import grain
import jax
import numpy as np

from growth.types import Array, Inputs


class Batch(NamedTuple):
    """Examples, or a single one, then without the batch axis.

    Attributes:
      inputs: int32 tokens [batch, length], or float32 images [batch, height, width, channels].
      targets: int32, the tokens that follow [batch, length], or classes [batch].
    """

    inputs: Inputs
    targets: Array


# Draws a variation of an example.
Augment = Callable[[Batch, np.random.Generator], Batch]


class Examples(Protocol):
    """Examples by their number."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: Any) -> Batch:
        """One of them."""


def train_iterator(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    augment: Augment | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Batches without end, in an order that depends on nothing but the seed.

    Every epoch has an order of its own. The state of the iterator counts examples over all
    processes: it is the same in every process, and may be set with another batch size or another
    number of processes, which then go on with the very next example. The work is a copy from
    memory, so there are no threads and no worker processes.

    Args:
      examples: what to draw from; at least one.
      batch_size: examples in a batch of this process.
      seed: decides the order, and what `augment` draws; 0 ≤ seed < 2³².
      augment: makes of every example a new one, each time that it comes.
      process_index: which process this is.
      process_count: how many processes share the examples.
    """
    shuffled = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
    return iter(
        grain.experimental.ElasticIterator(
            shuffled if augment is None else shuffled.random_map(augment),
            batch_size * process_count,
            grain.sharding.ShardOptions(process_index, process_count),
            read_options=grain.ReadOptions(num_threads=0, prefetch_buffer_size=0),
        )
    )


def eval_batches(examples: Examples, *, batch_size: int, num_batches: int) -> Batch:
    """A fixed selection of examples, spread evenly.

    It depends on nothing but the examples and the sizes. Where there are fewer than asked for, they
    repeat, each as often as any other give or take one: the shape is always the one that was asked
    for, and nothing needs to be compiled twice.

    Args:
      examples: what to choose from; at least one.
      batch_size: examples in a batch.
      num_batches: number of batches.

    Returns:
      A batch with one more axis, [num_batches, batch, ...].
    """
    count = num_batches * batch_size
    chosen = [examples[at] for at in np.arange(count) * len(examples) // count]

    def stack(*arrays: np.ndarray) -> np.ndarray:
        return np.stack(arrays).reshape(num_batches, batch_size, *np.shape(arrays[0]))

    return jax.tree.map(stack, *chosen)
