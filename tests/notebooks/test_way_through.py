"""The reader's way through the series: the map, the glossary, and the links between notebooks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from assets import make_series_map
from tests.notebooks.lesson import NOTEBOOKS, REPO, cells_of

FOLDER = REPO / "notebooks"
MAP = FOLDER / "README.md"
GLOSSARY = FOLDER / "GLOSSARY.md"
ROW = re.compile(
    r"^\| (?P<link>\[)?(?P<number>\d\d) (?P<name>[^|\]]+?)(?:\]\((?P<file>\S+)\))? \| "
    r"(?P<question>.+\?) \| (?P<builds>.+) \| (?P<minutes>\S+) \| (?P<here>.+) \|$",
    re.MULTILINE,
)
NUMBER_OF_NOTEBOOKS = 18


def rows(text: str) -> dict[str, dict[str, str | None]]:
    """The map's rows, by number."""
    return {row["number"]: row.groupdict() for row in ROW.finditer(text)}


def check_map(text: str, tops: dict[str, str]) -> None:
    """Hold the map against the first cells of the notebooks, by their stems."""
    found = rows(text)
    assert sorted(found) == [f"{number:02}" for number in range(NUMBER_OF_NOTEBOOKS)]
    here = {stem[:2]: stem for stem in tops}
    assert len(here) == len(tops)
    for number, row in found.items():
        if number not in here:
            assert (row["file"], row["here"], row["minutes"]) == (None, "not yet", "–"), number
            continue
        stem = here[number]
        assert (row["file"], row["here"]) == (f"{stem}.ipynb", "yes"), f"{stem} is here"
        assert row["name"].replace(" ", "_").lower() == stem[3:]  # type: ignore[union-attr]
        (minutes,) = re.findall(r"\*\*Minutes\*\* (\d+)", tops[stem])
        assert row["minutes"] == minutes, f"the box of {stem} says {minutes} minutes"
        assert tops[stem].splitlines()[0] == f"# {row['question']}", f"the question of {stem}"


def check_navigation(stem: str, top: str, stems: list[str]) -> None:
    """Hold the links in a box against the notebooks that are there."""
    targets = re.findall(r"\]\(([^)#\s]+)\)", "".join(re.findall(r"^> .*", top, re.MULTILINE)))
    assert "README.md" in targets, f"{stem} does not link the map"
    at = stems.index(stem)
    for neighbour in stems[max(0, at - 1) : at] + stems[at + 1 : at + 2]:
        assert f"{neighbour}.ipynb" in targets, f"{stem} does not link {neighbour}"


def check_glossary(text: str, stems: list[str]) -> None:
    """Terms in order, each once, each in a sentence or two, with its notebook."""
    terms = re.findall(r"^### (.+)\n\n((?:.+\n)+)", text, re.MULTILINE)
    assert len(terms) == text.count("\n### ") >= 60
    keys = [re.sub(r"[^a-z0-9 ]", "", name.lower().replace("_", " ")) for name, _ in terms]
    assert len(set(keys)) == len(keys), "a term stands there twice"
    assert keys == sorted(keys), "not in the order of the alphabet"
    here = {stem[:2]: f"{stem}.ipynb" for stem in stems}
    for name, words in terms:
        said, arrow, where = " ".join(words.split()).rpartition(" → ")
        assert arrow and 1 <= len(re.findall(r"[.?!)](?= |$)", said)) <= 4, f"{name}: {said}"
        linked = re.fullmatch(r"\[(\d\d)\]\((\S+)\)", where)
        plain = re.fullmatch(r"notebook (\d\d)", where)
        assert linked or plain, f"{name} is built in {where!r}"
        if linked:
            assert here.get(linked[1]) == linked[2], f"{name}: {where} leads nowhere"
        elif plain:
            assert plain[1] not in here, f"{name}: notebook {plain[1]} is here, link it"


def tops() -> dict[str, str]:
    return {path.stem: cells_of(path)[0].source for path in NOTEBOOKS}


def test_the_map_has_every_notebook_with_its_question_and_minutes() -> None:
    check_map(MAP.read_text(encoding="utf-8"), tops())


@pytest.mark.parametrize("stem", [path.stem for path in NOTEBOOKS])
def test_a_notebook_links_the_map_and_its_neighbours(stem: str) -> None:
    check_navigation(stem, tops()[stem], [path.stem for path in NOTEBOOKS])


def test_the_glossary_is_in_order_and_its_links_live() -> None:
    check_glossary(GLOSSARY.read_text(encoding="utf-8"), [path.stem for path in NOTEBOOKS])


@pytest.mark.parametrize("file", [MAP, GLOSSARY, REPO / "README.md"], ids=lambda file: file.name)
def test_links_between_these_pages_lead_somewhere(file: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8"))
    for target in targets:
        if not target.startswith("https://"):
            assert (file.parent / target.split("#")[0]).exists(), f"{target} is not there"


def test_the_root_links_the_map() -> None:
    assert "](notebooks/README.md)" in (REPO / "README.md").read_text(encoding="utf-8")


def test_the_map_is_drawn_by_its_script_and_has_every_notebook() -> None:
    kept = make_series_map.FILE.read_text(encoding="utf-8")
    is_the_same = kept == make_series_map.draw().svg
    assert is_the_same, "run: python -m assets.make_series_map"
    assert make_series_map.numbers() == set(range(NUMBER_OF_NOTEBOOKS))
    for part in make_series_map.PARTS:
        assert f">{part.name}</text>" in kept, "text is text, not outlines"


# The checks themselves ---------------------------------------------------------------------------

A_MAP = "\n".join(
    f"| [{n:02} a b]({n:02}_a_b.ipynb) | Why {n}? | things | {n + 20} | yes |"
    if n < 3
    else f"| {n:02} a b | Why {n}? | things | – | not yet |"
    for n in range(NUMBER_OF_NOTEBOOKS)
)
SOME = [f"{n:02}_a_b" for n in range(3)]
BOXES = {
    stem: f"# Why {n}?\n\n> **Minutes** {n + 20} · more\n>\n> "
    + " · ".join(
        f"[x]({target})" for target in ("00_a_b.ipynb", "README.md", "01_a_b.ipynb", "02_a_b.ipynb")
    )
    for n, stem in enumerate(SOME)
}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| [01 a b](01_a_b.ipynb) |", "| 01 a b |"),
        ("(01_a_b.ipynb)", "(02_a_b.ipynb)"),
        ("| 21 | yes |", "| 22 | yes |"),
        ("| 21 | yes |", "| 21 | not yet |"),
        ("Why 2?", "What?"),
        ("| 07 a b | Why 7? | things | – | not yet |", ""),
        ("| Why 9? | things | – |", "| Why 9? | things | 45 |"),
        ("| 09 a b |", "| [09 a b](09_a_b.ipynb) |"),
    ],
)
def test_a_wrong_map_is_seen(old: str, new: str) -> None:
    check_map(A_MAP, BOXES)
    assert old in A_MAP
    with pytest.raises(AssertionError):
        check_map(A_MAP.replace(old, new), BOXES)


@pytest.mark.parametrize("gone", ["README.md", "00_a_b.ipynb", "02_a_b.ipynb"])
def test_a_missing_link_is_seen(gone: str) -> None:
    check_navigation("01_a_b", BOXES["01_a_b"], SOME)
    with pytest.raises(AssertionError, match="does not link"):
        check_navigation("01_a_b", BOXES["01_a_b"].replace(gone, "x.md"), SOME)


TERMS = "# Glossary\n\n" + "\n".join(
    f"### Term {n:02}\n\nIt is\nthis. Or that. → {where}\n"
    for n in range(60)
    for where in ["[01](01_a_b.ipynb)" if n < 9 else "notebook 05"]
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("### Term 07", "### Term 08"),
        ("### Term 07", "### Zebra"),
        ("→ [01](01_a_b.ipynb)", "→ [01](01_gone.ipynb)"),
        ("→ notebook 05", "→ notebook 02"),
        ("→ notebook 05", "somewhere"),
        ("It is\nthis. Or that.", "No sentence"),
        ("### Term 20\n", "## Term 20\n"),
    ],
)
def test_a_wrong_glossary_is_seen(old: str, new: str) -> None:
    check_glossary(TERMS, SOME)
    assert old in TERMS
    with pytest.raises(AssertionError):
        check_glossary(TERMS.replace(old, new, 1), SOME)
