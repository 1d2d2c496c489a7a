"""Execute notebooks in place, as their author does before a commit.

    python -m tests.notebooks.execute notebooks/05_scheduler.ipynb ...

The outputs that the tests compare are made here, so everything that would differ from machine to
machine or from run to run is taken out: no model hub, no user's settings, no card, times and
versions out of the metadata.  Live views are run to their end and the state of their widgets is
kept, under names that do not change.  A picture in `assets/notebooks` that a cell draws becomes
what it draws now.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

TIMEOUT = 180  # seconds for a cell
CELL_KEYS = {"tags"}  # of a cell's metadata; the rest is a front end's
METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
# Run after the last cell and not kept: views end, whether or not the notebook ends them, and what
# they show then stands beside each for where widgets are not shown (GitHub, an untrusted clone).
FINISH = """
import json
from paged_engine.visualizer.player import finish_all
print(json.dumps({view.model_id: view.picture() for view in finish_all()}))
"""
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
MODEL_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")  # also in "IPY_MODEL_..."


def execute(notebook: nbformat.NotebookNode, folder: Path, scratch: str) -> nbformat.NotebookNode:
    """Run all of it in a fresh kernel.

    Args:
        notebook: Changed in place.
        folder: Where its relative paths begin.
        scratch: An empty folder, which stands for the user's settings.

    Returns:
        The notebook, normalised.
    """
    os.environ.update(
        IPYTHONDIR=scratch,
        JUPYTER_CONFIG_DIR=scratch,
        MPLCONFIGDIR=scratch,
        HF_HUB_OFFLINE="1",
        CUDA_VISIBLE_DEVICES="",
        TOKENIZERS_PARALLELISM="false",
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    notebook.cells.append(nbformat.v4.new_code_cell(FINISH))
    try:
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            store_widget_state=True,
            coalesce_streams=True,  # else where a print is cut depends on the machine
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute()
    finally:
        last = notebook.cells.pop()
    _add_pictures(notebook, json.loads(last.outputs[0].text))
    return normalised(notebook)


def _add_pictures(notebook: nbformat.NotebookNode, pictures: dict[str, str | None]) -> None:
    """Put the picture of a view beside it, in the same output."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            picture = pictures.get(data.get(WIDGET, {}).get("model_id"))
            if picture:
                data["image/png"] = picture


def normalised(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what differs from run to run."""
    widgets = notebook.metadata.get("widgets")
    notebook.metadata = nbformat.from_dict(METADATA)
    if widgets is not None and widgets.get(WIDGET_STATE, {}).get("state"):
        notebook.metadata["widgets"] = widgets
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict(
            {key: value for key, value in sorted(cell.metadata.items()) if key in CELL_KEYS}
        )
        for output in cell.get("outputs", []):
            output.get("metadata", {}).pop("needs_background", None)
    return _renamed(notebook)


def _renamed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Give widgets names in the order in which the notebook speaks of them."""
    if "widgets" not in notebook.metadata:
        return notebook
    text = json.dumps(notebook)
    names: dict[str, str] = {}
    for found in MODEL_ID.findall(text):
        names.setdefault(found, f"{len(names) + 1:032x}")
    renamed = json.loads(MODEL_ID.sub(lambda match: names[match.group()], text))
    state: dict[str, Any] = renamed["metadata"]["widgets"][WIDGET_STATE]["state"]
    renamed["metadata"]["widgets"][WIDGET_STATE]["state"] = dict(sorted(state.items()))
    return nbformat.from_dict(renamed)


def _svgs(notebook: nbformat.NotebookNode) -> list[str]:
    """Every SVG that its cells have drawn, in order."""
    return [
        str(output["data"]["image/svg+xml"])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/svg+xml" in output.get("data", {})
    ]


def _kept_pictures(path: Path, notebook: nbformat.NotebookNode) -> dict[Path, int]:
    """Pictures in `assets` that are what a cell draws, and the number of that drawing."""
    folder = path.resolve().parents[1] / "assets" / "notebooks"
    drawn = _svgs(notebook)
    kept = {
        file: file.read_text(encoding="utf-8") for file in folder.glob(f"{path.stem[:2]}_*.svg")
    }
    return {file: drawn.index(text) for file, text in kept.items() if text in drawn}


def main(arguments: list[str]) -> None:
    """Execute each notebook that is named and write it back."""
    parser = argparse.ArgumentParser(description="Execute notebooks in place.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    for path in parser.parse_args(arguments).notebooks:
        notebook = nbformat.read(path, as_version=4)
        pictures = _kept_pictures(path, notebook)
        with tempfile.TemporaryDirectory() as scratch:
            notebook = execute(notebook, path.parent.resolve(), scratch)
        nbformat.write(notebook, path)
        for file, number in pictures.items():
            file.write_text(_svgs(notebook)[number], encoding="utf-8")
        print(f"{path}: {sum(c.cell_type == 'code' for c in notebook.cells)} cells run")


if __name__ == "__main__":
    main(sys.argv[1:])
