"""The page at every width, the viewer, and languages."""

import pytest

from webapp.conftest import upload, visiting

_MEASURE = """() => {
  const box = (selector) => document.querySelector(selector).getBoundingClientRect();
  const outside = [...document.querySelectorAll('#card .card *')].filter((element) => {
    const [inner, card] = [element.getBoundingClientRect(), box('#card .card')];
    return inner.width && !element.closest('.stage, .filter, .unseen')
      && (inner.right > card.right + 1 || inner.left < card.left - 1);
  });
  return { page: document.documentElement.scrollWidth, stage: box('.stage').width, card: box('#card .card').width,
    track: Math.min(...[...document.querySelectorAll('.details > .bars .track')].map((track) => track.clientWidth)),
    outside: outside.map((element) => element.outerHTML.slice(0, 100)) };
}"""


def test_nothing_breaks_at_any_width(page, knee):
    upload(page, knee("an X-ray with a long and unbreakable_name_of_a_file_that_goes_on_and_on.png"), knee("b.png"))
    page.locator(".stage").wait_for()
    for width in range(320, 1921, 100):
        page.set_viewport_size({"width": width, "height": 900})
        measured = page.evaluate(_MEASURE)
        assert measured["page"] <= width, (width, measured)
        assert measured["stage"] >= min(250, 0.8 * measured["card"]), (width, measured)
        assert measured["track"] >= 90, (width, measured)
        assert measured["outside"] == [], (width, measured)


def test_zoom_move_window_and_invert(page, knee):
    upload(page, knee())
    stage = page.locator(".stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(dx, dy):
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + dx / 2, y + dy / 2)
        page.mouse.move(x + dx, y + dy)
        page.mouse.up()

    def look():
        return page.evaluate(
            "() => [document.querySelector('.layers').style.transform, ...['slope', 'intercept'].map(name =>"
            " Number(document.querySelector('.filter feFuncR').getAttribute(name)))]"
        )

    assert look() == ["translate(0px, 0px) scale(1)", 1, 0]
    page.get_by_role("button", name="Zoom in").click()
    drag(30, -20)
    assert look()[0] == "translate(30px, -20px) scale(1.5)"
    page.get_by_role("radio", name="changes the window").check()
    drag(-box["width"] / 2, 0)  # half as wide
    assert look()[1] == pytest.approx(255 / 127.5, rel=0.02) and look()[2] == pytest.approx(-0.5, abs=0.02)
    page.get_by_role("button", name="Invert").click()
    assert look()[1] == pytest.approx(-2, rel=0.02) and look()[2] == pytest.approx(1.5, abs=0.02)
    page.get_by_role("slider", name="Window width").fill("255")
    assert look()[1:] == [-1, pytest.approx(1, abs=0.01)]
    page.get_by_role("button", name="Reset").click()
    assert look() == ["translate(0px, 0px) scale(1)", 1, 0]
    page.get_by_role("radio", name="moves").check()
    stage.dblclick()
    assert "scale(2.5)" in look()[0]


def test_the_map_is_framed_where_it_applies(page, tmp_path):
    from dataset_script.synthetic import draw_knee

    draw_knee(2, "L", 0, 120).resize((180, 120)).save(tmp_path / "wide.png")
    upload(page, tmp_path / "wide.png")
    frame = page.locator(".frame").bounding_box()
    stage = page.locator(".stage").bounding_box()
    assert frame["width"] == pytest.approx(frame["height"], rel=0.02)
    assert frame["height"] == pytest.approx(stage["height"], rel=0.02)
    assert frame["x"] - stage["x"] == pytest.approx(stage["width"] / 6, rel=0.05)
    assert "dashed square" in page.locator("#card .caption").inner_text()


@pytest.mark.parametrize(
    "locale, title",
    [("de-AT", "Kniearthrose"), ("fr-FR", "arthrose du genou"), ("es-MX", "artrosis"), ("ja-JP", "Knee")],
)
def test_the_browser_s_language(browser, served, locale, title):
    with visiting(browser, served.url, locale=locale) as page:
        assert title in page.locator("h1").inner_text()
        assert page.evaluate("() => document.documentElement.lang") == (locale[:2] if locale[:2] != "ja" else "en")


def test_the_language_is_switched_with_the_results_in_place(page, knee):
    upload(page, knee("a.png", 1), knee("b.png", 2))
    page.locator("#card .badge").wait_for()
    name = page.locator("#card h3").inner_text()
    page.locator("#language").focus()
    page.locator("#language").select_option("fr")
    page.get_by_role("heading", name="Résultats").wait_for()
    assert page.locator("#card h3").inner_text()[:4] == name[:4] and "Agrandir" in page.content()
    assert page.get_by_role("columnheader", name="Côté").count() == 1
    assert page.evaluate("() => document.activeElement.id") == "language" and page.title().endswith("graduée")
    with page.expect_download() as download:
        page.get_by_role("link", name="Rapport d’une page, HTML").click()
    assert '<html lang="fr">' in download.value.path().read_text(encoding="utf-8")
