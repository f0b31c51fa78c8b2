"""`growth certify`."""

import functools

import jax

from growth import certify, expand, grow_to
from growth.cli.flags import Certify
from growth.models import make_model
from growth.training.data.batches import train_iterator
from growth.training.data.dataset import load_dataset
from growth.training.run.restore import load_model
from growth.training.step import batch_logits, batch_loss, batch_residual_stream, cross_entropy


def run(flags: Certify) -> int:
    """Runs the command."""
    step = grow_to(**flags.sizes.growth_step())
    model, params, config = load_model(flags.workdir, flags.step)
    plan = step(model.architecture)
    validation = load_dataset(config.data, model.architecture).validation
    batches = train_iterator(validation, batch_size=flags.batch_size, seed=flags.seed)
    batch = next(batches)
    probe_loss = functools.partial(batch_loss, make_model(plan.target), batch=next(batches))
    key = jax.random.key(flags.seed)
    grown = expand(params, plan, key=key, init=flags.init, loss=probe_loss)
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
    if flags.json:
        certificate.write(flags.json)
    return int(not certificate.passed)
