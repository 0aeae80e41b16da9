"""The notebooks run from top to bottom, say what they promise, and hold no outputs."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@dataclass(frozen=True)
class Promise:
    """What a notebook's table must hold: rows, and pairs of which the first has a CRPS below a share of the second's."""

    rows: set[str]
    better: tuple[tuple[str, str, float], ...]


SDA = Promise(
    {"interpolation", "climatology", "SDA, state space", "SDA, latent space"},
    (("SDA, state space", "climatology", 0.9),),
)
PROMISES = {
    "01a_lorenz63": SDA,
    "01b_kolmogorov": SDA,
    **{
        name: Promise(
            {f"coarse_4: {method}" for method in ("gaussian", "interpolation", "reconstruction", *methods)},
            (("coarse_4: analysis", "coarse_4: climatology", 0.8),),
        )
        for name, methods in (
            ("02a_qu2024_pixels", ()),
            ("02b_qu2024_latent", ("latent_gaussian",)),
            ("02c_qu2024_rain", ("analysis:dropped", "analysis:shuffled")),
            (
                "02d_qu2024_rain_and_radiation",
                ("analysis:every day", "analysis:dropped", "analysis:shuffled"),
            ),
        )
    },
    "02e_qu2024_figures": Promise(
        {"sda_0, coarse_4: gaussian", "lsda_2, coarse_4: reconstruction"},
        (("lsda_2, coarse_4: analysis", "sda_0, coarse_4: climatology", 0.8),),
    ),
    "03a_lorenz96_filters": Promise(
        {"SSLS", "SSLS, no prior", "EnSF", "EnKF", "raw observation", "climatology"},
        (("SSLS", "climatology", 0.6), ("EnSF", "climatology", 0.6)),
    ),
    "03b_doublewell": Promise(
        {f"{sensor}: {name}" for sensor in ("linear", "exp") for name in ("SSLS", "EnSF", "EnKF", "exact")},
        (
            ("linear: SSLS", "linear: EnKF", 0.9),
            ("exp: SSLS", "exp: EnKF", 0.8),
            ("exp: exact", "exp: EnKF", 0.8),
        ),
    ),
    "03c_model_error": Promise(
        {"generative EnKF", "without observations", "LETKF", "nudging", "raw observation", "climatology"},
        (("generative EnKF", "climatology", 0.6), ("generative EnKF", "nudging", 0.9)),
    ),
}


@pytest.fixture(autouse=True)
def quiet_kernels(monkeypatch, tmp_path):
    """The package of this folder, one thread, small numbers, and a profile of their own."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SLAMS_REDUCED", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


def table(notebook: nbformat.NotebookNode) -> dict[str, list[str]]:
    """Cells of the one table of scores, by method."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    (text,) = [o["data"]["text/markdown"] for o in outputs if "text/markdown" in o.get("data", {})]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines[2:]}


def test_each_promises_something():
    assert [path.stem for path in NOTEBOOKS] == sorted(PROMISES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_holds_text_and_short_cells_and_no_outputs(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert all(len(cell.source.splitlines()) <= 35 for cell in code)
    assert sum(cell.cell_type == "markdown" for cell in notebook.cells) >= len(code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_in_a_reduced_form(path, tmp_path):
    """The same cells with small numbers: all methods are in the table, those that should win do, and a picture is drawn.

    Seeds are fixed; a CRPS below the rival's by a tenth or more is far from what another machine's rounding can undo.
    """
    notebook = nbformat.read(path, 4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    rows, promise = table(notebook), PROMISES[path.stem]
    assert promise.rows <= set(rows)
    assert promise is not SDA or any("reconstruction" in name for name in rows)
    crps = {name: float(cells[1]) for name, cells in rows.items()}
    for one, other, share in promise.better:
        assert crps[one] < share * crps[other], (one, other)
    assert all(re.match(r"\d\.\d{3} \[", cells[0]) for cells in rows.values())
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
