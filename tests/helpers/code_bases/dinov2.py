"""DINOv2 in transformers' Flax layout: images, a gain on each branch, a head that reads two things.

The class token, and the mean of the patches.
"""

import numpy as np

from growth import Architecture, Blueprint
from growth.architecture.patches import Patches
from tests.helpers.code_bases import functions as f
from tests.helpers.code_bases.code_base import SIZES, CodeBase, nested

PATCHES = Patches(4, 6, 3, 2)
_TOP, _LAYER = "dinov2/embeddings", "dinov2/encoder/layer"


def shapes(arch):
    h, patches = arch.embed_dim, arch.patches
    found = {
        f"{_TOP}/cls_token": (1, 1, h),
        f"{_TOP}/mask_token": (1, h),  # of pretraining: nothing reads it
        f"{_TOP}/position_embeddings": (1, arch.max_length, h),
        f"{_TOP}/patch_embeddings/projection/kernel": (
            patches.size, patches.size, patches.channels, h
        ),
        f"{_TOP}/patch_embeddings/projection/bias": (h,),
    }  # fmt: skip
    for i, s in enumerate(arch.layers):
        qk, v = s.num_heads * s.qk_dim, s.num_heads * s.v_dim
        dense = {
            "attention/attention/query": (h, qk),
            "attention/attention/key": (h, qk),
            "attention/attention/value": (h, v),
            "attention/output/dense": (v, h),
            "mlp/fc1": (h, s.mlp_dim),
            "mlp/fc2": (s.mlp_dim, h),
        }
        for name, shape in dense.items():
            found[f"{_LAYER}/{i}/{name}/kernel"] = shape
            found[f"{_LAYER}/{i}/{name}/bias"] = shape[1:]
        for name in ("norm1", "norm2"):
            found[f"{_LAYER}/{i}/{name}/scale"] = (h,)
            found[f"{_LAYER}/{i}/{name}/bias"] = (h,)
        for name in ("layer_scale1", "layer_scale2"):
            found[f"{_LAYER}/{i}/{name}/lambda1"] = (h,)
    return found | {
        "dinov2/layernorm/scale": (h,),
        "dinov2/layernorm/bias": (h,),
        "classifier/kernel": (2 * h, arch.vocab_size),
        "classifier/bias": (arch.vocab_size,),
    }


def function(arch, p, images):
    xp = f.namespace(p["classifier/bias"])

    def norm(x, name):
        return f.layer_norm(x, p[f"{name}/scale"], p[f"{name}/bias"], arch.norm_eps)

    def dense(x, name):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    n, size, c = images.shape[0], arch.patches.size, arch.patches.channels
    rows, columns = arch.patches.height // size, arch.patches.width // size
    cut = images.reshape(n, rows, size, columns, size, c)
    kernel = p[f"{_TOP}/patch_embeddings/projection/kernel"]
    x = f.einsum("nrycxi,yxih->nrch", cut, kernel).reshape(n, rows * columns, -1)
    x = x + p[f"{_TOP}/patch_embeddings/projection/bias"]
    first = xp.broadcast_to(p[f"{_TOP}/cls_token"], (n, 1, x.shape[-1]))
    x = xp.concatenate([first, x], axis=1) + p[f"{_TOP}/position_embeddings"]
    for i, s in enumerate(arch.layers):
        at = f"{_LAYER}/{i}"
        y = norm(x, f"{at}/norm1")
        q, k, v = (
            f.split_heads(dense(y, f"{at}/attention/attention/{name}"), s.num_heads)
            for name in ("query", "key", "value")
        )
        y = dense(f.join_heads(f.attend(q, k, v, causal=False)), f"{at}/attention/output/dense")
        x = x + p[f"{at}/layer_scale1/lambda1"] * y
        y = dense(f.gelu(dense(norm(x, f"{at}/norm2"), f"{at}/mlp/fc1")), f"{at}/mlp/fc2")
        x = x + p[f"{at}/layer_scale2/lambda1"] * y
    x = norm(x, "dinov2/layernorm")
    return dense(xp.concatenate([x[:, 0], x[:, 1:].mean(1)], axis=-1), "classifier")


_QUERY, _VALUE = ("query", "embed (kv_heads qk)"), ("value", "embed (kv_heads v)")
DINOV2 = CodeBase(
    "Linen",
    Architecture(
        **SIZES | dict(max_length=7), norm="layernorm", activation="gelu", gated_mlp=False,
        position="learned", use_bias=True, causal=False, branch_gain=True, patches=PATCHES,
    ),
    shapes,
    function,
    Blueprint(
        [
            (f"{_TOP}/cls_token", "position", "1 1 embed"),
            (f"{_TOP}/mask_token", "position", "1 embed"),
            (f"{_TOP}/position_embeddings", "position", "1 length embed"),
            (
                f"{_TOP}/patch_embeddings/projection/kernel",
                "embedding",
                "height width channels embed",
            ),
            (f"{_TOP}/patch_embeddings/projection/bias", "embedding", "embed"),
            (f"{_LAYER}/{{layers}}/{{norm}}/scale", "norm_gain", "embed"),
            (f"{_LAYER}/{{layers}}/norm1/bias", "norm_bias", "embed"),
            (f"{_LAYER}/{{layers}}/norm2/bias", "norm_bias", "embed"),
            (f"{_LAYER}/{{layers}}/{{which}}/lambda1", "branch_gain", "embed"),
            (f"{_LAYER}/{{layers}}/attention/attention/query/kernel", *_QUERY),
            (f"{_LAYER}/{{layers}}/attention/attention/query/bias", "query", "(kv_heads qk)"),
            (f"{_LAYER}/{{layers}}/attention/attention/key/kernel", "key", "embed (kv_heads qk)"),
            (f"{_LAYER}/{{layers}}/attention/attention/key/bias", "key", "(kv_heads qk)"),
            (f"{_LAYER}/{{layers}}/attention/attention/value/kernel", *_VALUE),
            (f"{_LAYER}/{{layers}}/attention/attention/value/bias", "value", "(kv_heads v)"),
            (
                f"{_LAYER}/{{layers}}/attention/output/dense/kernel",
                "attention_out",
                "(kv_heads v) embed",
            ),
            (f"{_LAYER}/{{layers}}/attention/output/dense/bias", "attention_out", "embed"),
            (f"{_LAYER}/{{layers}}/mlp/fc1/kernel", "mlp_in", "embed mlp"),
            (f"{_LAYER}/{{layers}}/mlp/fc1/bias", "mlp_in", "mlp"),
            (f"{_LAYER}/{{layers}}/mlp/fc2/kernel", "mlp_out", "mlp embed"),
            (f"{_LAYER}/{{layers}}/mlp/fc2/bias", "mlp_out", "embed"),
            ("dinov2/layernorm/scale", "final_gain", "embed"),
            ("dinov2/layernorm/bias", "final_bias", "embed"),
            ("classifier/kernel", "unembed", "(2 embed) vocab"),
            ("classifier/bias", "unembed", "vocab"),
        ]
    ),
    contain=nested,
    inputs=np.random.default_rng(0).standard_normal((3, *PATCHES.shape)),
)  # fmt: skip
