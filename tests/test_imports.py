"""The dependency rules of the house, checked on the syntax tree of every file."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("configs", "models", "train", "sampling", "data", "launch", "tests")
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))

# Own packages and third-party packages (numpy, einops everywhere) that a folder may import.  The longest prefix wins.
OWN = {
    "configs": {"configs"},
    "models/ops": {"models.ops"},
    "models": {"models"},
    "sampling": {"sampling", "models.ops"},
    "data": {"data"},
    "train": {"train", "models", "sampling", "data"},
    "launch": {"launch", "train", "models", "sampling", "data", "configs"},
    "tests": set(PACKAGES),
}
COMMON = {"numpy", "einops"}
ARRAYS = {"jax", "flax", "optax", "orbax"}


def imports(path: Path) -> list[str]:
    """Every absolute module name a file imports, at any depth."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import at line {node.lineno}; use absolute imports"
            names.append(node.module or "")
    return names


def folder_rule(path: Path, rules: dict[str, set[str]]) -> set[str]:
    relative = path.relative_to(ROOT).as_posix()
    return rules[max((k for k in rules if relative.startswith(k + "/")), key=len)]


def test_own_packages_follow_the_table():
    broken = []
    for path in FILES:
        allowed = folder_rule(path, OWN)
        for name in imports(path):
            if name.split(".")[0] in PACKAGES and not any(name == a or name.startswith(a + ".") for a in allowed):
                broken.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not broken, "\n".join(broken)


def test_third_party_packages_follow_the_table():
    allowed = {
        "configs": {"ml_collections"},
        "models/ops": {"jax"},
        "models/convert": {"jax", "flax", "safetensors"},
        "models": {"jax", "flax"},
        "sampling": {"jax"},
        "train": {"jax", "flax", "optax", "orbax", "ml_collections", "absl", "tensorboardX", "matplotlib", "etils"},
    }
    broken = []
    for path in FILES:
        relative = path.relative_to(ROOT).as_posix()
        third = {n.split(".")[0] for n in imports(path)} - set(PACKAGES) - set(sys.stdlib_module_names) - COMMON
        if relative.startswith("data/"):
            broken += [f"{relative} imports {n}" for n in third & ARRAYS]
        elif not relative.startswith(("launch/", "tests/")):
            broken += [f"{relative} imports {n}" for n in third - folder_rule(path, allowed)]
        if "orbax" in third and relative != "train/checkpoint.py" and not relative.startswith("tests/"):
            broken.append(f"{relative} imports orbax; only train/checkpoint.py may")
        broken += [
            f"{relative} imports {n}" for n in third & {"tensorflow", "clu", "torch"} if "benchmarks" not in relative
        ]
    assert not broken, "\n".join(broken)


def test_nothing_imports_launch_or_tests():
    for path in FILES:
        top = path.relative_to(ROOT).parts[0]
        for name in imports(path):
            if name.split(".")[0] in ("launch", "tests"):
                assert top in ("launch", "tests") and not (top == "launch" and name.startswith("tests")), (
                    f"{path}: {name}"
                )


def test_no_module_shadows_another():
    """Running a file by path puts its folder first on sys.path, so a clashing name would break some import."""
    ours = {p.parts[0] for p in (f.relative_to(ROOT) for f in FILES)}
    taken = sys.stdlib_module_names | (set(packages_distributions()) - ours)
    clashes = [f.relative_to(ROOT) for f in FILES if f.stem in (taken | ours) and f.stem != "__init__"]
    assert not clashes, clashes


def test_files_and_functions_stay_readable():
    broken = []
    for path in FILES:
        text = path.read_text()
        if text.count("\n") > 500:
            broken.append(f"{path.relative_to(ROOT)}: over 500 lines")
        if path.relative_to(ROOT).parts[0] == "tests":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno > 90:
                broken.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: over 90 lines")
    assert not broken, "\n".join(broken)


@pytest.mark.slow
def test_importing_everything_starts_no_backend():
    """jax.distributed must be able to start first, so no import may touch a device."""
    modules = [
        ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for f in FILES
        if f.relative_to(ROOT).parts[0] != "tests"
    ]
    code = (
        "import importlib, sys\n"
        "from absl.flags import FLAGS\n"
        "own = set(FLAGS)\n"
        f"for m in {modules!r}:\n"
        "    importlib.import_module(m)\n"
        "    for name in set(FLAGS) - own:\n"  # commands may share a flag's name
        "        delattr(FLAGS, name)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, list(xla_bridge._backends)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def test_data_never_loads_jax():
    """Loader workers must stay free of JAX: forking or spawning them must not initialise a device."""
    code = "import sys, data.errors, importlib, pkgutil, data\n" + (
        "for m in pkgutil.walk_packages(data.__path__, 'data.'): importlib.import_module(m.name)\n"
        "assert 'jax' not in sys.modules, 'jax was imported'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
