"""The report in a headless Chromium: tables, charts, viewer, slider, keys, phone, dark, and no word on the console."""

from __future__ import annotations

import pytest
from browser import Opened, chromium
from report_runs import measured_runs

from milo_restore.report import write_report


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two methods on three images with references, and one on two without."""
    folder = tmp_path_factory.mktemp("report")
    runs = measured_runs(folder / "a", names=("0", "1", "a name that is far too long for a phone's narrow columns"))
    runs += measured_runs(folder / "b", names=("8", "9"), methods=(("alone", 6),), ref=False)
    write_report([str(run) for run in runs], folder / "report.html", progress=False)
    return folder / "report.html"


@pytest.fixture
def opened(browser, report):
    found = Opened(browser, report)
    yield found
    assert found.problems == []
    found.page.close()


def panes(page):
    """The pictures' transforms in the first viewer."""
    return page.eval_on_selector_all("#group0 .panes img", "nodes => nodes.map(node => node.style.transform)")


def test_the_table_sorts_best_first_and_back(opened):
    table = opened.page.locator("#group0 table")
    head = table.locator("thead th", has_text="psnr")
    rows = table.locator("tbody th")
    assert rows.all_inner_texts() == ["strong", "weak"]
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert rows.all_inner_texts() == ["strong", "weak"]
    head.locator("button").focus()
    opened.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert rows.all_inner_texts() == ["weak", "strong"]
    table.locator("thead th", has_text="milo:mini").locator("button").click()
    assert head.get_attribute("aria-sort") == "none"
    assert rows.all_inner_texts() == ["strong", "weak"]


def test_zoom_keeps_all_pictures_in_step(opened):
    page = opened.page
    assert len(panes(page)) == 4  # input, two methods, reference
    view = page.locator("#group0 .panes .view").nth(1)
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(200)
    assert set(panes(page)) == {"translate(0%, 0%) scale(1)"}  # whoever scrolls the page does not zoom
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    page.mouse.wheel(0, -300)
    page.wait_for_function("document.querySelector('#group0 .panes img').style.transform.includes('scale(2.7')")
    (zoomed,) = set(panes(page))
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 8, box["y"] + box["height"] / 4, steps=3)
    page.mouse.up()
    (moved,) = set(panes(page))
    assert moved != zoomed
    view.focus()
    page.keyboard.press("ArrowLeft")
    (keyed,) = set(panes(page))
    assert keyed != moved
    page.keyboard.press("0")
    assert set(panes(page)) == {"translate(0%, 0%) scale(1)"}
    page.keyboard.press("+")
    assert "scale(1.5)" in panes(page)[0]
    assert "scale(1)" in page.eval_on_selector("#group1 .panes img", "node => node.style.transform")


def test_the_slider_cuts_the_left_picture(opened):
    page = opened.page
    compare = page.locator("#group0 .slider")
    assert not compare.is_visible()
    page.locator("#group0 button", has_text="Slider").click()
    assert compare.is_visible()
    clip = "nodes => getComputedStyle(nodes[nodes.length - 1]).clipPath"
    assert page.eval_on_selector_all("#group0 .slider img", clip) == "inset(0px 50% 0px 0px)"
    compare.locator("input[type=range]").focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.eval_on_selector_all("#group0 .slider img", clip) == "inset(0px 40% 0px 0px)"
    stage = compare.locator(".view")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20, steps=2)
    page.mouse.up()
    assert page.eval_on_selector_all("#group0 .slider img", clip) == "inset(0px 75% 0px 0px)"
    before = page.eval_on_selector_all("#group0 .slider img", "nodes => nodes[0].src")
    compare.locator("select").nth(1).select_option(label="reference")
    assert page.eval_on_selector_all("#group0 .slider img", "nodes => nodes[0].src") != before


def test_maps_images_and_lists(opened):
    page = opened.page
    sources = "nodes => nodes.map(node => node.src)"
    pictures = page.eval_on_selector_all("#group0 .panes img", sources)
    page.locator("#group0 .panes .view").first.focus()
    page.keyboard.press("m")
    maps = page.eval_on_selector_all("#group0 .panes img", sources)
    assert [a == b for a, b in zip(pictures, maps)] == [True, False, False, True]
    assert page.locator("#group0 .ramp").is_visible()
    page.keyboard.press("m")  # the focus stays where it was
    page.keyboard.press("n")
    assert page.locator("#group0 .viewer select").first.input_value() == "1"
    assert page.eval_on_selector_all("#group0 .panes img", sources) != pictures
    worst = page.locator("#group0 .lists ol").first.locator("button").first
    assert worst.inner_text().startswith("a name")  # it got the strongest noise
    page.locator("#group0 .viewer select").first.select_option("2")
    pane = page.locator("#group0 .panes img").nth(1)  # behind the input: the first run's
    assert worst.locator("img").get_attribute("src") == pane.get_attribute("src")
    assert pane.evaluate("node => node.closest('figure').innerText").count("milo:mini") == 1
    page.locator("#group0 .viewer select").first.select_option("0")
    worst.click()
    assert page.locator("#group0 .viewer select").first.input_value() == "2"
    assert page.locator("#group1 button", has_text="MILO maps").count() == 0


def test_bars_are_the_values(opened):
    page = opened.page
    assert page.locator("#group0 .chart rect").count() == 6
    widths = page.eval_on_selector_all(
        "#group0 .chart rect", "nodes => nodes.map(node => Number(node.getAttribute('width')))"
    )
    values = page.eval_on_selector_all(
        "#group0 .chart rect title", "nodes => nodes.map(node => Number(node.textContent.split(': ').pop()))"
    )
    assert sorted(range(6), key=widths.__getitem__) == sorted(range(6), key=values.__getitem__)
    page.locator("#group0 .charts select").nth(1).select_option(label="by weak")
    assert page.locator("#group0 .chart .name").first.locator("title").text_content() == "0"
    page.locator("#group0 .charts select").first.select_option("milo:mini")
    assert "axis from 0 to" in page.locator("#group0 .charts .hint").inner_text()
    assert page.locator("#group0 .chart .cut").count() == 0


def test_an_axis_that_does_not_start_at_0_says_so(opened):
    page = opened.page
    page.evaluate("""() => {
        const group = {names: ["a"], runs: ["x", "y"], metrics: {m: "higher"}, values: {m: [[30], [29]]}};
        window.hint = document.createElement("span");
        window.svg = bars(group, "m", "name", () => {}, hint, 800);
    }""")
    assert "it does not start at 0, so bars show differences, not sizes" in page.evaluate("hint.textContent")
    assert page.evaluate("svg.querySelectorAll('.cut').length") == 1


def test_the_slider_and_its_handle_are_on_the_screen_at_once(browser, report):
    """At 900 pixels and less, portrait pictures too."""
    found = Opened(browser, report, width=1440, height=600)
    found.page.locator("#group0 button", has_text="Slider").click()
    found.page.wait_for_timeout(100)
    for part in ("input[type=range]", ".view"):
        box = found.page.locator("#group0 .slider " + part).bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] < 601, part  # scrolling goes by whole pixels
    found.page.close()


def test_sections_link_to_the_top(opened):
    opened.page.locator("#group1 .top").click()
    opened.page.wait_for_function("window.scrollY === 0")


def test_light_dark_and_keys(browser, report):
    found = Opened(browser, report, dark=True)
    ground = "() => getComputedStyle(document.body).backgroundColor"
    assert found.page.evaluate(ground) == "rgb(22, 22, 20)"
    found.page.locator("#theme").click()
    assert found.page.evaluate(ground) == "rgb(252, 252, 250)"
    found.page.locator("#help").click()
    assert found.page.locator("#keys").is_visible()
    assert found.problems == []
    found.page.close()


def test_a_phone_scrolls_down_only(browser, report):
    found = Opened(browser, report, width=360, touch=True)
    assert found.page.evaluate("document.documentElement.scrollWidth") == 360
    assert not found.page.locator("#group0 .cue").is_visible()
    found.page.set_viewport_size({"width": 240, "height": 740})
    found.page.locator("#group0 .cue").wait_for(state="visible")  # now the table is wider than the screen, and says so
    found.page.set_viewport_size({"width": 360, "height": 740})
    found.page.locator("#group0 button", has_text="Slider").tap()
    assert found.page.evaluate("document.documentElement.scrollWidth") == 360
    assert found.page.locator("#group0 .slider .view").bounding_box()["width"] <= 360
    assert found.problems == []
    found.page.close()


def test_every_control_has_a_name(opened):
    unnamed = """() => [...document.querySelectorAll('button, select, input, [tabindex]')]
        .filter(node => !(node.getAttribute('aria-label') || node.textContent.trim())).map(node => node.outerHTML)"""
    assert opened.page.evaluate(unnamed) == []
