"""The page by keyboard and screen reader, in high contrast, and against WCAG 2.2 AA."""

import pytest

from webapp.conftest import upload, visiting

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice"]}


def _findings(page) -> list[str]:
    page.wait_for_timeout(100)
    results = axe.Axe().run(page, options=RULES).response
    assert len(results["passes"]) > 20
    return [
        f"{rule['id']}: {node['html'][:150]} {node['failureSummary'][:300]}"
        for rule in results["violations"]
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_axe_finds_nothing(browser, served, knee, noise, tmp_path, scheme, width):
    (tmp_path / "broken.png").write_bytes(b"no image")
    settings = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}, "reduced_motion": "reduce"}
    with visiting(browser, served.url, **settings) as page:
        assert _findings(page) == []
        upload(page, knee("9000001L.png"), noise, tmp_path / "broken.png")
        for name in ("9000001L.png", "broken.png", "noise.png"):
            page.get_by_role("radio", name=f"Show {name}").check()
            assert _findings(page) == [], name


@pytest.mark.parametrize("scheme, width", [("light", 375), ("dark", 1280)])
def test_axe_finds_nothing_on_films(browser, films, film, scheme, width):
    settings = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}, "reduced_motion": "reduce"}
    with visiting(browser, films.url, **settings) as page:
        upload(page, film(), film("leg"), film("none"))
        for name in ("both.png, right knee", "leg.png", "none.png"):
            page.get_by_role("radio", name=f"Show {name}").check()
            assert _findings(page) == [], name


def test_by_keyboard_alone(page, knee):
    page.locator("#file").focus()
    upload(page, knee("a.png", 1), knee("b.png", 2))
    page.locator("#card .badge").wait_for()
    assert page.evaluate("() => document.activeElement.id") == "file"  # it stays where it was
    assert page.get_by_role("status").inner_text().startswith("2 graded, 0 not graded. ")

    def active(what="document.activeElement"):
        return page.evaluate(f"() => {what}")

    # Two are sent at once: whichever is graded first is shown.
    shown, other = sorted(("a.png", "b.png"), key=lambda name: not page.get_by_label(f"Show {name}").is_checked())
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(active("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"))
        if reached[-1] == f"Show {shown}":
            break
    assert reached[-1] == f"Show {shown}"
    page.keyboard.press("ArrowDown")  # after the last comes the first again
    assert active("document.activeElement.getAttribute('aria-label')") == f"Show {other}"
    assert page.locator("#card .file").inner_text().startswith(other)
    assert page.get_by_role("status").inner_text().startswith(f"{other}: KL")  # announced
    page.keyboard.press("Tab")
    assert active("document.activeElement.className") == "stage"
    # Zoom, move, window and invert.
    for key in ("+", "ArrowRight", "i"):
        page.keyboard.press(key)
    layers = page.locator(".layers")
    assert layers.evaluate("layers => layers.style.transform") == "translate(-16px, 0px) scale(1.5)"
    assert page.get_by_role("button", name="Invert").get_attribute("aria-pressed") == "true"
    page.keyboard.press("0")
    assert layers.evaluate("layers => layers.style.transform") == "translate(0px, 0px) scale(1)"


def test_every_control_has_a_name_and_radios_a_group(page, knee):
    upload(page, knee("9000001L.png"), knee("b.png"))
    page.locator("#card .badge").wait_for()
    groups = page.locator("#card fieldset").all()
    assert len(groups) == 3 and all(group.locator("legend").inner_text() for group in groups)
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('input, button, a, select')].filter(e => e.offsetParent && !("
        "e.innerText || e.getAttribute('aria-label') || e.labels?.length)).map(e => e.outerHTML)"
    )
    assert unnamed == []
    assert page.locator("table caption").count() == 1
    for image in page.locator("img").all():
        assert image.get_attribute("alt") is not None


def test_focus_is_plain_to_see(page, knee):
    upload(page, knee("a.png", 1), knee("b.png", 2))
    for control in ("#language", ".stage", ".tool >> nth=0", "#forget", ".slider input >> nth=0"):
        page.locator(control).focus()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        style = page.locator(control).evaluate("e => { const s = getComputedStyle(e); return s.outlineWidth; }")
        assert style == "3px", control


def test_high_contrast_keeps_bars_and_choices(browser, served, knee):
    with visiting(browser, served.url, forced_colors="active") as page:
        upload(page, knee("a.png", 1), knee("b.png", 2))
        page.locator("#card .bar").first.wait_for()
        colours = page.evaluate(
            "() => ['.chosen .bar', 'li:not(.chosen) .bar', '.track', '#card'].map(s =>"
            " getComputedStyle(document.querySelector('#card ' + s.replace('#card', '.card'))).backgroundColor)"
        )
        assert len({colours[0], colours[1], colours[3]}) == 3  # chosen, other, ground
        assert page.locator(".track").first.evaluate("e => getComputedStyle(e).borderTopStyle") == "solid"
        assert page.locator("tbody tr.chosen").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
