# %% [markdown]
# # Grow a checkpoint, and go on
#
# A checkpoint of Hugging Face grows, is loaded into the reference model, trained on for a few steps
# and saved for transformers again. The checkpoint is a Llama of random weights, made here; with a
# path of your own all else is the same.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers

import growth
from growth import huggingface, models

transformers.utils.logging.disable_progress_bar()
folder = Path(tempfile.mkdtemp())

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=128,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    max_position_embeddings=64,
    bos_token_id=0,
    eos_token_id=1,
)
transformers.LlamaForCausalLM(config).save_pretrained(folder / "small")
print(sorted(path.name for path in (folder / "small").iterdir()))

# %% [markdown]
# ## Grow it
#
# `plan_expansion` reads the config and the headers, says what would be, and refuses what cannot be
# exact or what no config could say. Nothing is read or written yet.

# %%
sizes = dict(embed_dim=72, num_layers=3, num_heads=6, num_kv_heads=3, mlp_dim=192)
print(huggingface.plan_expansion(folder / "small", **sizes).plan)

# %% [markdown]
# `expand_checkpoint` writes it, tensor by tensor, and lets transformers run both models before the
# directory appears under its name.

# %%
verification = huggingface.expand_checkpoint(
    folder / "small", folder / "large", **sizes, verify=True
)
print(verification)

# %% [markdown]
# ## Load it into the reference model
#
# What comes back is an architecture and plain nested dicts of arrays.

# %%
architecture, params = huggingface.load(folder / "large")
print(architecture)
print(f"{architecture.num_parameters:,} parameters")

tokens = np.random.default_rng(0).integers(0, 128, (2, 16))
with torch.no_grad():
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder / "large")
    wanted = theirs(torch.tensor(tokens)).logits.numpy()
ours = models.apply(architecture, params, jnp.asarray(tokens))
print(f"largest difference to transformers: {np.abs(ours - wanted).max():.0e}")

# %% [markdown]
# ## Train it on
#
# Any loop does; here a few steps on one batch. For real runs there is
# [a loop that reads data, saves, resumes and grows](../uses/training.md).

# %%
tx = optax.adamw(1e-3)
opt_state = tx.init(params)
batch = jnp.asarray(np.random.default_rng(1).integers(0, 128, (8, 32)))


@jax.jit
def train_step(params, opt_state, tokens):
    def loss_of(params):
        logits = models.apply(architecture, params, tokens)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    loss, gradient = jax.value_and_grad(loss_of)(params)
    updates, opt_state = tx.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


for step in range(20):
    params, opt_state, loss = train_step(params, opt_state, batch)
    if step % 5 == 4:
        print(f"step {step + 1}  loss {loss:.3f}")

# %% [markdown]
# It may grow meanwhile, as any model of `growth` does:

# %%
plan = growth.mlp_expansion(256)(architecture)
grown = growth.expand(params, plan, key=jax.random.key(0))
opt_state = growth.expand_optimizer_state(opt_state, plan, tx=tx, params=params, grown=grown)
print(plan)

# %% [markdown]
# ## Save it back
#
# `like` names a checkpoint whose config and tokenizer the new one takes over, but for the sizes.

# %%
huggingface.save(plan.target, grown, folder / "trained", like=folder / "large")

with torch.no_grad():
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder / "trained")
    wanted = theirs(torch.tensor(tokens)).logits.numpy()
ours = models.apply(plan.target, grown, jnp.asarray(tokens))
print(theirs.config.intermediate_size)
print(f"largest difference to transformers: {np.abs(ours - wanted).max():.0e}")
