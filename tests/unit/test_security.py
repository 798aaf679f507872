"""What SECURITY.md says of the code, held against its syntax."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for folder in ("nirdeploy", "backends", "docs", "configs") for path in (ROOT / folder).rglob("*.py")
)
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "jsonpickle"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__"),
    *("os.system", "os.popen", "os.execv", "os.execl", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("pickle.load", "pickle.loads", "yaml.load", "torch.jit.load", "torch.hub.load", "runpy.run_path"),
}


def dotted(node):
    """'a.b.c' of an expression that is names alone, '' otherwise."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def faults(text):
    """What of a source is forbidden, each with its line."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: import {n}" for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}

        def says(keyword, value, given=given):
            held = given.get(keyword)
            return isinstance(held, ast.Constant) and held.value is value

        if name in FORBIDDEN_CALLS:
            found.append(f"{node.lineno}: {name}")
        if "shell" in given and not says("shell", False):
            found.append(f"{node.lineno}: shell=")
        if "allow_pickle" in given and not says("allow_pickle", False):
            found.append(f"{node.lineno}: allow_pickle=")
        if name == "torch.load" and not says("weights_only", True):
            found.append(f"{node.lineno}: torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and not says("allow_pickle", False):
            found.append(f"{node.lineno}: {name} that may unpickle in an old numpy")
    return found


def test_no_source_evaluates_unpickles_or_starts_a_shell():
    assert len(SOURCES) > 200
    found = {str(path.relative_to(ROOT)): faults(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "exec(text)",
        "import pickle",
        "from yaml import safe_load",
        "import os\nos.system('ls')",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "numpy.savez(path, allow_pickle=True)",
    ],
)
def test_each_of_these_would_be_found(text):
    assert faults(text)


@pytest.mark.parametrize(
    "text", ["model.eval()", "torch.load(p, weights_only=True)", "np.load(p, allow_pickle=False)", "re.compile('x')"]
)
def test_what_is_harmless_is_not(text):
    assert faults(text) == []


def test_the_page_names_every_kind_of_file_that_is_read():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8").lower()
    for kind in (".nir", "`.net`", "trajector", "deployment", "mapping", "event", "configuration", "environment"):
        assert kind in page, kind
