"""Writes the gallery of blueprints: models that are known to growth by a blueprint alone.

    python -m docs.gallery build/gallery.md

The models are those of the tests, `tests/helpers/foreign_*.py`. For each it writes what the comment
above it says, its blueprint, the error of every transformation, measured here and now, and its
source. The transformations are those of `scripts/exactness`, whose table has more.
"""

import ast
import concurrent.futures
import importlib.machinery
import importlib.util
import inspect
import multiprocessing
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

import growth
from growth.blueprints import presence
from growth.blueprints.inference.guessing import guesses
from tests.helpers import foreign_models, foreign_stacks, networks

ROOT = Path(__file__).parent.parent
MODELS = foreign_models.MODELS | foreign_stacks.MODELS

COLUMNS = {
    "mlp": "mlp_expansion",
    "heads": "head_addition",
    "v": "heads_expansion",
    "qk": "attention_expansion",
    "embed": "hidden_dimension_expansion",
    "layers": "layer_addition",
    "all": "all of them at once",
}


def exactness() -> ModuleType:
    """The script that measures; its name has no ending that Python would look for."""
    loader = importlib.machinery.SourceFileLoader("exactness", str(ROOT / "scripts" / "exactness"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def measure(name: str) -> dict[str, Any]:
    """The largest change of a logit over the largest logit, float64, or why a step is refused."""
    jax.config.update("jax_enable_x64", True)
    model = MODELS[name]
    small = model.architecture.replace(num_layers=1)
    steps = exactness().steps_of(small)
    random = np.random.default_rng(0)

    def parameters(architecture: growth.Architecture) -> Any:
        shapes = jax.eval_shape(lambda: model.init(architecture))
        return jax.tree.map(lambda leaf: 0.6 * random.standard_normal(leaf.shape), shapes)

    def logits(architecture: growth.Architecture, tree: Any) -> jax.Array:
        return model.apply(architecture, tree, networks.TOKENS)

    tree = parameters(small)
    before = jax.jit(logits, static_argnums=0)(small, tree)
    cells: dict[str, Any] = {}
    possible = []
    for name in (*steps, "all"):
        step = growth.compose(*possible) if name == "all" else steps[name]
        try:
            plan = step(small)
        except growth.GrowthError as error:
            cells[name] = str(error).partition(": ")[2]
            continue
        possible.append(step)

        @jax.jit
        def after(tree: Any, fresh: Any, plan: growth.GrowthPlan = plan) -> jax.Array:
            grown = growth.expand(tree, plan, blueprint=model.blueprint, fresh=fresh)
            return logits(plan.target, grown)

        cells[name] = networks.difference(before, after(tree, parameters(plan.target)))
    return cells


def sources(module: ModuleType) -> dict[str, tuple[str, str]]:
    """The comment above each model of a file, and the source from there to its blueprint.

    By the name of the variable that holds the model, such as `GPT_MODEL`.
    """
    text = inspect.getsource(module)
    lines, found, begin = text.splitlines(), {}, 0
    for node in ast.parse(text).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if not (isinstance(target, ast.Name) and target.id.endswith("_MODEL")):
            continue
        while not lines[begin].startswith("# "):
            begin += 1
        end = begin
        while lines[end].startswith("# "):
            end += 1
        comment = " ".join(line.removeprefix("# ") for line in lines[begin:end])
        found[target.id] = comment, "\n".join(lines[end : node.lineno - 1]).strip()
        assert node.end_lineno is not None
        begin = node.end_lineno
    return found


def blueprint(rules: Any) -> str:
    """A blueprint as a person writes it: one rule a line, in columns."""
    rows = [tuple(_quoted(part) for part in rule) for rule in rules]
    widths = [max(len(row[i]) for row in rows) + 1 for i in range(2)]
    lines = [
        f"    ({path + ',':<{widths[0]}} {role + ',':<{widths[1]}} {axes}),"
        for path, role, axes in rows
    ]
    return "\n".join(["growth.Blueprint([", *lines, "])"])


def _quoted(part: Any) -> str:
    if isinstance(part, str):
        return f'"{part}"'
    return f"({', '.join(map(_quoted, part))})"


def errors(cells: dict[str, Any]) -> str:
    """The measured errors as a table; a step that is refused says why."""
    lines = ["| transformation | largest change of a logit |", "|---|---|"]
    for column, transformation in COLUMNS.items():
        cell = cells[column]
        shown = f"refused: {cell}" if isinstance(cell, str) else f"{cell:.0e}" if cell else "0"
        name = transformation if column == "all" else f"`growth.{transformation}`"
        lines.append(f"| {name} | {shown} |")
    return "\n".join(lines)


def inferred(model: Any) -> str:
    """How far the blueprint is found from names and shapes, at sizes that all differ."""
    architecture = model.architecture.replace(
        vocab_size=101, max_length=31, embed_dim=34, num_layers=3, qk_dim=14, v_dim=11, mlp_dim=58
    )
    shapes = jax.eval_shape(lambda: model.init(architecture))
    found = guesses(shapes, architecture)
    still = [f"`{guess.path}`" for guess in found if not guess.sure]
    if not still:
        return "`growth.Blueprint.infer` finds it from names and shapes."
    return (
        f"`growth.Blueprint.infer` finds {len(found) - len(still)} of {len(found)} kinds of arrays "
        f"from names and shapes, and {', '.join(still)} where it is given the model's function."
    )


def presence_table() -> str:
    """Which roles an architecture forbids and demands."""
    rows = ["| if | then a blueprint | roles |", "|---|---|---|"]
    for verb, table in (("has no", presence.FORBIDDEN), ("has", presence.DEMANDED)):
        for row in table:
            where = {None: "", True: ", in layers", False: ", outside of layers"}[row.in_layers]
            which = f" along {' and '.join(f'`{axis}`' for axis in row.axes)}" if row.axes else ""
            of_all = " or ".join(f"`{role}`" for role in row.roles)
            rows.append(f"| {row.words} | {verb} | {of_all}{which}{where} |")
    return "\n".join(rows)


def main() -> None:
    """Measures and writes."""
    spawning = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=spawning) as processes:
        measured = list(processes.map(measure, MODELS))
    code = {
        id(getattr(module, name)): source
        for module in (foreign_models, foreign_stacks)
        for name, source in sources(module).items()
    }
    parts = [
        "## What an architecture says of a blueprint",
        "Where a blueprint contradicts its architecture, `check`, `expand` and `infer` refuse it. "
        "What is not in this table may be there or not: growth is the same.",
        presence_table(),
    ]
    for (name, model), cells in zip(MODELS.items(), measured, strict=True):
        comment, source = code[id(model)]
        parts += [
            f"## {name[0].upper()}{name[1:]}",
            comment,
            f"```python\n{blueprint(model.blueprint.rules)}\n```",
            inferred(model),
            f"Measured at {model.architecture.replace(num_layers=1)}:",
            errors(cells),
            f"The model:\n\n```python\n{source}\n```",
        ]
    output = Path(sys.argv[1])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
