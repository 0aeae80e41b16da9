"""Figures: what is drawn where, in which colours, and that no text overlaps."""

import functools
import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from slams.evaluation.figures import maps, plots
from slams.evaluation.figures.cartography import aspect, coastlines, common_range, edges, extent

LAT, LON = np.arange(44, 34.9, -0.5), np.arange(-10, 4.1, 0.5)
NAMES = (
    "maps", "maps without spread", "profiles", "ranks", "losses",
    "spectra", "bars", "series", "modalities", "correlations",
)  # fmt: skip
DATES = np.arange("1995-12-01", "1996-03-01", dtype="datetime64[D]")


def field(seed: int = 0) -> np.ndarray:
    values = 10 + np.random.default_rng(seed).normal(size=(len(LAT), len(LON)))
    values[:3, :4] = np.nan
    return values


def five_maps(**keywords) -> Figure:
    points = ([37.0, 40.0, 41.0], [354.1, -3.7, -8.0], [15.0, np.nan, 11.0])
    truth, mean = field(0), field(1)
    arguments = {"points": points, "coastlines": True} | keywords
    return maps.maps(truth, None, mean, abs(mean), mean - truth, LAT, LON, "tas", "°C", **arguments)


@functools.cache
def all_figures() -> dict[str, Figure]:
    rng = np.random.default_rng(0)
    levels = np.array([1000.0, 850, 500, 250, 50])
    methods = ("analysis", "climatology", "interpolation", "prior", "gaussian", "reconstruction")
    score = {name: rng.uniform(0.5, 3, 5) for name in methods}
    triple = {name: (v.mean(), 0.9 * v.mean(), 1.1 * v.mean()) for name, v in score.items()}
    walk = rng.normal(size=len(DATES)).cumsum()
    spectrum = (np.arange(33), 1.0 / (1 + np.arange(33)) ** 3)
    return {
        "maps": five_maps(),
        "maps without spread": maps.maps(
            field(), field(), field(), None, field(), LAT, LON, "t", "K", coastlines=False, land=field() > 10
        ),
        "profiles": maps.profiles(
            levels, score, intervals={"analysis": (score["prior"], score["prior"] + 1)}
        ),
        "ranks": plots.rank_histogram(
            {"all": rng.integers(90, 110, 17), "withheld": np.ones(17)}, title="ranks"
        ),
        "losses": plots.loss_curves(
            {
                "codec": ([(50 * k, np.exp(-k / 9)) for k in range(1, 41)], [(1000, 0.5), (2000, 0.4)]),
                "denoiser": ([(100, 1.0)], []),
            }
        ),
        "spectra": plots.spectra({"truth": spectrum, "analysis": spectrum}, title="spectra"),
        "bars": plots.bars(
            {"RMSE [K]": triple, "coverage": {"analysis": (0.9, np.nan, np.nan)}}, target={"coverage": 0.9}
        ),
        "series": plots.time_series(
            DATES, {"truth": walk, "analysis": walk + 1}, bands={"analysis": (walk, walk + 2)}, points=walk
        ),
        "modalities": plots.coverage_by_modality(DATES, {"ncep_tas": np.ones(91), "stn_tas": rng.random(91)}),
        "correlations": plots.correlations(
            rng.uniform(-1, 1, (2, 3)), ["rain", "OLR"], ["850", "500", "250"]
        ),
    }


@pytest.mark.parametrize("name", NAMES)
def test_no_text_overlaps_another_or_leaves_the_figure(name):
    figure = all_figures()[name]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = figure.bbox.padded(1)
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in texts]
    # Ticks beyond the limits of an axis exist but are not drawn; they lie outside all axes and the margins.
    boxes = [(text, box) for text, box in boxes if box.width > 1 and drawn(figure, text, box)]
    assert boxes
    for text, box in boxes:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text
    for (one, a), (two, b) in itertools.combinations(boxes, 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(overlap) < 1.5, (one, two)


def drawn(figure: Figure, text: str, box) -> bool:
    """Whether a text is no tick label out of its axis' view."""
    for axis in figure.axes:
        for direction in (axis.xaxis, axis.yaxis):
            view = sorted(direction.get_view_interval())
            for tick in (*direction.get_major_ticks(), *direction.get_minor_ticks()):
                for label in (tick.label1, tick.label2):
                    same = label.get_text() == text and label.get_window_extent().bounds == box.bounds
                    if same and not (label.get_visible() and view[0] <= tick.get_loc() <= view[1]):
                        return False
    return True


def test_fields_share_a_scale_and_errors_are_symmetric():
    figure = five_maps()
    scales = {axis.get_title(): axis.collections[0].get_clim() for axis in figure.axes if axis.get_title()}
    assert scales["truth"] == scales["analysis mean"] == scales["observations"]
    low, high = scales["error (analysis mean − truth)"]
    assert low == -high
    assert scales["spread (standard deviation)"][0] == 0
    figure = five_maps(anomaly=True)
    low, high = figure.axes[0].collections[0].get_clim()
    assert low == -high


def test_missing_cells_are_left_to_the_grey_background():
    axis = five_maps().axes[0]
    drawn_values = axis.collections[0].get_array()
    assert np.array_equal(np.ma.getmaskarray(drawn_values).reshape(LAT.size, LON.size), np.isnan(field(0)))
    assert axis.get_facecolor() == pytest.approx((0xDC / 255,) * 3 + (1,))


def test_points_stand_where_they_are_and_missing_ones_do_not():
    axis = next(a for a in five_maps().axes if a.get_title() == "observations")
    np.testing.assert_allclose(axis.collections[-1].get_offsets(), [[-5.9, 37.0], [-8.0, 41.0]])
    assert list(axis.collections[-1].get_array()) == [15.0, 11.0]


def test_a_field_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="lat and lon are of lengths"):
        maps.maps(field().T, None, field(), None, field(), LAT, LON, "t", "K", coastlines=False)


def test_coastline_is_the_earths():
    """Known places by the sea have a coast within 100 km (the scale is coarse), inland capitals have none."""
    points = np.concatenate(coastlines())
    for lat, lon in ((38.7, -9.3), (35.9, -5.5), (-34.4, 18.5), (40.6, -74.0)):
        assert np.hypot(points[:, 1] - lat, (points[:, 0] - lon) * np.cos(np.deg2rad(lat))).min() < 0.9
    for lat, lon in ((40.4, -3.7), (55.8, 37.6), (-15.8, -47.9)):
        assert np.hypot(points[:, 1] - lat, (points[:, 0] - lon) * np.cos(np.deg2rad(lat))).min() > 2
    assert all(np.abs(np.diff(line[:, 0])).max() < 180 for line in coastlines())
    edge = [np.abs(np.abs(line[:, 0]) - 180) < 1e-2 for line in coastlines()]
    seam = [line for line, at in zip(coastlines(), edge, strict=True) if (at[:-1] & at[1:]).any()]
    assert not seam


def test_extent_reaches_the_pole_and_no_further():
    lat = np.linspace(90, -90, 33)
    assert extent(lat, np.arange(64) * 5.625)[2:] == (-90.0, 90.0)
    assert aspect(lat, np.arange(64) * 5.625) == 1
    assert aspect(LAT, LON) == pytest.approx(1 / np.cos(np.deg2rad(39.5)))
    np.testing.assert_allclose(edges([0, 1, 3]), [-0.5, 0.5, 2, 4])


def test_range_of_nothing_is_a_range():
    low, high = common_range([np.full(3, np.nan), None], symmetric=False)
    assert low < high
    low, high = common_range([np.zeros(3)], symmetric=True)
    assert low < high


def test_gap_between_winters_stays_grey():
    dates = np.concatenate([DATES, DATES + np.timedelta64(366, "D")])
    figure = plots.coverage_by_modality(dates, {"tas": np.ones(len(dates))})
    table = figure.axes[0].images[0].get_array()
    assert table.shape == (1, 366 + len(DATES))
    assert np.ma.getmaskarray(table).sum() == 366 - len(DATES)
