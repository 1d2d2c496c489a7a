"""An executed notebook is written so that a second run writes the same."""

from __future__ import annotations

import uuid
from typing import Any

import nbformat

from tests.notebooks.execute import WIDGET, WIDGET_STATE, normalised


def with_a_view() -> Any:
    """As a kernel leaves it: a view and its layout under names that were never there before."""
    notebook = nbformat.v4.new_notebook()
    view, layout = uuid.uuid4().hex, uuid.uuid4().hex
    shown = nbformat.v4.new_output("display_data", {WIDGET: {"model_id": view}})
    notebook.cells = [nbformat.v4.new_code_cell("view", outputs=[shown])]
    notebook.cells[0].metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00"}
    state = {view: {"state": {"layout": f"IPY_MODEL_{layout}"}}, layout: {"state": {}}}
    notebook.metadata["widgets"] = {WIDGET_STATE: {"state": state}}
    for cell in notebook.cells:
        cell.id = "a-cell"
    return nbformat.from_dict(notebook)


def test_widgets_are_renamed_wherever_they_are_named() -> None:
    one, other = normalised(with_a_view()), normalised(with_a_view())
    assert one == other
    state = one.metadata.widgets[WIDGET_STATE].state
    shown = one.cells[0].outputs[0].data[WIDGET].model_id
    layout = state[shown].state.layout.removeprefix("IPY_MODEL_")
    assert {shown, layout} == set(state) and shown != layout
