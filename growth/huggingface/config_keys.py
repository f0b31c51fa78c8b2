"""The keys of `config.json`: what each may say, and which ones change nothing that is computed.

A family lists the keys that it reads, and those that it needs not read. Any other key may change
what the model computes, so it is refused, unless its value is the one that stands for its absence.
"""

import dataclasses
import functools
import reprlib
from collections.abc import Collection, Mapping
from typing import Annotated, Any

import pydantic

from growth.errors import InputError

# More layers than any model has. What a layer costs here, a billion of them would cost often.
_MOST_LAYERS = 10_000
_LARGEST = 2**31 - 1


class FamilyError(InputError):
    """A model's family or its config is not known to growth; the message says what is."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a key may say.

    Attributes:
      words: the values, in words.
      annotation: the same as a type, for pydantic, which converts nothing.
      is_optional: whether None is one of them.
    """

    words: str
    annotation: Any
    is_optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether a value is one of them."""
        if value is None:
            return self.is_optional
        try:
            _adapter(self).validate_python(value)
        except pydantic.ValidationError:
            return False
        return True

    def or_none(self) -> "Kind":
        """The same, or None."""
        return dataclasses.replace(self, words=f"{self.words}, or null", is_optional=True)


@functools.cache
def _adapter(kind: Kind) -> pydantic.TypeAdapter:
    config = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
    return pydantic.TypeAdapter(kind.annotation, config=config)


def _whole(least: int, most: int) -> Kind:
    annotation = Annotated[int, pydantic.Field(ge=least, le=most)]
    return Kind(f"a whole number from {least} to {most}", annotation)


COUNT = _whole(1, _LARGEST)
FLAG = Kind("true or false", bool)
WORD = Kind("a word", str)
WORDS = Kind("a list of words", list[str])
TABLE = Kind("an object", dict[str, Any])
POSITIVE = Kind("a positive number", Annotated[float, pydantic.Field(gt=0)])
SHARE = Kind("a number above 0, up to 1", Annotated[float, pydantic.Field(gt=0, le=1)])
FACTOR = Kind("a number from 1", Annotated[float, pydantic.Field(ge=1)])


def _each(kind: Kind, names: str) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), kind)


# What each key says, in every family that reads it.
KINDS: Mapping[str, Kind] = {
    **_each(WORD, "model_type hidden_act hidden_activation activation_function"),
    **_each(WORD.or_none(), "dtype torch_dtype transformers_weights"),
    **_each(WORDS.or_none(), "architectures layer_types"),
    **_each(TABLE.or_none(), "quantization_config rope_parameters rope_scaling"),
    **_each(
        COUNT,
        "vocab_size hidden_size n_embd num_attention_heads n_head intermediate_size ffn_dim "
        "num_local_experts num_experts_per_tok",
    ),
    **_each(
        COUNT.or_none(),
        "num_key_value_heads head_dim n_inner sliding_window word_embed_proj_dim "
        "original_max_position_embeddings",
    ),
    # A text of one token has no next one.
    **_each(_whole(2, _LARGEST), "max_position_embeddings n_positions"),
    **_each(_whole(1, _MOST_LAYERS), "num_hidden_layers n_layer"),
    **_each(_whole(0, _LARGEST), "max_window_layers"),
    **_each(
        POSITIVE,
        "rms_norm_eps layer_norm_eps layer_norm_epsilon norm_epsilon query_pre_attn_scalar",
    ),
    **_each(
        POSITIVE.or_none(),
        "attn_logit_softcapping final_logit_softcapping clip_qkv rope_theta rotary_emb_base",
    ),
    **_each(SHARE, "partial_rotary_factor rotary_pct initializer_range init_std"),
    **_each(
        FLAG,
        "tie_word_embeddings attention_bias mlp_bias use_bias use_qkv_bias enable_bias "
        "use_sliding_window use_parallel_residual qk_layernorm scale_attn_weights "
        "scale_attn_by_inverse_layer_idx do_layer_norm_before _remove_final_layer_norm "
        "layer_norm_elementwise_affine",
    ),
}

# Keys that transformers reads of a config of any family, whatever else it says.
GENERAL = ("model_type", "architectures", "dtype", "torch_dtype", "transformers_weights",
           "quantization_config", "tie_word_embeddings")  # fmt: skip

# What a config says about itself, its tokens, its training, its files, and how text is generated.
IRRELEVANT = frozenset(
    """
    _name_or_path name_or_path transformers_version _commit_hash auto_map custom_pipelines
    tokenizer_class finetuning_task task_specific_params prefix license
    _attn_implementation _attn_implementation_autoset attn_implementation _flash_attn_2_enabled
    use_flash_attention_2 use_flash_attn _experts_implementation experts_implementation use_cache
    unsloth_version unsloth_fixed transformers.js_config is_llama_config
    id2label label2id num_labels problem_type
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id
    decoder_start_token_id is_decoder torchscript use_bfloat16 tf_legacy_loss
    cross_attention_hidden_size tie_encoder_decoder
    output_attentions output_hidden_states output_scores return_dict return_dict_in_generate
    chunk_size_feed_forward tie_last_hidden_states pretraining_tp gradient_checkpointing
    attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop dropout activation_dropout
    layerdrop classifier_dropout residual_dropout embedding_dropout hidden_dropout_prob
    attention_probs_dropout_prob
    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens
    cache_implementation diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens min_length
    no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups
    num_beams num_return_sequences remove_invalid_values repetition_penalty suppress_tokens
    target_lookbehind temperature top_k top_p typical_p
    """.split()  # noqa: SIM905
)

# Keys that change what is computed, except where they say this.
UNCHANGING: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "use_bidirectional_attention": (False,),
    "pruned_heads": ({},),
    "rope_interleaved": (False,),
    "alibi": (False,),
    "use_mrope": (False,),
    "num_nextn_predict_layers": (0,),
}


def check_kinds(config: Mapping[str, Any], kinds: Mapping[str, Kind], within: str = "") -> None:
    """Refuses a value of another kind than its key has.

    Args:
      config: what `config.json` says, or one of its tables.
      kinds: what keys may say that are there.
      within: what stands before their names in a message.

    Raises:
      FamilyError: a value is of another kind; the message says what would be right.
    """
    for name, kind in kinds.items():
        if name in config and not kind.accepts(config[name]):
            raise FamilyError(
                f"config.json says {within}{name} {shown(config[name])}, but it must be "
                f"{kind.words}"
            )


def check_known(
    config: Mapping[str, Any],
    *,
    read: Collection[str],
    unchanging: Mapping[str, tuple[Any, ...]],
    ignored: Collection[str],
    model_type: str,
    within: str = "",
) -> None:
    """Refuses keys that nobody here reads, unless they say nothing.

    Args:
      config: what `config.json` says, or one of its tables.
      read: the keys that are read, or need not be.
      unchanging: keys with the values for which they need not be read.
      ignored: keys that are passed over because somebody says so.
      model_type: the family, for the message.
      within: what stands before the names of keys.

    Raises:
      FamilyError: a key is not known, or says what growth does not know.
    """
    unread = {
        f"{within}{name}": value
        for name, value in config.items()
        if name not in read and value is not None and f"{within}{name}" not in ignored
    }
    others = {
        name: value
        for name, value in unread.items()
        if not any(_is_same(value, usual) for usual in unchanging.get(name, ()))
    }
    if others:
        said = ", ".join(f"{name} {shown(value)}" for name, value in others.items())
        names = ",".join(others)
        raise FamilyError(
            f"config.json says {said}, which growth does not read for a {model_type}: it may "
            f"change what the model computes. If it does not, remove it from a copy of the folder, "
            f"or give --ignore_config_keys={names}"
        )


def _is_same(value: Any, usual: Any) -> bool:
    return type(value) is type(usual) and value == usual  # True is not 1


def shown(value: Any) -> str:
    """A value, as short as a message needs it."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
