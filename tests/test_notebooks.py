"""The notebooks run from top to bottom, each exercise takes its solution and nothing else, and they
hold the cells of the Python files that they are made from."""

import re
import shutil

import pytest
from conftest import REPOSITORY

jupytext, nbformat, nbclient, _ = (
    pytest.importorskip(name, reason=f"pip install -e '.[test]' brings {name}")
    for name in ("jupytext", "nbformat", "nbclient", "ipykernel")
)

FOLDER = REPOSITORY / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def with_attempts(cells):
    """The cells, and after each check a wrong answer and the solution that is folded away above,
    both checked. Returns them and the three numbers of each exercise's checks among them."""
    found, places = [], []
    solution = unanswered = None
    for cell in cells:
        found.append(cell)
        if cell.cell_type == "markdown" and "<summary>A solution" in cell.source:
            solution = re.search(r"```python\n(.*?)```", cell.source, re.DOTALL)[1]
        if cell.cell_type == "code" and re.fullmatch(r"\w+ = \.\.\.", cell.source):
            unanswered = cell.source.removesuffix(" = ...")
        if cell.source.startswith("# @title check "):
            places.append([len(found) - 1, len(found), len(found) + 1])
            for answer in (f"{unanswered} = object()", solution):
                found.append(nbformat.v4.new_code_cell(f"{answer}\n{cell.source}"))
            solution = unanswered = None
    return found, places


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_runs_and_every_exercise_can_be_solved(name, tmp_path, script_environment):
    """With two training steps instead of all, and short answers: what is learnt is not looked at.
    Jupyter imports from the notebook's folder first, so nothing in it may have the name of a
    package."""
    shutil.copytree(FOLDER, tmp_path / "notebooks")
    notebook = jupytext.read(FOLDER / f"{name}.ipynb")
    notebook.cells, places = with_attempts(notebook.cells)
    for cell in notebook.cells:  # hundreds of answers take most of the time
        cell.source = cell.source.replace("max_new_tokens=32", "max_new_tokens=4")
    client = nbclient.NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": tmp_path / "notebooks"}},
    )
    client.execute(env=script_environment | {"MAX_STEPS": "2", "OMP_WAIT_POLICY": "PASSIVE"})
    said = [
        [
            "".join(out.get("text", "") for out in notebook.cells[place].outputs)
            for place in attempts
        ]
        for attempts in places
    ]
    assert len(said) >= 12
    for attempts, (untried, wrong, right) in zip(places, said, strict=True):
        exercise = notebook.cells[attempts[0]].source.splitlines()[0]
        assert untried == "not tried yet\n", exercise
        assert wrong.startswith("not yet. "), (exercise, wrong)
        assert right.splitlines()[-1] == "right!", (exercise, right)
    pictures = [
        out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs
        if "image/png" in out.get("data", {})
    ]  # fmt: skip
    assert len(pictures) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_made_from_its_cells(name):
    """CONTRIBUTING.md has the command that makes it; it has no outputs."""
    source = jupytext.read(FOLDER / f"cells/{name}.py")
    notebook = jupytext.read(FOLDER / f"{name}.ipynb")
    assert [(cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells] == [
        (cell.cell_type, cell.source, cell.metadata) for cell in source.cells
    ]
    assert all(not cell.get("outputs") for cell in notebook.cells)
