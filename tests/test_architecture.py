"""The rules of the house, read from the source: nobody has to remember them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "thaw").rglob("*.py"))
FOLDERS = ("backbones", "data", "tuning", "measuring", "shipping")
# What every folder may import: the nouns, numbers, what a classifier's output means, how sure a share of examples is.
SHARED = {"thaw", "thaw.examples", "thaw.forward", "thaw.number", "thaw.plan", "thaw.stages"}
SHARED |= {"thaw.probabilities", "thaw.share"}
# The files that may use their siblings, because putting them together is what they are for.
COMPOSERS = {
    "thaw.backbones": {"backbone"},
    "thaw.data": {"images"},
    "thaw.measuring": {"evaluate", "rank"},
    "thaw.shipping": {"run_folder"},
    "thaw.tuning": {"tune", "precompute", "keep", "split", "dry_run", "interpolate", "greedy_average", "rescue"},
}
# The command line: commands in files of their own, which thaw.cli puts together.
CLI = {"thaw.cli", "thaw.cli_measuring", "thaw.cli_options", "thaw.cli_tuning", "thaw.printing"}
OUTSIDE = {
    *CLI,
    "thaw.__main__",
    "thaw.progress",
    "thaw.jobs",
    "thaw.advising",
}  # they know everything; nobody knows them
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
                else:
                    yield node.module


def public_homes():
    for node in TREES["thaw"].body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "_HOME":
            return ast.literal_eval(node.value)
    raise AssertionError("thaw/__init__.py has no table _HOME")


def below(module, of):
    return module == of or module.startswith(of + ".")


def public_definitions(tree):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def words(name):
    return {word.lower().rstrip("s") for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)}


@EVERY
def test_imports_point_one_way(module):
    inside = [name for name in imports_of(TREES[module]) if below(name, "thaw")]
    if any(below(module, outer) for outer in OUTSIDE) or module == "thaw":
        closed = {"thaw.__main__"} if module in CLI | {"thaw.__main__"} else CLI | {"thaw.__main__"}
        if below(module, "thaw.advising"):
            closed |= {name for name in inside if below(name, "thaw.jobs")}  # a job asks for advice, not the other way
        wrong = [name for name in inside if name in closed]
    else:
        folder = ".".join(module.split(".")[:2])
        allowed = SHARED if folder.split(".")[-1] in FOLDERS else SHARED - {"thaw"}
        wrong = [name for name in inside if name not in allowed and not below(name, folder)]
    assert not wrong, f"{module} imports {', '.join(wrong)}; only {', '.join(sorted(SHARED))} are open to it"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_sibling_is_imported_by_few(folder):
    """Inside a folder the composer uses its siblings; anything else makes a chain at most one long."""
    package = f"thaw.{folder}"
    for module, tree in TREES.items():
        if not below(module, package) or module.split(".")[-1] in COMPOSERS[package]:
            continue
        siblings = {name for name in imports_of(tree) if below(name, package)} - {module}
        for sibling in siblings:
            deeper = {name for name in imports_of(TREES[sibling]) if below(name, package)} - {sibling}
            assert not deeper, f"{module} -> {sibling} -> {', '.join(deeper)}: only a composer may build on that"


@EVERY
def test_a_file_can_be_read_in_one_go(module):
    lines = len(SOURCES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{SOURCES[module]} has {lines} lines; 400 at most"


@EVERY
def test_a_name_says_what_is_inside(module):
    assert not FORBIDDEN_NAMES.fullmatch(module.split(".")[-1]), f"{module}: name the file after what it holds"


@EVERY
def test_a_file_holds_what_it_is_named_after(module):
    if SOURCES[module].name.startswith("__") or module.startswith("thaw.cli"):
        return
    name = module.split(".")[-1]
    public = [node.name for node in public_definitions(TREES[module])]
    own = {word for definition in public for word in words(definition)}
    close = [word for word in words(name) if any(word.startswith(o) or o.startswith(word) for o in own)]
    assert close, f"{module} holds {', '.join(public) or 'nothing public'}; name one after the other"


@EVERY
def test_public_functions_have_at_most_seven_arguments(module):
    if module.startswith("thaw.cli"):
        return
    for node in public_definitions(TREES[module]):
        functions = [node]
        if isinstance(node, ast.ClassDef):
            functions = [f for f in node.body if isinstance(f, ast.FunctionDef) and not f.name.startswith("_")]
        for function in functions:
            a = function.args
            names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
            names = [name for name in names if name not in ("self", "cls")]
            assert len(names) <= 7, f"{module}.{function.name} takes {len(names)} arguments: {', '.join(names)}"


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
def test_folders_hold_a_docstring_and_nothing_else(module):
    if SOURCES[module].name == "__init__.py" and module != "thaw":
        body = TREES[module].body
        assert len(body) == 1, f"{module}/__init__.py has code; there is one public surface, thaw itself"


@EVERY
def test_libraries_do_not_print(module):
    if any(below(module, outer) for outer in OUTSIDE):
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
            # Only a job that looks at how a model was compiled needs it compiled.
            assert below(module, "thaw.jobs") or given.get("compile") == "False", f"{at}: write compile=False"


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
    if below(module, "thaw.tuning") or module == "thaw.progress":
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
        "import thaw.cli",
        "from thaw.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
    ids=["import thaw", "thaw.Plan", "import thaw.cli", "thaw --help"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    if "cli" in code and "thaw.cli" not in TREES:
        pytest.skip("there is no command line")
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
