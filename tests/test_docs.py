"""README and docs: links lead somewhere, files that are named exist, README stays a front door.

Their commands run in test_commands.py, README's snippets in test_snippets.py.
"""

import re

import pytest
from conftest import REPOSITORY

PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text()
    for path in (
        REPOSITORY / "README.md",
        *sorted((REPOSITORY / "docs").glob("*.md")),
        REPOSITORY / "gpt2/mini/README.md",
        REPOSITORY / "CONTRIBUTING.md",
    )
}
README = PAGES["README.md"]


def headings_of(text):
    """The anchors of a page, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links or page.startswith("gpt2/")
    for link in links:
        name, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / name if name else REPOSITORY / page
        assert target.exists(), link
        if anchor:
            assert anchor in headings_of(target.read_text()), link


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    """`gpt2/training.py` and the like, in text and commands: no page has a path of old, but where
    it says what replaced one."""
    text = PAGES[page].split("## Where old commands went")[0]
    folders = "gpt2|classification|instruction|pretraining|baselines|benchmarks|app|tests|docs"
    named = re.findall(rf"(?<![\w/])(?:{folders})/[\w/]+\.\w+", text)
    for path in named:
        assert (REPOSITORY / path).exists(), path


def test_the_file_tree_names_what_is_there():
    tree = re.search(r"^## What is where\n\n```\n(.*?)```", README, re.DOTALL | re.MULTILINE)[1]
    named = set()
    for line in tree.splitlines():
        if not line.startswith(" "):
            folder = line.split("/")[0] + "/"
        for name in re.findall(r"[\w/]+\.py|\w+/", line[:40]):  # beyond that it is explained
            inside = name if not line.startswith(" ") else folder + name
            assert (REPOSITORY / inside).exists(), inside
            named.add(inside)
    for room in ("gpt2", "classification", "instruction", "pretraining"):
        for file in (REPOSITORY / room).glob("*.py"):
            assert f"{room}/{file.name}" in named or file.name == "__init__.py", file
    assert {"gpt2/mini/", "gpt2/weights/", "gpt2/support/"} <= named


def test_readme_is_a_front_door_and_names_every_page():
    assert len(README.splitlines()) <= 250
    for page in PAGES:
        assert page == "README.md" or f"]({page}" in README, page


def test_each_page_says_first_what_it_answers():
    for page, text in PAGES.items():
        if page.startswith("docs/"):
            title, empty, first = text.splitlines()[:3]
            assert title.startswith("# ") and not empty
            assert first and not first.startswith(("#", "`", "["))
