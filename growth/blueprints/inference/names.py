"""What people call the parameters of a transformer: names propose roles, and decide nothing."""

import re
from collections.abc import Iterator, Sequence

from growth.blueprints.inference.paths import BIASES, GAINS, PLAIN, Kind

Roles = tuple[str, ...]

# What stands around a name: `to_q`, `q_proj`, `attn_q_einsum`, `linear_q`, `wq`.
_BEFORE = r"(?:w_?|b_?|c_|to_|lin(?:ear)?_|attn_|attention_|self_|cross_|mlp_|dense_|final_)?"
_AFTER = r"(?:_?(?:proj(?:ection)?|einsum|kernel|weights?|w|lin(?:ear)?|dense|layer|matrix|table))?"

_FFN = r"(?:mlp|ff|ffn|ffw|feed_?forward)_?"
_QKV = ("query", "key", "value")
_GATED = ("mlp_in", "mlp_in")

# Names of parameters, or of the modules that hold them, by what they may be: the first that is
# found, from the end of the path. Which of several is meant is for shapes to say.
_NAMES: tuple[tuple[Roles, str], ...] = (
    (("query",), r"q|query|queries"),
    (("key",), r"k|keys?"),
    (("value",), r"v|values?|val"),
    (_QKV, r"qkv|query_?key_?value|c_attn|attn|w_?qkv|in|qkv_?combined"),
    (("key", "value"), r"kv|key_?value|kv_?combined"),
    (
        ("attention_out",),
        r"o|out(put)?|attn_?out|attn_?vec|proj|c_?proj|dense|post|combine|linear",
    ),
    (
        ("mlp_in",),
        rf"up|gate|gating|fc|fc_?[01]|fc_?in|c_?fc|w_?[13]|wi|wi_\d|in|intermediate|(dense_)?h_to_4h"
        rf"|(linear|dense|lin)_?[01v]?|{_FFN}(1|in|up|gate|gating|gate_?\d|wi|wi_\d|fc_?1)"
        r"|expand|inner|hidden|up_?gate",
    ),
    (_GATED, rf"w_?13|gate_?up|up_?gate|gating|wi|fc_?1|w_?1|{_FFN}(1|in|gating)|c_?fc|h_to_4h"),
    (
        ("mlp_out",),
        rf"down|fc_?2|fc_?out|w_?2|wo|o|out(put)?|(dense_)?4h_to_h|proj|c_?proj|dense"
        rf"|(linear|dense|lin)_?[12]|{_FFN}(2|out|down|wo|fc_?2)|contract|outer|back|linear",
    ),
    (("branch_gain",), r"(attention|attn|mlp|branch)_?gain|layer_?scale\w*|ls_?\d?|lambda_?\d?"),
    (("router",), r"router|gate|gating|switch|expert_?gate|route"),
    (
        ("position",),
        r"wpe|pos|pos\w*emb\w*|position\w*|emb\w*_?pos\w*|cls\w*|(class|mask|register)_?tokens?",
    ),
    (("position_bias",), r"relative_?attention_?bias|rel\w*bias|rel_?pos\w*"),
    (
        ("unembed",),
        r"(lm_?|output_?)?head|unembed\w*|output|out|logits\w*|embed_?out|decoder|classifier"
        r"|vocab|to_?logits|(output|out|lm)_?proj|readout|decode",
    ),
    (
        ("embedding",),
        r"wte|embed(der|ding|dings)?|embed_?tokens?|tok\w*|input_?embed\w*|table|shared|word\w*"
        r"|patch\w*|vocab|emb|in_?embed\w*|embedding\w*",
    ),
)
_COMPILED = tuple(
    (roles, re.compile(f"{_BEFORE}(?:{names}){_AFTER}|{names}")) for roles, names in _NAMES
)

_QK_NORM = re.compile(
    r"(q|query|k|key)_?(norm|ln|layer_?norm|rms_?norm)|(norm|ln)_?(q|k|query|key)"
)
_NORM = re.compile(r".*(norms?|ln)\d*(_\w*)?|ln_?\w*|norms?_?\w*")
_CLOSING = re.compile(r"post|clos")
_OF_EMBEDDING = re.compile(r"emb")


def words(kind: Kind) -> list[str]:
    """The names that an array stands under within its layer, the nearest first."""
    inside = kind.module.replace("{_layers}", "_{layers}").rpartition("{layers}")
    segments = f"{inside[0].rpartition('/')[2]}{{layers}}{inside[2]}" if inside[1] else inside[2]
    found = []
    for segment in reversed(segments.lower().split("/")):
        word = re.sub(r"^(layer|block|h)s?_{layers}_?|_?{\w+}", "", segment)
        if word and not word.isdecimal():
            found.append(word)
    return found


def proposals(kind: Kind) -> Iterator[list[Roles]]:
    """The roles that each name proposes, the nearest name first; none behind that of a norm."""
    for word in words(kind):
        if is_norm_name(word):
            return
        if found := [roles for roles, names in _COMPILED if names.fullmatch(word)]:
            yield found


def is_norm_name(word: str) -> bool:
    """Whether a name says that a module is a norm."""
    return bool(_NORM.fullmatch(word))


def norm_of(kind: Kind) -> str:
    """The norm that an array would belong to: what it stands in, if that is called a norm."""
    module, _, leaf = kind.module.rpartition("/")
    called = module.rpartition("/")[2].lower()
    if not kind.part and called and is_norm_name(called) and not leaf.isdecimal():
        return kind.module if is_norm_name(leaf.lower()) else module
    return kind.module


def names_norm(kind: Kind) -> bool:
    """Whether an array is called as those of a norm are."""
    found = words(kind)
    return bool(found) and (is_norm_name(found[0]) or norm_of(kind) != kind.module)


def names_qk_norm(kind: Kind) -> bool:
    """Whether an array is called as those of a norm of queries or keys are."""
    found = words(kind)
    return bool(found) and bool(_QK_NORM.fullmatch(found[0]))


def closes(kind: Kind) -> bool:
    """Whether a norm is called as one at the end of a branch is."""
    return any(_CLOSING.search(word) for word in words(kind)[:1])


def follows_embedding(kind: Kind) -> bool:
    """Whether a norm is called as one behind the embedding is."""
    return any(_OF_EMBEDDING.search(word) for word in words(kind)[:2])


def norm_parts(kind: Kind) -> Sequence[str]:
    """What an array of a norm may be by its name: "gain", "bias", or both where it says neither."""
    if kind.part in (*GAINS, *PLAIN):
        return ("gain",)
    return ("bias",) if kind.part in BIASES else ("gain", "bias")
