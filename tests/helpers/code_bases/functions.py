"""What the functions of these models share: in numpy or JAX, whichever their arrays are of.

Numpy compiles nothing, so thousands of wrong blueprints can be run; JAX has gradients. Arrays of
attention are [batch, length, heads, width].
"""


def namespace(array):
    """numpy or jax.numpy."""
    return array.__array_namespace__()


def einsum(equation, *arrays):
    return namespace(arrays[0]).einsum(equation, *arrays)


def rms_norm(x, gain, eps):
    return gain * x / ((x * x).mean(-1, keepdims=True) + eps) ** 0.5


def layer_norm(x, gain, bias, eps):
    return rms_norm(x - x.mean(-1, keepdims=True), gain, eps) + bias


def softmax(x):
    raised = namespace(x).exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + namespace(x).tanh((2 / 3.141592653589793) ** 0.5 * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + namespace(x).exp(-x))


def relu(x):
    return namespace(x).maximum(x, 0)


def split_heads(x, number):
    """[batch, length, number · width] to an array of attention."""
    return x.reshape(*x.shape[:2], number, -1)


def join_heads(x):
    return x.reshape(*x.shape[:2], -1)


def attend(q, k, v, *, scale=None, causal=True, softcap=None, bias=0.0):
    """Attention; query head e reads key/value head ⌊e / queries per group⌋."""
    xp, each = namespace(q), q.shape[2] // k.shape[2]
    k, v = (xp.repeat(y, each, axis=2) for y in (k, v))
    scores = einsum("blhk,bmhk->bhlm", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * xp.tanh(scores / softcap)
    scores = scores + bias
    if causal:
        scores = xp.where(xp.tril(xp.ones(scores.shape[-2:], bool)), scores, -1e30)
    return einsum("bhlm,bmhv->blhv", softmax(scores), v)


def _angles(x, theta, width):
    xp = namespace(x)
    frequencies = theta ** (-xp.arange(0, width, 2) / width)
    return (xp.arange(x.shape[1])[:, None] * frequencies)[:, None, :]  # [length, 1, pairs]


def rotate_halves(x, theta):
    """Rotary positions: column i turns together with i + width / 2."""
    xp, half = namespace(x), x.shape[-1] // 2
    angles = _angles(x, theta, x.shape[-1])
    one, other = x[..., :half], x[..., half:]
    cos, sin = xp.cos(angles), xp.sin(angles)
    return xp.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)


def rotate_neighbours(x, theta, width=None):
    """Rotary positions: column 2i turns together with 2i + 1, in the first `width` columns."""
    xp, width = namespace(x), x.shape[-1] if width is None else width
    angles = _angles(x, theta, width)
    turned, rest = x[..., :width], x[..., width:]
    one, other = turned[..., ::2], turned[..., 1::2]
    cos, sin = xp.cos(angles), xp.sin(angles)
    pairs = xp.stack([one * cos - other * sin, other * cos + one * sin], axis=-1)
    return xp.concatenate([pairs.reshape(turned.shape), rest], axis=-1)
