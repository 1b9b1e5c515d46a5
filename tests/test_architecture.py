"""The rules of the house, read from the source: nobody has to remember them."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "thaw").rglob("*.py"))
# A package or module may import everything before it in this list, and nothing after it (docs/design.md).
LAYERS = [
    *(
        "_namespace",
        "_keras",
        "_validation",
        "_files",
        "plan",
        "metrics",
        "tasks",
        "targets",
        "data",
        "models",
        "features",
        "transfer",
    ),
    *("training", "retention", "checks", "finetune", "advice", "runs", "estimators", "workflow", "cli"),
]
PRINTING = ("thaw.cli",)
# They subclass classes of Keras, or are reached through nothing but these.
KERAS_AT_IMPORT = {"thaw.finetune", "thaw.advice.lr_range"}
KERAS_AT_IMPORT |= {"thaw.retention.distillation", "thaw.retention.epoch_soup"}
KERAS_AT_IMPORT |= {
    f"thaw.training.{name}" for name in ("callbacks", "checkpoint", "history", "optimizers", "progress")
}
FORBIDDEN_NAMES = re.compile(r"utils?|helpers?|common|managers?|base|misc")
NETWORK = {"aiohttp", "ftplib", "http", "httpx", "requests", "smtplib", "socket", "urllib", "urllib3"}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
SOURCES = {module_of(path): path for path in FILES}
EVERY = pytest.mark.parametrize("module", TREES)


def imports_of(tree):
    """Dotted names that a tree imports, anywhere in it; ``from thaw import x`` counts as the home of ``x``."""
    homes = public_homes()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import in full, from thaw on"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in TREES:
                    yield full
                elif node.module == "thaw":
                    yield homes.get(alias.name, "thaw")
                elif alias.name in NAMESPACES.get(node.module, ()):
                    yield NAMESPACES[node.module][alias.name]
                else:
                    yield node.module


@functools.cache
def public_homes():
    for node in TREES["thaw"].body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_MODULES":
            return ast.literal_eval(node.value)
    raise AssertionError("thaw/__init__.py has no table _MODULES")


def below(module, of):
    return module == of or module.startswith(of + ".")


def public_definitions(tree):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def words(name):
    return {word.lower().rstrip("s") for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)}


@EVERY
def test_imports_point_one_way(module):
    if module in ("thaw", "thaw.__main__"):
        return
    place = LAYERS.index(module.split(".")[1])
    for name in imports_of(TREES[module]):
        if below(name, "thaw") and name != "thaw":
            layer = name.split(".")[1]
            assert LAYERS.index(layer) <= place, f"{module} imports {name}, which stands after it in LAYERS"


def test_imports_have_no_cycle():
    graph = {m: {n for n in imports_of(t) if n in TREES and n not in (m, "thaw")} for m, t in TREES.items()}
    done = set()

    def visit(module, path):
        assert module not in path, f"a circle of imports: {' -> '.join([*path, module])}"
        if module not in done:
            for name in graph[module]:
                visit(name, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])


@EVERY
def test_a_file_can_be_read_in_one_go(module):
    lines = len(SOURCES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= 500, f"{SOURCES[module]} has {lines} lines; 500 at most"


@EVERY
def test_a_name_says_what_is_inside(module):
    assert not FORBIDDEN_NAMES.fullmatch(module.split(".")[-1]), f"{module}: name the file after what it holds"


@EVERY
def test_everything_public_has_a_docstring(module):
    assert ast.get_docstring(TREES[module]), f"{module} does not say what it is for"
    for node in public_definitions(TREES[module]):
        assert ast.get_docstring(node), f"{module}.{node.name} does not say what it is for"


@pytest.mark.parametrize("name", public_homes())
def test_the_public_surface_is_explained(name):
    tree = TREES[public_homes()[name]]
    node = next((n for n in public_definitions(tree) if n.name == name), None)
    assert node is not None, f"{public_homes()[name]} does not define {name}"
    text = ast.get_docstring(node) or ""
    assert "Example:" in text, f"{name} has no Example:"
    assert ">>> " in text, f"the example of {name} is not run"
    if isinstance(node, ast.FunctionDef):
        a = node.args
        if a.posonlyargs or a.args or a.kwonlyargs:
            assert "Args:" in text, f"{name} does not explain its arguments"
            for argument in (*a.posonlyargs, *a.args, *a.kwonlyargs):
                assert re.search(rf"^ +.*\b{argument.arg}\b.*:", text, re.M), f"{name}: {argument.arg}?"
        gives = any(isinstance(n, (ast.Return, ast.Yield)) and n.value is not None for n in ast.walk(node))
        assert not gives or re.search("^(Returns|Yields):", text, re.M), f"{name} does not say what it returns"
        raises = any(isinstance(n, ast.Raise) and n.exc is not None for n in ast.walk(node))
        assert not raises or "Raises:" in text, f"{name} raises and does not say so"


@EVERY
def test_packages_export_lazily_or_nothing(module):
    """A package holds a docstring, and perhaps the table of the names that it exports; no name hides a module."""
    path = SOURCES[module]
    if path.name != "__init__.py" or module == "thaw":
        return
    body = TREES[module].body
    assert len(body) in (1, 3), f"{path} has code; there is one kind of export, thaw._namespace.namespace"
    for name in exports_of(TREES[module]):
        assert f"{module}.{name}" not in TREES, f"{module}.{name} is a module and a function"


def exports_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "namespace" and isinstance(node.args[1], ast.Dict):
            return ast.literal_eval(node.args[1])
    return {}


NAMESPACES = {m: exports_of(t) for m, t in TREES.items() if exports_of(t)}


@pytest.mark.parametrize(("package", "name"), [(p, n) for p, names in NAMESPACES.items() for n in names])
def test_the_namespaces_are_explained(package, name):
    home = NAMESPACES[package][name]
    node = next((n for n in public_definitions(TREES[home]) if n.name == name), None)
    assert node is not None, f"{home} does not define {name}"
    assert ">>> " in (ast.get_docstring(node) or ""), f"the example of {name} is missing"


@EVERY
def test_libraries_do_not_print(module):
    if any(below(module, outer) for outer in PRINTING):
        return
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "input"), f"{module}, line {node.lineno}: print in a library"


@EVERY
def test_no_pickle_no_network_nothing_private_of_keras(module):
    for name in imports_of(TREES[module]):
        assert name.split(".")[0] not in NETWORK, f"{module} imports {name}: nothing here needs a network"
        assert not below(name, "keras.src"), f"{module} imports {name}: only Keras' public API"
    for node in ast.walk(TREES[module]):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        called = ast.unparse(node.func)
        at = f"{module}, line {node.lineno}"
        assert called not in ("pickle.load", "pickle.loads", "joblib.load"), f"{at}: a pickle runs code"
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", "False") == "False", f"{at}: a pickle runs code"
        if called.endswith("load_model"):
            assert given.get("safe_mode") == "True", f"{at}: write safe_mode=True"
            # Only a check of how a model was compiled needs it compiled.
            assert module == "thaw.workflow" or given.get("compile") == "False", f"{at}: write compile=False"


@EVERY
def test_private_attributes_of_keras_are_used_in_one_file(module):
    """What begins with an underscore belongs to the class that has it: its own methods, or a class of this file."""
    if module == "thaw._keras":
        return
    tree = TREES[module]
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    for node in ast.walk(tree):
        name = None
        if isinstance(node, ast.Attribute):
            name = node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
        if name is None or not name.startswith("_") or name.startswith("__") or name in own | methods_of_thaw():
            continue
        raise AssertionError(f"{module}, line {node.lineno}: {name} is private; use thaw/_keras.py")


@functools.cache
def methods_of_thaw():
    return set().union(*map(methods, TREES.values()))


def methods(tree):
    """Names that classes of a tree define or set on themselves."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    inside = [node for c in classes for node in ast.walk(c)]
    names = {n.name for n in inside if isinstance(n, ast.FunctionDef)}
    return names | {n.attr for n in inside if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self"}


@EVERY
def test_a_plain_model_is_never_subclassed(module):
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(b).split(".")[-1] for b in node.bases}
            wrong = bases & {"Model", "Sequential", "Functional"}
            assert not wrong, f"{module}.{node.name} subclasses {', '.join(wrong)}"


@EVERY
def test_keras_is_imported_where_it_is_used(module):
    """``import keras`` takes seconds; a callback has to subclass one of its classes, so those files may."""
    if module in KERAS_AT_IMPORT:
        return
    for node in TREES[module].body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            heavy = {name.split(".")[0] for name in imports_of(ast.Module([node], []))} & {"keras", "tensorflow"}
            assert not heavy, f"{module}, line {node.lineno}: import {', '.join(heavy)} inside the function"


@pytest.mark.parametrize(
    "code",
    [
        "import thaw",
        "import thaw; thaw.Plan, thaw.Phase",
        "import thaw.cli.main",
        "from thaw.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
    ids=["import thaw", "thaw.Plan", "import thaw.cli.main", "thaw --help"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    code += "\nimport sys; print([m for m in ('keras', 'tensorflow', 'sklearn', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_all_is_the_truth():
    import thaw

    assert thaw.__all__ == sorted(public_homes())
    assert set(thaw.__all__) <= set(dir(thaw))
    for name in thaw.__all__:
        thing = getattr(thaw, name)
        assert callable(thing), name
        assert thing.__module__ == public_homes()[name], name
    with pytest.raises(AttributeError, match="module 'thaw' has no attribute 'nothing'"):
        thaw.nothing  # noqa: B018


def test_the_version_is_that_of_the_installation():
    import importlib.metadata

    import thaw

    try:
        installed = importlib.metadata.version("keras-thaw")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("thaw is not installed; run scripts/setup")
    assert installed == thaw.__version__


def names_from_thaw(tree):
    """Names in a test file that stand for a module, class or function of thaw."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name for alias in node.names if below(alias.name.split(".")[0], "thaw")}
        elif isinstance(node, ast.ImportFrom) and below(node.module or "", "thaw"):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign) and any(
            isinstance(part, ast.Constant) and isinstance(part.value, str) and below(part.value, "thaw")
            for part in ast.walk(node.value)
        ):  # module = importlib.import_module("thaw.x")
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_test_replaces_a_name_inside_thaw(path):
    """A test of behaviour holds when the code is written another way; one that replaces names does not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ours = names_from_thaw(tree)
    replaced = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            target = node.targets[0].value  # module.NAME = value
            if not isinstance(target, ast.Name):
                continue
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if called not in ("setattr", "setitem", "patch", "object"):
                continue
            target = node.args[0]
        else:
            continue
        if isinstance(target, ast.Constant):
            inside = below(str(target.value), "thaw")
        else:
            inside = bool(ours & {part.id for part in ast.walk(target) if isinstance(part, ast.Name)})
        if inside:
            replaced.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    assert not replaced, "\n".join(replaced)


def test_the_table_of_commands_names_every_command_and_functions_that_exist():
    import typer

    import thaw
    from thaw.cli.main import app

    table = (ROOT / "docs/guides/command-line.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `thaw ([\w-]+)` \|.*\| (.+) \|$", table, re.M)
    assert [name for name, _ in rows] == list(typer.main.get_command(app).commands)
    for _, functions in rows:
        names = re.findall(r"`thaw\.([\w.()]+)`", functions)
        assert names
        for dotted in names:
            found = thaw
            for part in dotted.replace("open_run(run)", "Run").split("."):
                found = getattr(found, part)
            assert callable(found)
