"""Public code bases of other people, made small in our own words, a file for each.

Each has the paths, the orders of axes and the containers of its parameters as the code base has
them, and its function in a few lines. `CODE_BASES` holds them by name.
"""

from tests.helpers.code_bases.dinov2 import DINOV2
from tests.helpers.code_bases.easylm import EASYLM
from tests.helpers.code_bases.gemma import GEMMA
from tests.helpers.code_bases.gptj import GPTJ
from tests.helpers.code_bases.grok import GROK
from tests.helpers.code_bases.haliax_gpt2 import HALIAX_GPT2
from tests.helpers.code_bases.llama2_jax import LLAMA2_JAX
from tests.helpers.code_bases.maxtext import MAXTEXT
from tests.helpers.code_bases.midgpt import MIDGPT
from tests.helpers.code_bases.nanodo import NANODO
from tests.helpers.code_bases.opt import OPT
from tests.helpers.code_bases.searchless_chess import SEARCHLESS_CHESS
from tests.helpers.code_bases.t5x import T5X
from tests.helpers.code_bases.tunix_qwen3 import TUNIX_QWEN3

CODE_BASES = {
    "midGPT": MIDGPT,
    "EasyLM's Llama": EASYLM,
    "llama-2-jax": LLAMA2_JAX,
    "DeepMind's Gemma": GEMMA,
    "Grok-1": GROK,
    "transformers' GPT-J": GPTJ,
    "transformers' OPT": OPT,
    "transformers' DINOv2": DINOV2,
    "T5X": T5X,
    "MaxText's Llama": MAXTEXT,
    "Levanter's GPT-2": HALIAX_GPT2,
    "Tunix's Qwen 3": TUNIX_QWEN3,
    "nanodo": NANODO,
    "searchless chess": SEARCHLESS_CHESS,
}
