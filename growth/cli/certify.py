"""Certifies a growth step of a trained model: is the function the same, and can new entries learn?

python -m growth.cli.certify --workdir=runs/quickstart --num_heads=6 --mlp_dim=768

Grows the newest checkpoint of a run in memory, and prints the certificate. Exits with 0 where every
promise is kept, and with 1 where one is broken.
"""

import dataclasses
import functools
import sys

import jax
from absl import app, flags, logging

from growth import certify, expand, grow_to
from growth.cli import errors
from growth.models import make_model
from growth.training.data.batches import train_iterator
from growth.training.data.dataset import load_dataset
from growth.training.run.restore import load_model
from growth.training.step import (
    batch_logits,
    batch_loss,
    batch_residual_stream,
    cross_entropy,
)

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest if not given.")
_INIT = flags.DEFINE_string(
    "init", "fresh", "New entries that may be anything: fresh, copy, copy:SIGNAL_TO_NOISE, gradmax."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Sequences, or images, that it looks at.")
_SEED = flags.DEFINE_integer("seed", 0, "Decides the free values and the batch.")
_JSON = flags.DEFINE_string("json", None, "A file to write the certificate to.")

_SIZES = [field.name for field in dataclasses.fields(grow_to)]
for _name in _SIZES:
    flags.DEFINE_integer(_name, None, f"{_name} of the larger model, as for growth.grow_to.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options begin with --")
    logging.set_verbosity(logging.WARNING)
    with errors.reported():
        model, params, config = load_model(_WORKDIR.value, _STEP.value)
        plan = grow_to(**{name: flags.FLAGS[name].value for name in _SIZES})(model.architecture)
        validation = load_dataset(config.data, model.architecture).validation
        batches = train_iterator(validation, batch_size=_BATCH_SIZE.value, seed=_SEED.value)
        batch = next(batches)
        probe_loss = functools.partial(batch_loss, make_model(plan.target), batch=next(batches))
        key = jax.random.key(_SEED.value)
        grown = expand(params, plan, key=key, init=_INIT.value, loss=probe_loss)
        certificate = certify(
            params,
            plan,
            apply=batch_logits,
            grown=grown,
            batch=batch,
            loss=lambda params: cross_entropy(batch_logits(plan.target, params, batch), batch),
            residual_stream=batch_residual_stream,
        )
        print(certificate)
        if _JSON.value:
            certificate.write(_JSON.value)
    sys.exit(not certificate.passed)


if __name__ == "__main__":
    app.run(main)
