"""The page as text and as a real browser shows it, with content that attacks it too."""

import datetime as dt
import html.parser
import re

import pytest

from operations.report import charts, page, sections
from operations.report.figures import MOST_STEPS, step
from tests.operations import browser, report_figures
from tests.operations.report_figures import HOSTILE, NOON, empty, figures


class Outline(html.parser.HTMLParser):
    """The elements of a page, each with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


def outline(*args, **kwargs):
    return Outline(page.render(*args, **kwargs).decode()).elements


def test_text_of_messages_changes_no_element_and_no_attribute():
    letters = tuple(f"{i}" if text else "" for i, text in enumerate(HOSTILE))
    plain, hostile = outline(figures(letters)), outline(figures(HOSTILE))
    assert [tag for tag, _ in plain] == [tag for tag, _ in hostile]
    assert plain == hostile


def test_no_element_runs_or_loads_anything():
    elements = outline(figures(HOSTILE), page.Refresh(30))
    assert {tag for tag, _ in elements} & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "base",
        "form",
    } == set()
    names = {name for _, attributes in elements for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in ("src", "style", "srcset")]
    assert {each["href"] for _, each in elements if "href" in each} == {"/paused"}
    text = page.render(figures(HOSTILE)).decode()
    assert "http:" not in text
    assert "https:" not in text


def test_text_is_shown_without_control_characters_and_not_longer_than_it_may():
    text = page.render(figures(HOSTILE)).decode()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert r"\x1b[31mred\x00\x07\x9b" in text
    assert "x" * (page.LONGEST + 1) not in text
    assert len(text) < 200_000
    assert "{{ 7 * 7 }}" in text
    assert "שלום עולם" in text


def test_every_section_has_a_heading_and_its_figures_as_text():
    elements = outline(figures())
    headings = [each["id"] for tag, each in elements if tag == "h2"]
    named = [each["aria-labelledby"] for tag, each in elements if tag == "section"]
    assert headings == named
    assert len(headings) == len(sections.SECTIONS)
    images = [each for tag, each in elements if tag == "svg" and each.get("role") == "img"]
    assert len(images) == 5
    assert all(each["aria-label"] for each in images)
    assert sum(tag == "summary" for tag, _ in elements) == len(sections.SECTIONS) - 1


def test_the_drift_is_drawn_for_the_features_with_the_most_of_it():
    rows = [
        {
            "feature": f"V{i}",
            "model_version": "v1",
            "psi": 0.2 / i,
            "outside_percent": 0.5,
            "missing_percent": 0.0,
        }
        for i in range(1, 13)
    ]
    some = figures()
    some.rows["feature_drift"] = rows
    bars = sections._drift(some)
    assert [bar.label for bar in bars] == [f"V{i}" for i in range(1, 11)]
    assert (bars[0].value, bars[0].aside) == ("0.20", "0.5 % outside the training")
    assert bars[0].percent == 80.0  # of the limit, which nothing reaches
    rows[0]["psi"], rows[1]["model_version"] = 4.0, "v2"
    bars = sections._drift(some)
    assert (bars[0].percent, bars[1].percent) == (100.0, 2.5)
    assert bars[1].aside == "v2: 0.5 % outside the training"
    rows[1]["missing_percent"], rows[2]["outside_percent"] = 2.0, 0.0
    bars = sections._drift(some)
    assert (bars[1].aside, bars[2].aside) == ("v2: 0.5 % outside the training, 2 % missing", "v1")


def test_the_versions_that_scored_last_have_a_colour_and_the_older_ones_share_one():
    some = figures(tuple(f"v{i}" for i in range(9, 4, -1)))
    drawn = sections._versions(some)
    assert drawn.series == {"version1": "v9", "version2": "v8", "version3": "v7", "older": "older ones"}
    first = [mark.kind for mark in drawn.bars if mark.points[0][0] == charts.LEFT]
    assert first == ["version1"]
    assert {mark.kind for mark in drawn.bars} == set(drawn.series)
    (last,) = {mark.points[1][0] for mark in drawn.bars if mark.points[1][0] >= charts.RIGHT - 1}
    heights = {
        mark.kind: mark.points[1][1] - mark.points[0][1] for mark in drawn.bars if mark.points[1][0] == last
    }
    assert heights["older"] == pytest.approx(2 * heights["version1"], abs=0.1)


def test_the_shadow_agreement_is_the_share_of_alerts_that_both_raise():
    some = figures(("v1", "v2"))
    some.rows["shadow_agreement"][1] |= {"alerts": 0, "gained": 0, "lost": 0, "agreement_percent": None}
    first, second = sections._shadow(some)
    assert (first.label, first.value, first.percent) == ("2026-03-08 v1 next beside v1", "82.6 %", 82.6)
    assert first.aside == "3 gained, 5 lost, of 43 alerts in 9,000 transactions"
    assert second.value == "100 %"  # neither raised one


def test_a_shadow_that_was_promoted_is_no_trial_that_went_well():
    some = figures(("v1", *["v2"] * sections.MOST_SHADOWS))
    for row in some.rows["shadow_agreement"][1:]:
        row |= {"shadow_version": "v2", "gained": 0, "lost": 0, "agreement_percent": 100.0}
    trial, promoted = sections._shadow(some)
    assert (trial.label, trial.value) == ("2026-03-08 v1 next beside v1", "82.6 %")
    assert (promoted.label, promoted.value, promoted.percent) == ("2026-03-08 v2 is in use itself", "", 0)
    assert promoted.aside == "it agrees with itself: launch the stream without --shadow_model"
    some.rows["shadow_agreement"] = some.rows["shadow_agreement"][:1]
    assert sections._shadow(some) == [trial]


def test_the_value_of_a_feature_is_shown_where_the_table_has_it():
    first, second, third = sections._reasons(report_figures.alert("v")["top_features"])
    assert (first.aside, second.aside, third.aside) == ("v", "", "1.5")
    assert (first.percent, second.percent, third.percent) == (100.0, 50.0, 0.0)
    assert (first.value, second.value) == ("+4.00", "-2.00")


def test_without_rows_the_page_says_so():
    text = page.render(empty()).decode()
    for section in sections.SECTIONS:
        assert section.title in text
        assert section.empty in text
    assert "Since the last score" in text


def test_scores_without_alerts_have_no_thresholds_and_are_drawn():
    some = figures()
    some.rows["thresholds"].clear()
    assert b"Scores" in page.render(some)


def test_the_tiles_count_what_is_stored():
    assert dict(page.tiles(figures())) == {
        "Transactions": "6,600",
        "Alerts": "25 (0.379\N{NO-BREAK SPACE}%)",
        "Dead letters": "59",
        "Since the last score": "1 min",
    }


def test_a_share_of_all_transactions_is_a_hundred_percent():
    some = figures()
    for row in some.rows["alerts_over_time"]:
        row["transactions"] = row["medium"] + row["high"]
    assert dict(page.tiles(some))["Alerts"] == "25 (100\N{NO-BREAK SPACE}%)"


def test_scores_of_millions_are_read_at_the_axis():
    drawn = charts.histogram({-10: {"normal": 5}, 70: {"high": 1}}, 10, {}, {})
    assert [tick.label for tick in drawn.x_ticks][-3:] == ["1k", "100k", "10M"]


def test_a_problem_is_shown_and_escaped():
    text = page.render(None, page.Refresh(5, paused=True), "<b>no</b> answer").decode()
    assert "&lt;b&gt;no&lt;/b&gt; answer" in text
    assert 'http-equiv="refresh"' not in text


@pytest.mark.parametrize("days", [0, 0.0001, 0.04, 1, 7, 365, 3000, 3_650_000])
def test_a_time_axis_has_few_steps_or_the_longest(days):
    first = dt.datetime(1, 1, 1, tzinfo=dt.UTC)
    seconds = step(first, first + dt.timedelta(days=min(days, 3_600_000)))
    assert seconds == 604_800 or days * 86_400 / seconds <= MOST_STEPS
    assert 604_800 % seconds == 0


def test_bars_stand_on_each_other_and_inside_the_axes():
    times = [NOON, NOON + dt.timedelta(seconds=20)]
    drawn = charts.stacked(times, {"medium": [2, 0], "high": [4, 3]}, 10, {})
    (first, second, third) = [mark.points for mark in drawn.bars]
    assert second[1][1] == first[0][1]
    assert first[1][1] == third[1][1] == charts.BOTTOM
    assert second[0][1] == charts.TOP
    assert third[0][0] == pytest.approx(charts.LEFT + (charts.RIGHT - charts.LEFT) * 2 / 3, abs=0.01)


def test_a_line_breaks_where_a_step_has_no_value():
    times = [NOON + dt.timedelta(seconds=10 * i) for i in (0, 1, 3)]
    drawn = charts.lines(times, {"median": [5, 10, -7]}, 10, {})
    assert [len(mark.points) for mark in drawn.lines] == [2, 1]
    assert drawn.lines[1].points[0][1] == charts.BOTTOM
    assert [tick.label for tick in drawn.y_ticks] == ["1 ms", "10 ms"]


def test_a_distribution_over_all_numbers_is_drawn_inside_the_axes():
    bins = {-30: {"normal": 10**9}, 3000: {"high": 1}}
    drawn = charts.histogram(bins, 10, {"medium": 1e-9, "high": float("inf"), "none": 0.0}, {})
    assert len(drawn.x_ticks) <= 7
    assert [rule.label for rule in drawn.rules] == ["medium"]
    for mark in drawn.bars:
        for x, y in mark.points:
            assert charts.LEFT - 0.5 <= x <= charts.RIGHT
            assert charts.TOP <= y <= charts.BOTTOM


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if not browser.find():
        pytest.skip(f"no browser: none of {', '.join(browser.NAMES)} is installed")
    with browser.started(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


CONTRAST = """(() => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = node => {
    for (let each = node; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
  };
  let worst = 99;
  for (const node of document.querySelectorAll("h1,h2,h3,p,dt,dd,small,a,summary,th,td,span,svg text")) {
    const style = getComputedStyle(node);
    const pair = [light(node.tagName === "text" ? style.fill : style.color), light(behind(node))];
    worst = Math.min(worst, (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05));
  }
  return worst;
})()"""


@pytest.mark.integration
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("texts", [("tx-1", "tx-2"), HOSTILE], ids=["plain", "hostile"])
def test_a_browser_shows_the_page(tab, tmp_path, texts, width, scheme):
    (tmp_path / "report.html").write_bytes(page.render(figures(texts)))
    tab.open((tmp_path / "report.html").as_uri(), width, scheme)
    assert tab.ask("document.title") == "Card transactions: anomalies in my-project.anomaly"
    # Nothing runs, nothing is loaded, and the style sheet is the one that the policy allows.
    assert [each["request"]["url"] for each in tab.reported("Network.requestWillBeSent")] == [
        (tmp_path / "report.html").as_uri()
    ]
    assert tab.reported("Log.entryAdded") == []
    assert tab.ask("document.querySelectorAll('script, img, base').length") == 0
    assert tab.ask("getComputedStyle(document.body).display") == "block"
    # It fits the window, and its text can be read.
    assert tab.ask("document.documentElement.scrollWidth") <= width
    tab.ask("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert tab.ask("document.documentElement.scrollWidth") <= width
    assert tab.ask(CONTRAST) >= 4.5
    shade = tab.ask("getComputedStyle(document.body).backgroundColor")
    assert shade == ("rgb(244, 245, 247)" if scheme == "light" else "rgb(18, 22, 27)")


@pytest.mark.integration
def test_the_policy_stops_a_script_even_where_it_is_markup(tab, tmp_path):
    script = b"<script>document.title = 'owned'</script><b onclick='0' style='color: red'></b></body>"
    (tmp_path / "report.html").write_bytes(page.render(figures()).replace(b"</body>", script))
    tab.open((tmp_path / "report.html").as_uri())
    assert tab.ask("document.querySelectorAll('script').length") == 1
    assert tab.ask("document.title") != "owned"
