"""An architecture and a blueprint that contradict each other are refused, whatever the pair."""

import pytest

from growth import ArchitectureError, BlueprintError
from growth.blueprints import pytrees
from growth.blueprints.presence import DEMANDED, FORBIDDEN
from growth.models import blueprint
from growth.rules import roles
from tests.helpers import networks
from tests.helpers.networks import ARCHITECTURES, VARIANTS, abstract_parameters

# The fields that say which norms and which output layer a model has.
FIELDS = {
    "norm": ("rmsnorm", "layernorm"),
    "norm_gain": (True, False),
    "norm_placement": ("pre", "closing", "sandwich", "post"),
    "embed_norm": (True, False),
    "position": ("rope", "learned"),
    "final_norm": (True, False),
    "qk_norm": ("none", "head"),
    "tied_embeddings": (True, False),
    "branch_gain": (True, False),
    "scaled_logits": (True, False),
}

ALL = ARCHITECTURES | VARIANTS
TELLING = (
    "norms without gains, tied, scaled embedding",
    "sandwich norms, soft caps, windows (Gemma 2)",
    "a gain on each branch",
    "closing norms, norm over all queries (OLMo 2)",
    "RMSNorm after embedding",
    "post-norm, LayerNorm, bidirectional (BERT)",
)


def kinds(architecture):
    """The roles that the reference model has, and whether they stand in layers."""
    leaves = pytrees.leaves(abstract_parameters(architecture)[0])
    rules = blueprint(architecture).parameters(abstract_parameters(architecture)[0], architecture)
    return {(rules[leaf.path].rule.roles, bool(rules[leaf.path].layers)) for leaf in leaves}


def others(architecture):
    """The architectures that differ from one in what one field says."""
    for field, values in FIELDS.items():
        for value in values:
            try:
                other = architecture.replace(**{field: value})
            except ArchitectureError:
                continue
            if other != architecture:
                yield f"{field}={value!r}", other


@pytest.mark.parametrize("name", networks.first(ALL, *TELLING))
def test_every_field_that_contradicts_the_arrays_is_refused(name):
    """The arrays are those of one architecture, and the architecture is another."""
    architecture = ALL[name]
    tree = abstract_parameters(architecture)[0]
    rules = blueprint(architecture)
    rules.check(tree, architecture)
    for said, other in others(architecture):
        lost, gained = kinds(architecture) - kinds(other), kinds(other) - kinds(architecture)
        # A norm may lack a bias, one over queries a gain, a model positions: growth is the same.
        gained = {(r, inside) for r, inside in gained if not r[0].endswith("bias")}
        gained -= {(("qk_norm",), True), (("position",), False)}
        lost = {
            (r, inside) for r, inside in lost if said.startswith("norm=") or r[0][-4:] != "bias"
        }
        if gained == {(("unembed",), False)} and not lost and not roles.output_differs(other):
            continue  # a body without an output layer grows alike
        if lost or gained:
            with pytest.raises(BlueprintError, match="the architecture says that there is"):
                rules.check(tree, other)
        else:
            rules.check(tree, other)


def test_every_row_of_the_table_is_met():
    """No row is there in vain: each refuses something that no other row does."""
    for table in (FORBIDDEN, DEMANDED):
        for row in table:
            found = False
            for architecture in map(ALL.get, TELLING):
                tree = abstract_parameters(architecture)[0]
                there = list(blueprint(architecture).parameters(tree, architecture).values())
                for _, other in others(architecture):
                    has = bool(row.found(there))
                    found |= row.when(other) and has == (table is FORBIDDEN)
            assert found, row.words
