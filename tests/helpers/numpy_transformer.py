"""A transformer in plain numpy, with all that an architecture may say: a judge of the model."""

import jax
import numpy as np
import scipy.special

from tests.helpers.networks import by_layer, inputs


def _relu(x):
    return np.maximum(x, 0)


def _gelu(x):
    return x * scipy.special.expit(np.sqrt(8 / np.pi) * (x + 0.044715 * x**3))


def _gelu_exact(x):
    return x * scipy.special.ndtr(x)


def _silu(x):
    return x * scipy.special.expit(x)


_ACTIVATIONS = {"relu": _relu, "gelu": _gelu, "gelu_exact": _gelu_exact, "silu": _silu}


def logits(architecture, parameters):
    """The logits that a network computes, compiling nothing; those of `networks.logits`."""
    arrays = jax.tree.map(np.asarray, parameters)
    return np.stack([_logits(architecture, arrays, row) for row in inputs(architecture)])


def _logits(arch, parameters, given):
    """Those of one sequence of tokens, or of one image; one layer and one head at a time."""
    arrays = by_layer(parameters, arch)

    def linear(x, layer, name, *head):
        bias = arrays.get((layer, f"{name}/bias"))
        y = x @ arrays[layer, f"{name}/kernel"][(slice(None), *head)]
        return y if bias is None else y + bias[head]

    def norm(x, layer, name):
        if arch.norm == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + arch.norm_eps)
        gain = arrays.get((layer, f"{name}/scale"), 1)
        return x * (1 + gain if arch.unit_offset else gain) + arrays.get((layer, f"{name}/bias"), 0)

    def normed_heads(x, layer, name):  # [heads, length, qk]
        if arch.qk_norm == "head":
            return norm(x, layer, name)
        if arch.qk_norm == "none":
            return x
        flat = np.concatenate(x, axis=-1)
        gain = np.ravel(arrays[layer, f"{name}/scale"])
        flat = flat / np.sqrt((flat * flat).mean(-1, keepdims=True) + arch.norm_eps) * gain
        return np.split(flat, len(x), axis=-1)

    def rotated(x, theta):
        width = arch.rotary_dim or x.shape[-1]
        half = width // 2
        frequencies = np.array([stretched(theta ** (-i / half)) for i in range(half)])
        angles = np.outer(np.arange(len(x)), frequencies)
        if arch.rotary_interleaved:
            pairs = (x[:, :width:2] + 1j * x[:, 1:width:2]) * np.exp(1j * angles)
            turned = np.stack([pairs.real, pairs.imag], axis=-1).reshape(len(x), width)
            return np.concatenate([turned, x[:, width:]], axis=-1)
        pairs = (x[:, :half] + 1j * x[:, half:width]) * np.exp(1j * angles)
        return np.concatenate([pairs.real, pairs.imag, x[:, width:]], axis=-1)

    def stretched(frequency):
        scaling = arch.rope_scaling
        if scaling is None:
            return frequency
        if scaling.kind == "linear":
            return frequency / scaling.factor
        length, wave = scaling.original_length, 2 * np.pi / frequency
        if wave < length / scaling.high_freq_factor:
            return frequency
        if wave > length / scaling.low_freq_factor:
            return frequency / scaling.factor
        smooth = length / wave - scaling.low_freq_factor
        smooth /= scaling.high_freq_factor - scaling.low_freq_factor
        return (1 - smooth) * frequency / scaling.factor + smooth * frequency

    def attention(x, i, shape):
        every = np.ndindex(shape.num_kv_heads, shape.queries_per_group)
        queries = [linear(x, i, "attention/query", *head) for head in every]
        keys = [linear(x, i, "attention/key", g) for g in range(shape.num_kv_heads)]
        queries = normed_heads(np.array(queries), i, "attention/query_norm")
        keys = normed_heads(np.array(keys), i, "attention/key_norm")
        t = np.arange(len(x))
        distance = np.abs(t[:, None] - t)
        seen = np.ones(distance.shape, bool)
        seen &= distance < (shape.window or np.inf)
        seen = np.tril(seen) if arch.causal else seen
        out = arrays.get((i, "attention/out/bias"), 0)
        for e, q in enumerate(queries):
            group, within = divmod(e, shape.queries_per_group)
            k, v = keys[group], linear(x, i, "attention/value", group)
            if arch.position == "rope":
                q, k = rotated(q, shape.rope_theta), rotated(k, shape.rope_theta)
            scores = q @ k.T * (arch.query_scale or shape.qk_dim**-0.5)
            if arch.attention_softcap:
                scores = arch.attention_softcap * np.tanh(scores / arch.attention_softcap)
            if arch.position == "alibi":  # for four heads, as here: 1/4, 1/16, 1/64, 1/256
                scores = scores - 0.25 ** (e + 1) * distance
            weights = np.exp(scores) * seen
            mixed = weights / weights.sum(-1, keepdims=True) @ v
            out = out + mixed @ arrays[i, "attention/out/kernel"][group, within]
        return out

    def mlp(x, i, _):
        up = linear(x, i, "mlp/up")
        activation = _ACTIVATIONS[arch.activation]
        gate = activation(linear(x, i, "mlp/gate")) if arch.gated_mlp else None
        return linear(activation(up) if gate is None else up * gate, i, "mlp/down")

    def patches(image):
        size = arch.patches.size
        corners = np.ndindex(image.shape[0] // size, image.shape[1] // size)
        cut = [image[y * size :, x * size :][:size, :size].ravel() for y, x in corners]
        return linear(np.array(cut), None, "patch_embed")

    if arch.patches:
        stream = np.vstack([arrays[None, "class_token"], patches(given)])
    else:
        stream = arrays[None, "embed/embedding"][given]
    if arch.scaled_embedding:
        stream = stream * np.sqrt(arch.embed_dim)
    if arch.embed_norm:
        stream = norm(stream, None, "embed_norm")
    if arch.position == "learned":
        stream = stream + arrays[None, "position"][: len(stream)]
    if arch.position == "sinusoidal":
        half = arch.embed_dim // 2
        angles = np.outer(np.arange(len(stream)), 1e4 ** (-np.arange(half) / half))
        stream = stream + np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    for i, shape in enumerate(arch.layers):
        if arch.parallel != "none":
            x = norm(stream, i, "attention_norm")
            y = x if arch.parallel == "shared_norm" else norm(stream, i, "mlp_norm")
            gains = [arrays.get((i, f"{name}_gain"), 1) for name in ("attention", "mlp")]
            stream = stream + gains[0] * attention(x, i, shape) + gains[1] * mlp(y, i, shape)
            continue
        for name, branch in (("attention", attention), ("mlp", mlp)):
            before = arch.norm_placement in ("pre", "sandwich")
            y = branch(norm(stream, i, f"{name}_norm") if before else stream, i, shape)
            y = y * arrays.get((i, f"{name}_gain"), 1)
            if arch.norm_placement in ("closing", "sandwich"):
                y = norm(y, i, f"{name}_closing_norm")
            stream = stream + y
            if arch.norm_placement == "post":
                stream = norm(stream, i, f"{name}_norm")
    if arch.final_norm:
        stream = norm(stream, None, "final_norm")
    if arch.patches:
        return linear(stream[0], None, "head")
    tied = arch.tied_embeddings
    table = arrays[None, "embed/embedding"].T if tied else arrays[None, "unembed/kernel"]
    cap = arch.logit_softcap
    values = stream @ table / (np.sqrt(arch.embed_dim) if arch.scaled_logits else 1)
    return cap * np.tanh(values / cap) if cap else values
