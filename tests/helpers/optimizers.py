"""Every optimizer and transformation that optax exports, to be grown, or a reason why not."""

import functools
import inspect

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from growth.training.optimization import decayed


def others(parameters):
    return jax.tree.map(lambda decays: not decays, decayed(parameters))


def labels(parameters):
    return jax.tree.map(lambda decays: "matrices" if decays else "rest", decayed(parameters))


def dimension_numbers(parameters):
    """Muon's dimensions of each kernel: scanned ones have layers before, heads are many axes."""

    def each(path, leaf):
        name = jax.tree_util.keystr(path)
        if "kernel" not in name or "unembed" in name:
            return None
        first = leaf.ndim - (4 if "query" in name or "out" in name else 2) if "mlp" in name else 1
        if "mlp" in name:
            first = leaf.ndim - 2
            return contrib.MuonDimensionNumbers((first,), (first + 1,))
        if "'out'" in name:
            return contrib.MuonDimensionNumbers(tuple(range(1, leaf.ndim - 1)), (leaf.ndim - 1,))
        return contrib.MuonDimensionNumbers((1,), tuple(range(2, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(each, parameters)


@functools.cache
def multi_steps(tx, every):
    """To be called where float64 is on: else it averages in float32."""
    return optax.MultiSteps(tx, every, accumulator_dtype=jnp.float64).gradient_transformation()


# What keeps moments of gradients, in every entry, so that growing them is the same as gathering
# them in the grown network. Epsilons are so small that they do not matter.
EXACT = {
    "the gradient itself": optax.trace(decay=0.0),
    "sgd": optax.sgd(1e-2, momentum=0.9),
    "nesterov": optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "adam": optax.adam(1e-3),
    "adamw": optax.adamw(optax.linear_schedule(0.0, 1e-3, 10), mask=decayed),
    "nadam": optax.nadam(1e-3),
    "nadamw": optax.nadamw(1e-3),
    "adamax": optax.adamax(1e-3, eps=1e-30),
    "adamaxw": optax.adamaxw(1e-3, eps=1e-30),
    "adan": optax.adan(1e-3),
    "adabelief": optax.adabelief(1e-3, eps_root=0.0),
    "amsgrad": optax.amsgrad(1e-3),
    "adagrad": optax.adagrad(1e-3),
    "adadelta": optax.adadelta(1e-3, eps=1e-30),
    "lion": optax.lion(1e-4),
    "lamb": optax.lamb(1e-3),
    "lars": optax.lars(1e-3, momentum=0.9, weight_decay=0.0, trust_ratio_mask=False),
    "rmsprop": optax.rmsprop(1e-3),
    "rmsprop, momentum": optax.rmsprop(1e-3, momentum=0.9, eps=1e-30),
    "rmsprop, centered": optax.rmsprop(1e-3, centered=True, bias_correction=True),
    "radam": optax.radam(1e-3),
    "yogi": optax.chain(optax.scale_by_yogi(initial_accumulator_value=0.0)),
    "rprop": optax.rprop(1e-3),
    "noisy_sgd": optax.noisy_sgd(1e-2, key=0),
    "optimistic_adam_v2": optax.optimistic_adam_v2(1e-3, eps=1e-30),
    "optimistic_gradient_descent": optax.optimistic_gradient_descent(1e-2),
    "signum": optax.signum(1e-3),
    "adafactor, whole": optax.adafactor(1e-3),
    "ema of updates": optax.chain(optax.ema(0.9)),
    "apply_every": optax.apply_every(7),
    "acprop": contrib.acprop(1e-3),
    "ademamix": contrib.ademamix(1e-3),
    "simplified_ademamix": contrib.simplified_ademamix(1e-3),
    "adopt": contrib.adopt(1e-3, eps=1e-30),
    "cocob": contrib.cocob(eps=1e-30),
    "madgrad": contrib.madgrad(1e-3),
    "momo": contrib.momo(1e-2),
    "momo_adam": contrib.momo_adam(1e-2),
    "muon": contrib.muon(1e-3, adam_weight_decay=0.0),
    "muon, scanned": contrib.muon(1e-3, muon_weight_dimension_numbers=dimension_numbers),
    "prodigy": contrib.prodigy(),
    "schedule_free_sgd": contrib.schedule_free_sgd(0.0),
    "schedule_free_adamw": contrib.schedule_free_adamw(0.0),
    "dog": contrib.dog(),
    "dowg": contrib.dowg(),
    "mechanize": contrib.mechanize(optax.adam(1e-3)),
    "sam": contrib.sam(optax.sgd(1e-2, momentum=0.9), optax.sgd(1e-2), sync_period=3),
    "reduce_on_plateau": optax.chain(optax.adam(1e-3), contrib.reduce_on_plateau()),
    # Behind and inside other transformations.
    "momentum behind adam": optax.chain(optax.scale_by_adam(eps=1e-30), optax.trace(0.9)),
    "chain": optax.chain(optax.clip_by_global_norm(1e6), optax.adam(1e-3)),
    "named_chain": optax.named_chain(("clip", optax.clip(1e6)), ("adam", optax.adam(1e-3))),
    "masked": optax.chain(
        optax.masked(optax.scale_by_adam(), decayed), optax.masked(optax.trace(0.9), others)
    ),
    "partition": optax.partition(
        {"matrices": optax.adamw(1e-3), "rest": optax.sgd(1e-2, momentum=0.9)}, labels
    ),
    "freeze": optax.partition({"matrices": optax.adam(1e-3), "rest": optax.set_to_zero()}, labels),
    "inject_hyperparams": optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3),
    "inject, masked": optax.inject_hyperparams(optax.adamw, static_args="mask")(
        learning_rate=1e-3, mask=decayed
    ),
    "MultiSteps": lambda: multi_steps(optax.adam(1e-3), 3),
    "apply_if_finite": optax.apply_if_finite(optax.adam(1e-3), 2),
    "apply_if_finite in MultiSteps": lambda: multi_steps(
        optax.apply_if_finite(optax.adam(1e-3), 2), 3
    ),
    "conditionally_transform": optax.conditionally_transform(
        optax.trace(0.9), lambda step: step % 2 == 0
    ),
    "conditionally_mask": optax.conditionally_mask(optax.adam(1e-3), lambda step: step % 2 == 0),
    "deep": lambda: optax.chain(
        optax.zero_nans(),
        optax.chain(
            optax.masked(optax.chain(optax.scale_by_adam(eps=1e-30), optax.trace(0.9)), decayed)
        ),
        multi_steps(optax.chain(optax.scale_by_learning_rate(1e-3)), 2),
    ),
}

# One of each kind; the others are compared with --full.
FIRST = (
    *("the gradient itself", "adamw", "adamax", "adan", "adabelief", "adagrad", "adadelta", "lion"),
    *("lars", "rmsprop, momentum", "rmsprop, centered", "yogi", "rprop", "optimistic_adam_v2"),
    *("adafactor, whole", "ademamix", "adopt", "cocob", "madgrad", "momo", "muon, scanned"),
    *("prodigy", "schedule_free_adamw", "dog", "mechanize", "sam", "momentum behind adam"),
    *("masked", "partition", "inject_hyperparams", "apply_if_finite in MultiSteps", "deep"),
    "conditionally_transform",
)

# Statistics of whole arrays, or what needs more than gradients: see their own tests.
INEXACT = {
    "adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=3),
    "adafactor, momentum": optax.adafactor(1e-3, min_dim_size_to_factor=3, momentum=0.9),
    "sm3": optax.sm3(1e-3),
    "novograd": optax.novograd(1e-3),
    "layer-wise dog": optax.scale_by_distance_over_gradients(),
    "fromage": optax.fromage(1e-3),
    "sign_sgd": optax.sign_sgd(1e-3),
    "polyak_sgd": optax.polyak_sgd(),
    "sophia": contrib.sophia(1e-3),
    "dadapt_adamw": contrib.dadapt_adamw(),
}

# States that are refused by name.
REFUSED = {
    "lbfgs": optax.lbfgs(linesearch=None),
    "scale_by_backtracking_linesearch": optax.scale_by_backtracking_linesearch(5),
    "scale_by_zoom_linesearch": optax.scale_by_zoom_linesearch(5),
    "galore": contrib.galore(1e-3, rank=2),
}


WANT_THE_LOSS = {"momo", "momo_adam", "reduce_on_plateau", "polyak_sgd"}


def make(name):
    """An optimizer by name, and the arguments that its update takes besides."""
    tx = (EXACT | INEXACT)[name]
    tx = tx() if inspect.isfunction(tx) else tx
    more = {"value": jnp.ones(())} if name in WANT_THE_LOSS else {}
    if name == "sophia":
        more = {"obj_fn": lambda params: sum(jnp.sum(p**4) for p in jax.tree.leaves(params))}
    return tx, more


# How those that want arguments are called. Wrappers stand in EXACT.
ARGUMENTS = {
    "adaptive_grad_clip": (0.01,),
    "add_noise": (0.01, 0.55, 0),
    "apply_every": (3,),
    "clip": (1.0,),
    "clip_by_block_rms": (1.0,),
    "clip_by_global_norm": (1.0,),
    "differentially_private_aggregate": (1.0, 1.0, 0),
    "dpsgd": (1e-2, 1.0, 1.0, 0),
    "ema": (0.9,),
    "scale": (1e-3,),
    "scale_by_backtracking_linesearch": (5,),
    "scale_by_schedule": (optax.constant_schedule(1e-3),),
    "scale_by_zoom_linesearch": (5,),
    "trace": (0.9,),
    "noisy_sgd": (1e-3, 0.01, 0.55, 0),
    "snapshot": ("norm", optax.tree.norm),
    "stateless": (lambda updates, params: updates,),
    "stateless_with_tree_map": (lambda update, param: update,),
    "flatten": (optax.identity(),),
    "galore": (1e-3, 2),
    "scale_by_galore": (2,),
    "measure_with_ema": (optax.tree.norm, 0.9),
    "lookahead": (optax.sgd(1e-2, momentum=0.9), 3, 0.5),
    "mechanize": (optax.adam(1e-3),),
    "schedule_free": (optax.sgd(1e-2), 1e-2),
    "split_real_and_imaginary": (optax.adam(1e-3),),
    "with_extra_args_support": (optax.adam(1e-3),),
    "normalize_by_update_norm": (),
    "sam": (optax.sgd(1e-2), optax.sgd(1e-2)),
    "scale_by_rprop": (1e-3,),
}
WRAPPERS = {
    *("apply_if_finite", "chain", "named_chain", "conditionally_mask", "conditionally_transform"),
    *("freeze", "inject_hyperparams", "inject_stateful_hyperparams", "masked", "multi_transform"),
    *("partition", "selective_transform"),
}


def exported():
    """The names of all that optax exports and that makes a transformation of gradients."""
    names = set()
    for module in (optax, contrib):
        for name, value in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(value):
                continue
            result = str(inspect.signature(value).return_annotation)
            if "GradientTransformation" in result or "MultiSteps" in result:
                names.add(name)
    return names


def states():
    """The types of all states that optax has."""
    found = {}
    for module in (optax, contrib, optax._src.transform):
        for value in vars(module).values():
            is_state = inspect.isclass(value) and issubclass(value, tuple)
            if is_state and value.__name__.endswith(("State", "ApplyEvery")):
                found[value] = value.__name__
    return found
