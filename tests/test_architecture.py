"""The house of docs/architecture.md: who may import whom, what stays light, what never stands in a file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "pocketfit"
MOST_LINES, MOST_FILES, DEEPEST, MOST_FIELDS = 400, 14, 3, 6
HEAVY = ("torch", "onnx", "onnxruntime", "ai_edge_litert", "litert_torch", "ai_edge_quantizer")
SUFFIXES = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".html", ".css", ".js", ".sh", ".cfg", ""}
# Put together here, so that this file does not contain what it looks for.
MACHINE_PATHS = re.compile("|".join(f"/{folder}/" for folder in ("work", "root", "home", r"tmp/w", "Users")))


@cache
def floors() -> dict[str, frozenset[str]]:
    """Folder or file of src/pocketfit -> those that it may import, from the table in docs/architecture.md."""
    allowed: dict[str, frozenset[str]] = {}
    above: list[str] = []
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| `") or len(cells) != 3:
            continue
        names = [name.removesuffix("/") for name in re.findall(r"`([\w/]+/|[\w/]+\.py)`", cells[0])]
        named = {name for name in above if name in re.findall(r"[\w/]+", cells[2])}
        if cells[2] == "nothing of pocketfit":
            named = set()
        known = frozenset(above if cells[2] == "the above" else named | {"core/errors.py", "core/support"} & set(above))
        for name in names:
            allowed[name] = known if cells[2] != "nothing of pocketfit" else frozenset()
        above += names
    return allowed


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of pocketfit."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, *, at_load: bool = False) -> set[str]:
    """Dotted names that a module imports: `from a import b` is "a.b" where that is a module, else "a".

    at_load: only what runs when the module is loaded (not inside functions, not under TYPE_CHECKING).
    """
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in _nodes(tree, at_load=at_load):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _base(name, node)
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in modules() else base for a in node.names}
    return found


def _base(name: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = name if modules()[name].name == "__init__.py" else name.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def _nodes(tree: ast.AST, *, at_load: bool) -> list[ast.AST]:
    if not at_load:
        return list(ast.walk(tree))
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        found += [node, *_nodes(node, at_load=True)]
    return found


def floor_of(name: str) -> str:
    """The row of the table that a dotted name belongs to: its file, or the deepest folder that has a row."""
    path = modules()[name].relative_to(PACKAGE)
    for place in (path, *path.parents):
        if place.as_posix() in floors():
            return place.as_posix()
    return ""


def test_the_table_is_read_and_names_every_folder() -> None:
    table = floors()
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} <= {name.split("/")[0] for name in table}
    nowhere = [
        name for name in modules() if not floor_of(name) and (modules()[name].name != "__init__.py" or imported(name))
    ]
    assert nowhere == [], "these are on no floor"
    assert table["zoo"] == frozenset() and table["core"] == {"core/errors.py", "core/support"}
    assert "passes/train" not in table["passes/prune"] and "passes/train" in table["passes/quantize"]
    assert "search/propose" not in table["search/decide"] and "search/decide" in table["search/propose"]
    assert table["cli"] == set(table) - {"cli", "__init__.py", "__main__.py"}


@pytest.mark.parametrize("name", sorted(name for name in modules() if floor_of(name)))
def test_nothing_imports_upward(name: str) -> None:
    floor = floor_of(name)
    may = floors()[floor] | {floor}
    targets = {target for target in imported(name) if target.split(".")[0] == "pocketfit" and target in modules()}
    wrong = {target for target in targets if floor_of(target) not in may and target != "pocketfit"}
    assert not wrong, f"{name} imports {sorted(wrong)}; {floor} may import {sorted(may)}"
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "pocketfit":
            known = {target.removeprefix("pocketfit.") for target in modules()}
            public = {alias.name for alias in node.names} - known
            assert public <= {"__version__"}, f"{name} imports {sorted(public)} from the public face, above it"


def test_the_house_stays_small() -> None:
    """At most 400 lines a file, 14 files a folder, three folders deep."""
    long = [f"{path}" for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > MOST_LINES]
    assert not long, f"more than {MOST_LINES} lines: {long}"
    folders = [
        folder for folder in ROOT.rglob("*/") if folder.parts[len(ROOT.parts)] in ("src", "tests", "benchmarks", "docs")
    ]
    wide = [folder for folder in folders if sum(path.is_file() for path in folder.iterdir()) > MOST_FILES]
    assert not wide, f"more than {MOST_FILES} files: {wide}"
    deep = [path for path in PACKAGE.rglob("*.py") if len(path.relative_to(PACKAGE).parts) > DEEPEST + 1]
    assert not deep, f"more than {DEEPEST} folders deep: {deep}"


def wide_positional_records(tree: ast.AST) -> list[str]:
    """Names of the frozen dataclasses with more than MOST_FIELDS fields that can be built by position."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        fields = [line for line in node.body if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.dump(line)]
        said = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
        if "dataclass" in said and "frozen=True" in said and "kw_only" not in said and len(fields) > MOST_FIELDS:
            found.append(node.name)
    return found


def test_wide_records_are_built_by_keyword() -> None:
    """Two swapped numbers pass every type check. Settings of a plan are what users write: `Prune(0.5)`."""
    found = [
        f"{path.name}: {name}"
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE / "core" / "plan"
        for name in wide_positional_records(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, f"records of more than {MOST_FIELDS} fields without kw_only=True: {found}"


def test_there_are_no_circles() -> None:
    """Between modules, imports inside functions included."""
    graph = {}
    for name in modules():
        targets = {target for target in imported(name) if target in modules()}
        graph[name] = targets - {name, "pocketfit"}  # `from pocketfit import __version__` loads nothing more
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("modules import each other in a circle: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize("name", sorted(name for name in modules() if name.startswith("pocketfit.core")))
def test_core_needs_numpy_and_the_standard_library_only(name: str) -> None:
    roots = {target.split(".")[0] for target in imported(name)}
    assert roots <= {"numpy", "pocketfit", *sys.stdlib_module_names}


@pytest.mark.parametrize("folder", ["core", "numerics", "search", "report", "bundle", "cli"])
def test_light_floors_never_load_torch_or_a_runtime(folder: str) -> None:
    for name in modules():
        if name.startswith(f"pocketfit.{folder}"):
            roots = {target.split(".")[0] for target in imported(name, at_load=True)}
            assert not roots & set(HEAVY), f"{name} loads {sorted(roots & set(HEAVY))}"


def loaded_by(code: str) -> set[str]:
    """Which of the heavy packages a fresh Python has loaded after `code`."""
    shown = f"import sys\n{code}\nprint('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_pocketfit_is_light() -> None:
    assert loaded_by("import pocketfit") == set()


def test_help_is_light() -> None:
    assert loaded_by("import pocketfit.cli.main") == set()
    code = "import pocketfit.cli.main as m\ntry: m.main(['--help'])\nexcept SystemExit as end: assert not end.code"
    assert loaded_by(code) == set()


def test_functions_that_are_named_in_texts_are_there() -> None:
    """Children are started by name, "module:function": a move that forgets one would be found by a user."""
    named = re.compile(r"(pocketfit(?:\.\w+)+):(\w+)")
    for path in modules().values():
        for module, function in named.findall(path.read_text(encoding="utf-8")):
            tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (path, module)


def tracked_files() -> list[Path]:
    """What a clone gets; in an unpacked archive without git, all files but those of tools."""
    if (ROOT / ".git").exists():
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [p for p in ROOT.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.parts)]


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    found = []
    for path in tracked_files():
        if path.suffix.lower() in SUFFIXES:
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                if MACHINE_PATHS.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_a_wide_record_is_seen() -> None:
    fields = "".join(f"    f{number}: int\n" for number in range(MOST_FIELDS + 1))
    assert wide_positional_records(ast.parse(f"@dataclass(frozen=True)\nclass Wide:\n{fields}")) == ["Wide"]
    assert not wide_positional_records(ast.parse(f"@dataclass(frozen=True, kw_only=True)\nclass Wide:\n{fields}"))


def test_the_import_rules_are_seen() -> None:
    """The checks above are worth nothing if `imported` overlooks a form of import."""
    name = "pocketfit.core.plan.plan"
    assert "pocketfit.core.errors" in imported(name)
    assert "pocketfit.core.model" in imported("pocketfit.core.runtime")
    outer = ast.parse(
        "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    import c\ntry:\n    import d\nfinally: ..."
    )
    names = [alias.name for n in _nodes(outer, at_load=True) if isinstance(n, ast.Import) for alias in n.names]
    assert names == ["a", "d"]
