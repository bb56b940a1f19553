# SPDX-License-Identifier: Apache-2.0
"""The house rules, read from the sources without importing them.

A rule is a function from the root of a checkout to the list of its violations. Every rule is run on this checkout,
where the list must be empty, and on a planted violation, which it must find.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "aapt_fast"
MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 450
MAX_ENVIRONMENT_VARIABLES = 6

# Room -> rooms it may import. A room is a folder or a module directly in the package; its own room is always allowed.
# `testing` is in no list but its own: only tests/ and bench/ use it. The compiled module `_C` belongs to ops.
ARROWS = {
    "errors": set(),
    "atomic": {"errors"},  # files that appear whole or not at all
    "limits": {"errors", "atomic"},  # memory and disk
    "not_copied": set(),  # refuses copy and pickle
    "progress": set(),  # bars and messages on stderr
    "ops": {"errors", "atomic", "_C"},
    "media": {"errors", "atomic", "limits"},  # pictures and videos in files
    "models": {"errors", "atomic", "limits", "ops", "media", "worlds"},
    "streaming": {"errors", "atomic", "limits", "not_copied", "ops", "models", "worlds"},
    "serve": {"errors", "media", "models", "streaming", "distributed", "worlds"},  # browsers and programs
    "distributed": {"errors", "limits", "ops", "models", "streaming", "profiling"},  # one model on several devices
    "training": {"errors", "atomic", "limits", "progress", "ops", "models", "streaming", "distributed", "worlds"},
    "integrations": {"errors", "ops", "media", "models", "streaming", "worlds"},
    "compat": {"errors", "ops", "models", "streaming"},
    "worlds": {"errors", "limits", "not_copied", "media"},
    "verification": {"errors", "limits", "ops", "models", "streaming", "profiling"},  # holds kernels against torch
    # measures them; `aapt-fast bench` and bench/ share it
    "profiling": {"errors", "atomic", "ops", "models", "streaming"},
}
LIBRARY = set(ARROWS)
MAY_IMPORT = {
    **ARROWS,
    "__init__": LIBRARY,
    "cli": LIBRARY | {"__init__"},
    "__main__": {"cli"},
    "testing": LIBRARY | {"__init__"},
}
DOCUMENTED_ROOMS = {"ops", "models", "streaming", "distributed", "worlds", "media"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One parsed file of the package; `parts` are the names between the package and the file, `__init__` included."""

    where: str
    parts: tuple[str, ...]
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.parts[0]


def modules(root: Path) -> Iterator[Module]:
    package = root / "python" / PACKAGE
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        yield Module(str(path.relative_to(root)), parts, parsed(path.read_text(), str(path)))


@functools.cache
def parsed(source: str, file: str) -> ast.Module:
    """The tree of a source, parsed once for all rules, which only read it."""
    return ast.parse(source, file)


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


# ---- imports ----


def imported_names(module: Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands; relative ones resolved, import_module("x") too."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = (PACKAGE, *module.parts)[: -node.level]
                base = ".".join([*above, *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def room_of(dotted: str) -> str | None:
    """The room a dotted name of the package lies in; None for other packages, `__init__` for names of the root."""
    head, *rest = dotted.split(".")
    if head != PACKAGE:
        return None
    return rest[0] if rest and (rest[0] in MAY_IMPORT or rest[0] == "_C") else "__init__"


def imports_follow_the_arrows(root: Path) -> list[str]:
    found = []
    for module in modules(root):
        if module.room not in MAY_IMPORT:
            found.append(f"{module.where}: {module.room} is not a room of MAY_IMPORT")
            continue
        for line, name in imported_names(module):
            room = room_of(name)
            if room not in {None, module.room} | MAY_IMPORT[module.room]:
                found.append(f"{module.where}:{line}: {module.room} must not import {name}")
    return found


def no_cycles_inside_rooms(root: Path) -> list[str]:
    """Imports inside one room, those under TYPE_CHECKING included, that lead back to where they began."""
    every = {".".join((PACKAGE, *module.parts)).removesuffix(".__init__"): module for module in modules(root)}
    imports: dict[str, set[str]] = {}
    for name, module in every.items():
        targets = (target for _, dotted in imported_names(module) if (target := _deepest(dotted, every)))
        imports[name] = {target for target in targets if target != name and every[target].room == module.room}
    found, done = [], set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            found.append(" -> ".join((*path[path.index(name) :], name)))
        elif name not in done:
            for target in sorted(imports[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(imports):
        visit(name, ())
    return found


def _deepest(dotted: str, every: dict[str, Module]) -> str | None:
    """The module that a dotted name is, or lies in."""
    while dotted and dotted not in every:
        dotted = dotted.rpartition(".")[0]
    return dotted or None


# ---- csrc ----


def csrc_code(root: Path) -> Iterator[tuple[str, str]]:
    """(file, source without comments) of csrc/."""
    for path in sorted((root / "csrc").rglob("*")):
        if path.is_file():
            source = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.DOTALL)
            yield str(path.relative_to(root)), source


def csrc_knows_no_torch(root: Path) -> list[str]:
    include = re.compile(r"#\s*include\s*[<\"](torch|ATen|c10)/")
    return [f"{where}: includes {match[1]}/" for where, code in csrc_code(root) for match in include.finditer(code)]


def csrc_never_ends_the_process(root: Path) -> list[str]:
    ending = re.compile(r"\b(_?exit|_Exit|quick_exit|abort|terminate)\s*\(")
    return [f"{where}: calls {match[1]}" for where, code in csrc_code(root) for match in ending.finditer(code)]


# ---- state and size ----


def no_global_statement(root: Path) -> list[str]:
    return [
        f"{module.where}:{node.lineno}: global {', '.join(node.names)}"
        for module in modules(root)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Global)
    ]


def environment_reads(tree: ast.AST) -> Iterator[str]:
    """Names of environment variables read; a name that is not a literal is given as its source."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            reads, name = ast.unparse(node.value).endswith("environ"), node.slice
        elif isinstance(node, ast.Call) and node.args:
            reads, name = bool(re.search(r"environ\.\w+$|getenv$", ast.unparse(node.func))), node.args[0]
        elif isinstance(node, ast.Compare):
            reads, name = ast.unparse(node.comparators[0]).endswith("environ"), node.left
        else:
            continue
        if reads:
            yield str(name.value) if isinstance(name, ast.Constant) else ast.unparse(name)


def few_environment_variables(root: Path) -> list[str]:
    read = sorted({name for module in modules(root) for name in environment_reads(module.tree)})
    return [f"{len(read)} are read: {', '.join(read)}"] if len(read) > MAX_ENVIRONMENT_VARIABLES else []


def short_functions(root: Path) -> list[str]:
    return [
        f"{module.where}:{function.lineno}: {function.name} has {length} lines"
        for module in modules(root)
        for function in functions(module.tree)
        if (length := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    ]


def short_files(root: Path) -> list[str]:
    suffixes = {".py", ".pyi", ".cpp", ".h", ".cu", ".cuh"}
    paths = [path for folder in ("python", "csrc", "tests", "bench") for path in sorted((root / folder).rglob("*"))]
    return [
        f"{path.relative_to(root)}: {length} lines"
        for path in paths
        if path.suffix in suffixes and (length := len(path.read_text().splitlines())) > MAX_FILE_LINES
    ]


# ---- docstrings ----


def public_api(module: Module) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """(dotted name, definition) of the public functions, classes and methods of a module whose own name is public."""
    if module.parts[-1].startswith("_") and module.parts[-1] != "__init__":
        return
    for node in module.tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            for member in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(member, Function) and not member.name.startswith("_") and not shares_docstring(member):
                    yield f"{node.name}.{member.name}", member


def shares_docstring(method: Function) -> bool:
    """Setters and overload signatures are documented by the definition they belong to."""
    return any(ast.unparse(decorator).split(".")[-1] in {"setter", "overload"} for decorator in method.decorator_list)


def constructor(node: Function | ast.ClassDef) -> Function | None:
    """What a call of `node` runs: a function itself, a class its own `__init__`."""
    if isinstance(node, Function):
        return node
    return next((member for member in node.body if isinstance(member, Function) and member.name == "__init__"), None)


def takes_tensor(node: Function | ast.ClassDef) -> bool:
    function = constructor(node)
    if function is None:
        return False
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    annotations = [ast.unparse(argument.annotation) for argument in every if argument and argument.annotation]
    return any(re.search(r"\bTensor\b", annotation) for annotation in annotations)


def has_shape(docstring: str) -> bool:
    """True when brackets hold a shape: `[B, N, H, D]`, `[..., 3]`, `[4 * F]`, `[...]`; `[1]` is a reference."""
    dimension = r"(?:\.\.\.|[\w ()*+/=\-']+)"
    shapes = re.findall(rf"\[\s*{dimension}(?:,\s*{dimension})*\s*\]", docstring)
    return any(re.search(r"[A-Za-z,]|\.\.\.", shape) for shape in shapes)


def public_names_are_documented(root: Path) -> list[str]:
    return [
        f"{module.where}:{node.lineno}: {name} has no docstring"
        for module in modules(root)
        if module.room in DOCUMENTED_ROOMS
        for name, node in public_api(module)
        if not ast.get_docstring(node)
    ]


def tensor_docstrings_give_shapes(root: Path) -> list[str]:
    return [
        f"{module.where}:{node.lineno}: {name} takes a tensor, its docstring gives no shape like [B, N, H, D]"
        for module in modules(root)
        if module.room in DOCUMENTED_ROOMS
        for name, node in public_api(module)
        if takes_tensor(node) and not has_shape(ast.get_docstring(node) or "")
    ]


# ---- the rules, here and on planted violations ----

Rule = Callable[[Path], list[str]]

# rule -> (file, source) pairs that each break it
TENSOR_FUNCTION = "import torch\n\ndef norm(x: torch.Tensor) -> torch.Tensor:\n    "
PLANTED: dict[Rule, list[tuple[str, str]]] = {
    imports_follow_the_arrows: [
        ("python/aapt_fast/ops/attention.py", "import aapt_fast.models.aapt.config"),
        ("python/aapt_fast/ops/attention.py", "from ..models import config"),
        ("python/aapt_fast/ops/attention.py", "from .. import models"),
        ("python/aapt_fast/ops/__init__.py", "from ..streaming.pages import Pool"),
        ("python/aapt_fast/ops/attention.py", "from aapt_fast import StreamSession"),
        ("python/aapt_fast/errors.py", "from . import ops"),
        ("python/aapt_fast/models/vae.py", "def f():\n    from aapt_fast.streaming import pages"),
        ("python/aapt_fast/models/vae.py", "from importlib import import_module\nimport_module('aapt_fast._C')"),
        ("python/aapt_fast/streaming/session.py", "from aapt_fast.testing import compare"),
        ("python/aapt_fast/worlds/rooms.py", "from aapt_fast.ops import reference"),
        ("python/aapt_fast/training/data.py", "from aapt_fast import cli"),
        ("python/aapt_fast/streaming/session.py", "from aapt_fast.profiling import timing"),
        ("python/aapt_fast/profiling/frame.py", "from aapt_fast.testing import streams"),
        ("python/aapt_fast/verification/case.py", "from aapt_fast.testing import compare"),
        ("python/aapt_fast/verification/case.py", "from aapt_fast.integrations import patch"),
        ("python/aapt_fast/ops/kernels.py", "from aapt_fast.verification import cases"),
        ("python/aapt_fast/cli.py", "from .testing import timing"),
        ("python/aapt_fast/__init__.py", "from .cli import main"),
        ("python/aapt_fast/attic.py", ""),
    ],
    csrc_knows_no_torch: [
        ("csrc/gate/kernel.cu", "#include <torch/extension.h>"),
        ("csrc/a.h", '# include "ATen/ATen.h"'),
    ],
    csrc_never_ends_the_process: [
        ("csrc/a.h", "void f() { std::exit(1); }"),
        ("csrc/a.cu", "void f() { abort (); }"),
    ],
    no_global_statement: [("python/aapt_fast/ops/a.py", "x = 0\n\ndef f():\n    global x\n    x = 1")],
    few_environment_variables: [
        (
            "python/aapt_fast/cli.py",
            "import os\nos.environ['A'], os.environ.get('B'), os.getenv('C'), 'D' in os.environ\n"
            "os.environ.setdefault('E', ''), os.environ[name], os.getenv('G')",
        )
    ],
    short_functions: [("python/aapt_fast/ops/a.py", "def f():\n" + "    pass\n" * MAX_FUNCTION_LINES)],
    short_files: [
        ("csrc/a.cu", "\n" * (MAX_FILE_LINES + 1)),
        ("python/aapt_fast/cli.py", "\n" * (MAX_FILE_LINES + 1)),
        ("tests/test_a.py", "\n" * (MAX_FILE_LINES + 1)),
    ],
    public_names_are_documented: [
        ("python/aapt_fast/ops/a.py", "def f(): pass"),
        ("python/aapt_fast/models/a.py", "class A: pass"),
        ("python/aapt_fast/worlds/a.py", 'class A:\n    """A."""\n    def f(self): pass'),
        ("python/aapt_fast/streaming/__init__.py", "async def f(): pass"),
    ],
    tensor_docstrings_give_shapes: [
        ("python/aapt_fast/ops/a.py", TENSOR_FUNCTION + '"""Normalises x, see [1]."""'),
        ("python/aapt_fast/ops/a.py", TENSOR_FUNCTION.replace("torch.Tensor)", "Tensor | None = None)") + "pass"),
        ("python/aapt_fast/models/a.py", 'class A:\n    def f(self, *, x: "torch.Tensor"):\n        """Does f."""'),
        ("python/aapt_fast/worlds/a.py", 'class A:\n    """A."""\n    def __init__(self, x: torch.Tensor): pass'),
    ],
}

HARMLESS = {
    "python/aapt_fast/__init__.py": "from .streaming import StreamSession\nfrom .errors import require",
    "python/aapt_fast/cli.py": "import aapt_fast\nfrom .worlds import rooms\nimport torch",
    "python/aapt_fast/ops/_load.py": "import importlib\nimportlib.import_module('aapt_fast._C')\ndef f(): pass",
    "python/aapt_fast/ops/a.py": "from . import b\nfrom .. import errors\nimport os\nos.environ['SET_ONLY'] = '1'\n"
    + TENSOR_FUNCTION
    + '"""Normalises x [B, N, D]."""\n\ndef _private(x: torch.Tensor): pass',
    "python/aapt_fast/testing/cases.py": "from aapt_fast.verification import compare",
    "csrc/a.h": "#include <string>  // never torch/extension.h, never exit(1)\nvoid on_exit_do(); /* abort() */",
}


def plant(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


RULES = pytest.mark.parametrize("rule", PLANTED, ids=lambda rule: rule.__name__)


@RULES
def test_rule_holds(rule):
    found = rule(REPOSITORY)
    assert not found, f"{rule.__name__}:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "file", "source"),
    [
        pytest.param(rule, *case, id=f"{rule.__name__}-{number}")
        for rule, cases in PLANTED.items()
        for number, case in enumerate(cases)
    ],
)
def test_rule_finds_a_planted_violation(tmp_path, rule, file, source):
    plant(tmp_path, {file: source})
    assert len(rule(tmp_path)) == 1


@RULES
def test_rule_accepts_harmless_code(tmp_path, rule):
    plant(tmp_path, HARMLESS)
    assert rule(tmp_path) == []


def test_the_rules_see_this_checkout():
    assert {module.room for module in modules(REPOSITORY)} >= {"__init__", "errors", "ops", "models", "worlds"}
    assert "csrc/bindings.cpp" in dict(csrc_code(REPOSITORY))


# ---- rules about several files ----


def test_no_room_has_a_cycle():
    found = no_cycles_inside_rooms(REPOSITORY)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "files",
    [
        {"models/a.py": "from aapt_fast.models.b import B", "models/b.py": "from aapt_fast.models import a"},
        {
            "models/wan/a.py": "from aapt_fast.models.vae.b import B",
            "models/vae/b.py": "import typing\nif typing.TYPE_CHECKING:\n    from aapt_fast.models.wan.a import A",
        },
        {"ops/__init__.py": "from aapt_fast.ops.a import f", "ops/a.py": "from aapt_fast.ops import other"},
        {"ops/a.py": "from .b import x", "ops/b.py": "from .c import x", "ops/c.py": "def f():\n    from .a import x"},
    ],
    ids=["two", "type checking", "package", "three"],
)
def test_a_planted_cycle_is_found_once(tmp_path, files):
    plant(tmp_path, {f"python/aapt_fast/{name}": source for name, source in files.items()})
    assert len(no_cycles_inside_rooms(tmp_path)) == 1


def test_imports_in_one_direction_are_no_cycle(tmp_path):
    sources = {"models/a.py": "from aapt_fast.models.b import B", "models/b.py": "from aapt_fast.ops import a"}
    plant(tmp_path, {f"python/aapt_fast/{name}": source for name, source in sources.items()})
    assert no_cycles_inside_rooms(tmp_path) == []


def test_every_room_of_the_list_exists():
    package = REPOSITORY / "python" / PACKAGE
    there = {path.stem for path in package.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert set(MAY_IMPORT) <= there
