import numpy as np
import pytest
from matplotlib.figure import Figure

from rdbcl_jax.reporting import plots
from rdbcl_jax.reporting.svg import svg

TASKS = ["a", "b"]
MATRIX = np.array([[0.2, 0.3], [0.9, 0.3], [0.7, 0.8]])


def figures(values):
    x = np.arange(len(values))
    limits = plots.pooled_limits(values)
    partial = np.where(np.arange(3)[:, None] < 2, MATRIX, np.nan)
    yield plots.portability(x, {"RP": values, "β": values}, {"RP": limits, "β": limits})
    for matrix in (MATRIX, partial, np.full((3, 2), np.nan)):
        yield plots.retention(matrix, TASKS)
        yield plots.before_and_after(matrix, TASKS)
        yield plots.accuracy_matrix(matrix, TASKS)
    yield plots.averages({"m": [MATRIX.mean(1), partial.mean(1)], "empty": []}, TASKS)
    yield plots.final_by_task({"m": MATRIX[-1:], "empty": np.array([])}, TASKS)


@pytest.mark.parametrize(
    "values",
    [np.linspace(0.1, 1, 500), np.full(3, np.nan), np.ones(1), np.array([1e-9, np.inf, np.nan, 5])],
    ids=["many", "nan", "one", "odd"],
)
def test_every_figure_draws(values):
    for drawing in figures(values):
        assert isinstance(drawing, Figure)
        assert svg(drawing, "title").startswith("<svg viewBox")


def test_drawing_touches_no_global_state():
    import matplotlib

    before = dict(matplotlib.rcParams)
    svg(plots.retention(MATRIX, TASKS), "t")
    assert dict(matplotlib.rcParams) == before


def test_svg_is_repeatable_self_contained_and_themed():
    text, again = (svg(plots.retention(MATRIX, TASKS), "t") for _ in range(2))
    assert text == again
    assert "http" not in text and "<metadata" not in text and "font-family" not in text
    assert "var(--muted)" in text and plots.MUTED not in text


def test_svg_keeps_the_digits_of_tick_labels():
    x = np.arange(5)
    drawing = plots.held_out(x, np.stack([x / 800], 1), ["a"])
    drawing.axes[0].yaxis.set_major_formatter("{x:.3f}")
    assert ">0.004<" in svg(drawing, "t")


def test_accuracies_of_zero_are_at_the_foot_of_the_axis():
    for drawing in (
        plots.retention(np.zeros((3, 2)), TASKS[:2]),
        plots.held_out(np.arange(3), np.zeros((3, 1)), ["a"]),
    ):
        assert drawing.axes[0].get_ylim() == (-0.05, 1.05)
    drawing = plots.held_out(np.arange(3), np.full((3, 1), 0.5), ["a"])
    assert drawing.axes[0].get_ylim() != (-0.05, 1.05)


def test_thin_averages_neighbours_and_skips_nan():
    y = np.ones(1000)
    y[::7] = np.nan
    x, mean = plots.thin(np.arange(1000), y, most=100)
    assert len(x) == len(mean) == 100 and (mean == 1).all()
    assert x[0] == 4.5 and x[-1] == 994.5


def test_moving_average_keeps_the_first_value():
    y = np.array([0.0, 1, 2, 3, np.nan, 5])
    smooth = plots.moving_average(y, 2)
    np.testing.assert_allclose(smooth, [0, 1, (0 + 1 + 2 + 3) / 4, (1 + 2 + 3 + 5) / 4, 10 / 3, 4])
    np.testing.assert_array_equal(plots.moving_average(y, 0), y)


def test_colours_are_one_per_name():
    assert len(set(plots.colours([f"t{i}" for i in range(8)]).values())) == 8
    assert len(plots.colours([f"t{i}" for i in range(20)])) == 20
