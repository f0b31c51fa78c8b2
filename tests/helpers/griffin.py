"""A small network whose layers are of two kinds, with names as Haiku gives them.

As in Griffin a layer mixes tokens by attention or by a gated linear recurrence, whose width does
not grow; an MLP follows. The functions take numpy's arrays as well as JAX's: numpy compiles
nothing.
"""

import numpy as np

from growth import Architecture, Blueprint
from growth.blueprints import pytrees

ATTENTION, RECURRENCE = "attention", "recurrence"
WIDTH = 3  # of the recurrence
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 4))

ARCHITECTURE = Architecture(
    vocab_size=11, max_length=8, embed_dim=6, num_layers=3, num_heads=4, num_kv_heads=2,
    qk_dim=4, v_dim=3, mlp_dim=5, norm_eps=1e-3, position="none", tied_embeddings=True,
)  # fmt: skip
KINDS = (RECURRENCE, RECURRENCE, ATTENTION)

RULES = (
    ("griffin/embed/table", "embedding", "vocab embed"),
    ("griffin/block{_layers}/norm/scale", "norm_gain", "embed"),
    ("griffin/block{_layers}/norm_1/scale", "norm_gain", "embed"),
    ("griffin/block{_layers?}/attention/query", "query", "embed (kv_heads group) qk"),
    ("griffin/block{_layers?}/attention/key", "key", "embed kv_heads qk"),
    ("griffin/block{_layers?}/attention/value", "value", "embed kv_heads v"),
    ("griffin/block{_layers?}/attention/out", "attention_out", "(kv_heads group) v embed"),
    ("griffin/block{_layers?}/recurrence/{side}", "mlp_in", "embed width"),
    ("griffin/block{_layers?}/recurrence/inner/gate", "mlp_in", "width gates"),
    ("griffin/block{_layers?}/recurrence/inner/decay", "mlp_in", "width"),
    ("griffin/block{_layers?}/recurrence/inner/out", "mlp_out", "width embed"),
    ("griffin/block{_layers}/mlp/gate", "mlp_in", "embed mlp"),
    ("griffin/block{_layers}/mlp/up", "mlp_in", "embed mlp"),
    ("griffin/block{_layers}/mlp/down", "mlp_out", "mlp embed"),
    ("griffin/norm/scale", "norm_gain", "embed"),
)
BLUEPRINT = Blueprint(RULES)


def haiku(name, number):
    """What Haiku calls the modules of one name: the first has no number."""
    return f"{name}_{number}" if number else name


def block(index):
    """The name of a block."""
    return haiku("griffin/block", index)


def shapes(arch, kinds):
    """The shape of each array by module and name."""
    h = arch.embed_dim
    found = {"griffin/embed": {"table": (arch.vocab_size, h)}, "griffin/norm": {"scale": (h,)}}
    for index, (layer, kind) in enumerate(zip(arch.layers, kinds, strict=True)):
        at = block(index)
        found[f"{at}/norm"] = found[f"{at}/norm_1"] = {"scale": (h,)}
        found[f"{at}/mlp"] = {
            "gate": (h, layer.mlp_dim), "up": (h, layer.mlp_dim), "down": (layer.mlp_dim, h),
        }  # fmt: skip
        if kind == ATTENTION:
            found[f"{at}/attention"] = {
                "query": (h, layer.num_heads, layer.qk_dim),
                "key": (h, layer.num_kv_heads, layer.qk_dim),
                "value": (h, layer.num_kv_heads, layer.v_dim),
                "out": (layer.num_heads, layer.v_dim, h),
            }
        else:
            found[f"{at}/recurrence"] = {"branch": (h, WIDTH), "side": (h, WIDTH)}
            found[f"{at}/recurrence/inner"] = {
                "gate": (WIDTH, WIDTH), "decay": (WIDTH,), "out": (WIDTH, h),
            }  # fmt: skip
    return found


def init(arch, kinds, seed=0):
    """Random parameters, far from any initialization."""
    random = np.random.default_rng(seed)
    return {
        module: {name: 0.6 * random.standard_normal(shape) for name, shape in arrays.items()}
        for module, arrays in shapes(arch, kinds).items()
    }


def apply(arch, tree, tokens=TOKENS):
    """Logits, in the library of the arrays."""
    w = {leaf.path: leaf.value for leaf in pytrees.leaves(tree)}
    table = w["griffin/embed/table"]
    x = table[tokens]
    for index in range(arch.num_layers):
        at = block(index)
        y = _norm(x, w[f"{at}/norm/scale"], arch.norm_eps)
        mix = _attention if f"{at}/attention/query" in w else _recurrence
        x = x + mix(y, {n.removeprefix(f"{at}/"): a for n, a in w.items() if n.startswith(at)})
        y = _norm(x, w[f"{at}/norm_1/scale"], arch.norm_eps)
        x = x + (_sigmoid(y @ w[f"{at}/mlp/gate"]) * (y @ w[f"{at}/mlp/up"])) @ w[f"{at}/mlp/down"]
    return _norm(x, w["griffin/norm/scale"], arch.norm_eps) @ table.T


def _attention(y, w):
    xp = y.__array_namespace__()
    q, k, v = (
        xp.einsum("blh,hek->belk", y, w[f"attention/{name}"]) for name in ("query", "key", "value")
    )
    k, v = (xp.repeat(z, q.shape[1] // k.shape[1], axis=1) for z in (k, v))
    scores = xp.einsum("belk,bemk->belm", q, k) / q.shape[-1] ** 0.5
    scores = xp.where(xp.tril(xp.ones(scores.shape[-2:], bool)), scores, -1e30)
    weights = xp.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    return xp.einsum("belm,bemv,evh->blh", weights, v, w["attention/out"])


def _recurrence(y, w):
    """State ← decay · state + (1 − decay) · input, where the decay is that of a gate."""
    xp, inputs = y.__array_namespace__(), y @ w["recurrence/branch"]
    decay = _sigmoid(inputs @ w["recurrence/inner/gate"] + w["recurrence/inner/decay"])
    states, state = [], 0.0
    for at in range(y.shape[1]):
        state = decay[:, at] * state + (1 - decay[:, at]) * inputs[:, at]
        states.append(state)
    mixed = xp.stack(states, axis=1) * _sigmoid(y @ w["recurrence/side"])
    return mixed @ w["recurrence/inner/out"]


def _norm(x, gain, eps):
    return gain * x / ((x * x).mean(-1, keepdims=True) + eps) ** 0.5


def _sigmoid(x):
    return 1 / (1 + x.__array_namespace__().exp(-x))
