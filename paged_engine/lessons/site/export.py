"""The series as a site: every notebook and page as static HTML, ready for any host."""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter

from paged_engine.lessons.folders import ready_folder
from paged_engine.lessons.site.execution import executed
from paged_engine.lessons.site.links import MAP, Links, place_of, relative, with_anchors
from paged_engine.lessons.site.replays import view_program, with_replays
from paged_engine.visualizer.page import style_sheet

HERE = Path(__file__).parent
KIND = "site"
PAGES = (MAP, "notebooks/GLOSSARY.md", "README.md")  # beside the notebooks; the rest is linked
PLACES = (("paged_engine", MAP), ("glossary", "notebooks/GLOSSARY.md"), ("about", "README.md"))
_FORMULA = re.compile(r"(?<![\\$\w])\$[^$\n`]*[\\^_{][^$\n`]*\$")


@dataclass
class Report:
    """What an export made.

    Attributes:
        notebooks, replays, pages, files: How many of each.
        broken: Page and target of links that lead nowhere, and have become text.
        formulas: Pages with formulas, which are shown as they are written.
    """

    notebooks: int = 0
    replays: int = 0
    pages: int = 0
    files: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    formulas: list[str] = field(default_factory=list)


def export_site(root: Path, to: Path, execute: bool = False) -> Report:
    """Write the site.

    Args:
        root: The repository, or a copy of it: `notebooks/*.ipynb` and what they link to.
        to: The folder to write; made if it is not there, emptied if an export made it.
        execute: Run every notebook anew, in place of the outputs that it has.

    Raises:
        PagedEngineError: There are no notebooks in `root`, or `to` holds other things.
    """
    ready_folder(to, KIND)
    site = _Site(root, to, execute)
    notebooks = sorted(p.relative_to(root).as_posix() for p in root.glob("notebooks/*.ipynb"))
    links = site.links
    links.wanted += [name for name in PAGES if (root / name).exists()] + notebooks
    for name in links.wanted:  # it grows while pages are made
        site.add(name)
    site.write_static()
    site.report.broken = links.broken
    return site.report


class _Site:
    """One export."""

    def __init__(self, root: Path, to: Path, execute: bool) -> None:
        self.root, self.to, self.execute = root, to, execute
        self.links = Links(root)
        self.report = Report()
        self.highlighting = ""
        self.exporter = HTMLExporter(
            template_name="series",
            extra_template_basedirs=[str(HERE / "templates")],
            exclude_anchor_links=True,
        )

    def add(self, source: str) -> None:
        """Make or copy what stands for a file or folder of the repository."""
        file = self.root / source
        if file.is_dir():
            self._page(source, _markdown(_listing(file, source)), is_folder=True)
        elif file.suffix == ".ipynb":
            notebook = nbformat.read(file, as_version=4)
            if self.execute:
                notebook = executed(notebook, file.parent)
            self.report.notebooks += 1
            self._page(source, notebook)
        elif file.suffix == ".md":
            self._page(source, _markdown(file.read_text(encoding="utf-8")))
        else:
            copy = self.to / place_of(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            self.report.files += 1

    def _page(self, source: str, notebook: Any, is_folder: bool = False) -> None:
        """Convert a notebook, or a page that was made one, and write it."""
        place = place_of(source, is_folder)
        text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
        if _FORMULA.search(re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)):
            self.report.formulas.append(source)
        replays = with_replays(notebook)
        up = posixpath.relpath(".", posixpath.dirname(place) or ".")
        series = {
            "title": _title(text, source),
            "up": "" if up == "." else f"{up}/",
            "replays": replays,
            "places": [
                (name, relative(place_of(target), place))
                for name, target in PLACES
                if (self.root / target).exists()
            ],
        }
        body, made = self.exporter.from_notebook_node(notebook, {"series": series})
        self.highlighting = "\n".join(made["inlining"]["css"])
        # a folder's links are those of a page inside it
        at = posixpath.join(source, "index.md") if is_folder else source
        page = self.to / place
        page.parent.mkdir(parents=True, exist_ok=True)
        head, opened, cells = with_anchors(body).partition("<main>")
        page.write_text(head + opened + self.links.rewritten(cells, at), encoding="utf-8")
        self.report.replays += replays
        self.report.pages += 1

    def write_static(self) -> None:
        """The scripts and styles that all pages share."""
        static = self.to / "static"
        static.mkdir(exist_ok=True)
        styles = [_lab_styles(self.exporter), self.highlighting, style_sheet()]
        (static / "lab.css").write_text("\n".join(styles), encoding="utf-8")
        (static / "view.js").write_text(view_program(), encoding="utf-8")
        for name in ("site.css", "site.js"):
            shutil.copyfile(HERE / name, static / name)
        (self.to / ".nojekyll").touch()  # GitHub Pages serves the files as they are


def _lab_styles(exporter: HTMLExporter) -> str:
    """JupyterLab's styles: light, and dark where the reader or the reader's system wants it."""

    def read(name: str) -> str:
        for folder in exporter.template_paths:
            file = Path(folder) / "static" / name
            if file.exists():
                return file.read_text(encoding="utf-8")
        raise FileNotFoundError(name)

    dark = read("theme-dark.css")
    wanted = dark.replace(":root", ':root[data-theme="dark"]')
    by_system = dark.replace(":root", ':root:not([data-theme="light"])')
    return "\n".join(
        [
            read("index.css"),
            read("theme-light.css"),
            wanted,
            f"@media (prefers-color-scheme: dark) {{\n{by_system}\n}}",
        ]
    )


def _markdown(text: str) -> Any:
    """A page of Markdown as a notebook of one cell."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text, id="page")])


def _listing(folder: Path, source: str) -> str:
    """What is in a folder, as Markdown: pages by their titles first, then files."""
    lines = [f"# {source}", ""]
    names = sorted(
        (path for path in folder.iterdir() if not path.name.startswith(".")),
        key=lambda path: (path.suffix != ".html", path.name),
    )
    for path in names:
        title = path.name
        if path.suffix == ".html":
            found = re.search(r"<title>(.*?)</title>", path.read_text(encoding="utf-8"), re.DOTALL)
            title = found.group(1).strip() if found else title
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines)


def _title(text: str, source: str) -> str:
    """The first heading, and where it stands."""
    heading = re.search(r"^#+ (.+)$", text, re.MULTILINE)
    name = posixpath.splitext(posixpath.basename(source))[0].replace("_", " ")
    return f"{heading.group(1).strip()} · {name}" if heading else name


def lines_of(report: Report, to: Path) -> Iterable[str]:
    """What an export says of itself."""
    for page, target in report.broken:
        yield f"{page} links to {target}, which is not there: shown as text"
    for page in report.formulas:
        yield f"{page} has formulas, and the site has no MathJax: shown as they are written"
    yield (
        f"{report.notebooks} notebooks with {report.replays} replays, "
        f"{report.pages - report.notebooks} other pages, {report.files} files: "
        f"open {to / 'index.html'}"
    )
