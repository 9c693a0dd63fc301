# SPDX-License-Identifier: Apache-2.0
"""The metric as a page: type or paste rows, see the numbers. (`evaluate`'s own widget is written for Gradio 3.)"""

from pathlib import Path

import evaluate
import gradio as gr


FOLDER = Path(__file__).resolve().parent
COLUMNS = ["predictions", "references"]
TYPES = ["str", "str"]
EXAMPLE = [["1", "a"], ["1", "a"], ["0", "b"], ["1", "b"]]

metric = evaluate.load(str(FOLDER / "assignment_agreement.py"))


def compute(rows):
    """Rows of the table -> what the metric returns, or what is wrong with them."""
    rows = [row for row in rows if any(cell not in ("", None) for cell in row)]
    if not rows:
        raise gr.Error("Fill in at least one row.")
    columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    for name, kind in zip(COLUMNS, TYPES, strict=True):
        try:
            columns[name] = [float(cell) if kind == "number" else str(cell) for cell in columns[name]]
        except (TypeError, ValueError):
            raise gr.Error(f"The column {name} must hold numbers only.") from None
    try:
        return metric.compute(**columns)
    except ValueError as error:
        raise gr.Error(str(error)) from error


with gr.Blocks(title="Assignment Agreement") as demo:
    gr.Markdown("# Assignment Agreement\n\n" + metric.description.strip())
    table = gr.Dataframe(EXAMPLE, headers=COLUMNS, datatype=TYPES, type="array", label="Rows")
    button = gr.Button("Compute", variant="primary")
    result = gr.JSON(label="Result")
    button.click(compute, table, result)
    gr.Markdown(metric.inputs_description)


if __name__ == "__main__":
    demo.launch()
