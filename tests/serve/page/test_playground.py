from __future__ import annotations

import numpy as np
import pytest

from tests.serve.page.browsing import Visits, module
from tests.serve.serving import Running

pytestmark = pytest.mark.slow


def test_the_playground_plots_texts_and_tells_the_closest(server: Running, visit: Visits) -> None:
    texts = ["beavers build dams", "beavers build lodges", "yeast makes dough rise", "a", "bread is baked"]
    with server.client() as client:
        reply = client.post("/v1/embeddings", json={"input": texts, "encoding_format": "float"}).json()
    vectors = np.array([one["embedding"] for one in reply["data"]])
    cosines = vectors @ vectors.T

    page = visit(server.url + "#embeddings")
    page.wait_for_selector(".dot.good")
    page.fill("#embed-text", "\n".join(texts))
    page.click("#embed-send")
    page.wait_for_selector("#plot svg")
    centres = "discs => discs.map(({cx, cy}) => [cx.baseVal.value, cy.baseVal.value])"
    places = page.locator("#plot .disc").evaluate_all(centres)
    assert np.ptp(relative_distances(np.array(places)) - relative_distances(principal(vectors)[0])) < 1e-3

    page.locator("#plot .disc").nth(2).hover()
    order = [index for index in np.argsort(-cosines[2]) if index != 2]
    rows = [row.split("\t") for row in page.locator("#near tbody tr").all_inner_texts()]
    assert [row[1].strip() for row in rows] == [texts[index] for index in order]
    assert [float(row[0]) for row in rows] == pytest.approx([cosines[2, index] for index in order], abs=1e-3)
    assert page.locator("#plot .near").count() == 3

    page.locator("#plot .point").nth(2).focus()
    rightmost = int(np.argmax(np.array(places)[:, 0]))
    for _ in texts:
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#near-title").startswith(f"Closest to “{texts[rightmost]}")


def test_the_playground_refuses_a_single_text(server: Running, visit: Visits) -> None:
    page = visit(server.url + "#embeddings")
    page.fill("#embed-text", "alone\n\n")
    page.click("#embed-send")
    page.wait_for_selector("#embed-form .note")
    assert "at least two lines" in page.inner_text("#embed-form .note")


def test_a_plot_that_is_drawn_again_keeps_the_focus_and_takes_it_from_nobody(server: Running, visit: Visits) -> None:
    page = visit(server.url + "#embeddings")
    page.wait_for_selector(".dot.good")
    page.click("#embed-send")
    page.locator("#plot .point").nth(1).focus()
    page.set_viewport_size({"width": 700, "height": 800})
    page.locator("#plot svg:not([width='689'])").wait_for()
    assert page.evaluate("document.activeElement.matches('.point.on')")
    page.focus("#embed-text")
    page.locator("#plot .disc").nth(3).hover()
    assert page.evaluate("document.activeElement.id") == "embed-text"
    assert page.locator("#plot .point").nth(3).get_attribute("class") == "point on"


def test_the_projection_is_that_of_a_singular_value_decomposition(server: Running, visit: Visits) -> None:
    page = visit(server.url)
    for shape in ((1, 8), (2, 8), (3, 3), (40, 64), (120, 16), (30, 1)):
        vectors = np.random.default_rng(0).normal(size=shape)
        expected, explained = principal(vectors)
        got = module(page, "projection.js", "module.project(given)", vectors.tolist())
        points = np.array(got["points"])
        assert np.all(points.max(0) > -points.min(0) - 1e-7)
        expected *= np.where((points * expected).sum(0) < 0, -1, 1)  # where the largest is a tie, either sign will do
        np.testing.assert_allclose(points, expected, atol=1e-7, err_msg=str(shape))
        assert got["explained"] == pytest.approx(explained)
    equal = module(page, "projection.js", "module.project(given)", [[0.5, 0.5, 0.1]] * 4)
    assert equal["explained"] == 1
    np.testing.assert_allclose(equal["points"], np.zeros((4, 2)), atol=1e-12)


def principal(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """(points on the first two principal axes, the share of the variance that they have), by numpy."""
    left, sizes, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    points = np.zeros((len(vectors), 2))
    points[:, : min(2, len(sizes))] = (left * sizes)[:, :2]
    variance = float((sizes**2).sum())
    return points, float((sizes[:2] ** 2).sum()) / variance if variance > 1e-20 else 1.0


def relative_distances(points: np.ndarray) -> np.ndarray:
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return distances / distances.max()
