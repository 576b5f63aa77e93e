"""Who imports whom, and how long things are, read from the code: imports go down, in no circle."""

import ast
import importlib.util
import shutil

import pytest
from conftest import REPOSITORY

# Module or package -> what it may import of the project, each with all that lies inside it; what
# stands after "not" it may not. Of two lines that fit a module the one with the longer name counts.
MAY_IMPORT = {
    # tasks and what stands above them. No task imports another one.
    "classification": "gpt2 classification",
    "classification.train_gpt": "gpt2 classification baselines.train_logreg "  # 1
    "baselines.finished_runs",  # 2
    "instruction": "gpt2 instruction",
    "pretraining": "gpt2 pretraining",
    "baselines": "gpt2 classification instruction pretraining baselines",
    "benchmarks": "gpt2 classification instruction pretraining benchmarks",
    "app": "gpt2 classification instruction baselines app",
    # the library: what the scripts do alike > where weights come from > what a student reads > rest
    "gpt2.one_run": "gpt2",
    "gpt2.weights": "gpt2 not gpt2.one_run gpt2.training gpt2.bookkeeping",
    "gpt2": "gpt2 not gpt2.one_run gpt2.weights",
    "gpt2.heads": "gpt2.model gpt2.support",
    "gpt2.model": "gpt2.support",
    "gpt2.support": "gpt2.support",
}
# The calls upwards, on purpose: the table that ends the script has 1 a line of the baseline's and
# 2 lines of other runs, as comparisons read them.

LONGEST_FILE = 350
LONGEST_TRAIN = 60  # lines of `train`, without its docstring
MOST_IN_GPT2 = 16  # files beside the folders


def modules_of(root):
    """Module name -> file, of all packages of the repository in `root`."""
    modules = {}
    for package in sorted(root.iterdir()):
        if not (package / "__init__.py").is_file():
            continue
        for file in sorted(package.rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            modules[".".join(parts).removesuffix(".__init__")] = file
    return modules


def imports_of(root):
    """Module -> the project's modules that it imports anywhere: at the top, inside functions, for
    type checkers alone."""
    modules = modules_of(root)
    packages = {name.split(".")[0] for name in modules}
    graph = {}
    for module, file in modules.items():
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        names = []
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                source = "." * node.level + (node.module or "")
                source = importlib.util.resolve_name(source, package)
                for alias in node.names:  # a module of the package `source`, or a name in it
                    inside = f"{source}.{alias.name}"
                    names.append(inside if inside in modules else source)
        graph[module] = {name for name in names if name.split(".")[0] in packages}
    return graph


def lies_in(module, packages):
    return any(module == package or module.startswith(package + ".") for package in packages)


def wrong_imports(graph):
    """All lines `module imports module` that the table does not allow."""
    wrong = []
    for module, imported in graph.items():
        row = max((name for name in MAY_IMPORT if lies_in(module, [name])), key=len, default=None)
        allowed, _, never = MAY_IMPORT.get(row, "").partition(" not ")
        wrong += [
            f"{module} imports {other}"
            for other in sorted(imported)
            if not lies_in(other, allowed.split()) or lies_in(other, never.split())
        ]
    return wrong


def circle(graph):
    """The modules of one circle, the first once more at its end; empty if there is none."""
    done = set()

    def visit(module, path):
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for other in sorted(graph.get(module, ())):
                if found := visit(other, [*path, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := visit(module, []))), [])


def test_imports_go_down_and_in_no_circle():
    graph = imports_of(REPOSITORY)
    assert len(graph) > 50 and "gpt2.model" in graph["gpt2.heads"]
    assert wrong_imports(graph) == []
    assert circle(graph) == []


def test_the_table_names_what_there_is():
    """A module that was renamed would silently lose its line, and a package without one is not
    looked at."""
    modules = modules_of(REPOSITORY)
    named = {name for row in MAY_IMPORT.values() for name in row.split() if name != "not"}
    assert named | set(MAY_IMPORT) <= set(modules)
    assert {name.split(".")[0] for name in modules} == {
        name for name in MAY_IMPORT if "." not in name
    }
    called = imports_of(REPOSITORY)["classification.train_gpt"]
    # else the exceptions have no use any more
    assert {"baselines.train_logreg", "baselines.finished_runs"} <= called


@pytest.fixture
def copy(tmp_path):
    """A copy of the packages to plant something wrong in."""
    for name in MAY_IMPORT:
        if "." not in name:
            ignored = shutil.ignore_patterns("__pycache__", "mini")
            shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignored)
    return tmp_path


PLANTED = {  # in each file a line, and what it imports; every spelling, and each line of the table
    "gpt2/support/device.py": ("from gpt2.model import GPT2", "gpt2.model"),
    "gpt2/support/files.py": ("import gpt2.model as m", "gpt2.model"),
    "gpt2/support/flags.py": ("from gpt2 import model", "gpt2.model"),
    "gpt2/support/hub.py": ("from ..model import GPT2", "gpt2.model"),
    "gpt2/support/tables.py": ("import instruction", "instruction"),
    "gpt2/model.py": ("def late():\n    import gpt2.heads", "gpt2.heads"),
    "gpt2/heads.py": ("import gpt2.batching", "gpt2.batching"),
    "gpt2/checkpoint.py": ("if TYPE_CHECKING:\n    import gpt2.weights", "gpt2.weights"),
    "gpt2/training.py": ("import gpt2.one_run", "gpt2.one_run"),
    "gpt2/weights/export.py": ("from gpt2.training import train", "gpt2.training"),
    "gpt2/one_run.py": ("from classification import data", "classification.data"),
    "instruction/respond.py": ("import classification.predict", "classification.predict"),
    "pretraining/sample.py": ("from instruction import template", "instruction.template"),
    "classification/report.py": ("import baselines.train_logreg", "baselines.train_logreg"),
    "baselines/label_curve.py": ("import benchmarks.memory", "benchmarks.memory"),
    "benchmarks/memory.py": ("import baselines.label_curve", "baselines.label_curve"),
    "baselines/compare.py": ("import app.page", "app.page"),
}


def test_planted_wrong_imports_are_found(copy):
    assert wrong_imports(imports_of(copy)) == []
    expected = []
    for name, (line, imported) in PLANTED.items():
        with open(copy / name, "a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
        module = name.removesuffix(".py").replace("/", ".")
        expected.append(f"{module} imports {imported}")
    assert sorted(wrong_imports(imports_of(copy))) == sorted(expected)


def test_a_planted_circle_is_found(copy):
    """One that the table allows, and that Python allows as well: inside a function."""
    with open(copy / "gpt2/batching.py", "a", encoding="utf-8") as file:
        file.write("\ndef late():\n    from gpt2.language_modelling import perplexity\n")
    graph = imports_of(copy)
    assert wrong_imports(graph) == []
    assert circle(graph) == ["gpt2.batching", "gpt2.language_modelling", "gpt2.batching"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []  # a module of two is no circle
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_the_first_floor_has_few_files():
    files = [file.name for file in (REPOSITORY / "gpt2").iterdir() if file.is_file()]
    assert len(files) <= MOST_IN_GPT2, sorted(files)


def test_the_loop_fits_on_a_screen():
    (train,) = (
        node
        for node in ast.parse((REPOSITORY / "gpt2/training.py").read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == "train"
    )
    docstring = train.body[0]
    assert ast.get_docstring(train)
    lines = train.end_lineno - train.lineno + 1 - (docstring.end_lineno - docstring.lineno + 1)
    assert lines <= LONGEST_TRAIN


def test_no_file_holds_two_ideas():
    lengths = {
        file.relative_to(REPOSITORY).as_posix(): len(file.read_text("utf-8").splitlines())
        for file in modules_of(REPOSITORY).values()
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}
