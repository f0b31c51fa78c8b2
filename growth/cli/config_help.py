"""What `--help` says of configs: the presets, and every field with its default and what it is.

Fields are read from the source of their dataclasses: to import those takes seconds, for JAX comes
along.
"""

import ast
import dataclasses
import functools
import re
from pathlib import Path
from typing import NamedTuple

import docstring_parser
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from growth.cli import config_files

PACKAGE = Path(__file__).parents[1]
ROOT = "growth.training.config", "TrainConfig"


class _Class(NamedTuple):
    module: str
    definition: ast.ClassDef


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a config.

    Attributes:
      name: its name.
      default: the source text of its default; None where it must be given.
      about: the first sentence on it.
    """

    name: str
    default: str | None
    about: str


def sections() -> dict[str, tuple[Field, ...]]:
    """The fields of each section of a config; those of the config itself come first, under ""."""
    parts: dict[str, _Class] = {}
    root = _class(*ROOT)
    assert root is not None
    for statement in _statements(root):
        part = _class(root.module, ast.unparse(statement.annotation))
        if part is not None:
            parts[_name(statement)] = part
    own = tuple(field for field in _fields(root) if field.name not in parts)
    return {"": own} | {name: _fields(part) for name, part in parts.items()}


def show() -> None:
    """Prints the presets and the fields."""
    panels: dict[str, list[tuple[str, ...]]] = {
        "Presets": [
            (name, _first_line(config_files.path_of(name))) for name in config_files.presets()
        ]
    }
    for name, fields in sections().items():
        panels[f"--config.{name}.FIELD=VALUE" if name else "--config.FIELD=VALUE"] = [
            (field.name, "required" if field.default is None else field.default, field.about)
            for field in fields
        ]
    console = Console()
    for title, rows in panels.items():
        table = Table(box=None, show_header=False, pad_edge=False)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(Panel(table, title=title, title_align="left"), highlight=False)


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def _fields(part: _Class) -> tuple[Field, ...]:
    about = _about(part)
    return tuple(
        Field(
            _name(statement),
            None if statement.value is None else ast.unparse(statement.value),
            about.get(_name(statement), ""),
        )
        for statement in _statements(part)
    )


def _statements(part: _Class) -> list[ast.AnnAssign]:
    """The statements that define the fields of a dataclass, those of its bases first."""
    inherited = [statement for base in _bases(part) for statement in _statements(base)]
    return inherited + [node for node in part.definition.body if isinstance(node, ast.AnnAssign)]


def _about(part: _Class) -> dict[str, str]:
    """The first sentence on each field, of the docstring."""
    found: dict[str, str] = {}
    for base in _bases(part):
        found |= _about(base)
    text = ast.get_docstring(part.definition) or ""
    for entry in docstring_parser.parse(text, docstring_parser.DocstringStyle.GOOGLE).meta:
        if entry.args[0] == "attribute":
            sentence = re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join((entry.description or "").split()))
            found |= dict.fromkeys(re.split(r",\s*", entry.args[1]), sentence[0])
    return found


def _bases(part: _Class) -> list[_Class]:
    bases = [_class(part.module, ast.unparse(base)) for base in part.definition.bases]
    return [base for base in bases if base is not None]


def _name(statement: ast.AnnAssign) -> str:
    return ast.unparse(statement.target)


def _class(module: str, name: str) -> _Class | None:
    """The class of a name in a module, which may import it; None if it is none of this package."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _Class(module, node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("growth."):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _class(str(node.module), alias.name)
    return None


@functools.cache
def _tree(module: str) -> ast.Module:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))
