"""The page of a comparison: its markup, and what a browser makes of it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from cil.compare.comparison import compare
from cil.compare.fairness import findings
from cil.compare.page import TEMPLATES, page, templates
from cil.compare.tables import as_json
from tests.result_files import ROOT, result, write

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
PUBLISHED = ("cifar100_b0_10_memory", "cifar100_few_shot_memory", "cifar100_si_blurry/D50_B50")
MIB = 2**20
METHODS = ("Replay", "ICaRL", "WA", "BiC", "FOSTER", "DER", "MEMO")
HOSTILE = '<img src=x onerror="boom=1">&amp;</script><script>boom=1</script>$x$'
BUDGETS = (MIB, 2 * MIB, 3 * MIB)


def many():
    """Seven methods at three budgets with three seeds, one without exemplars, an upper bound and a hostile name."""
    contents = []
    for m, name in enumerate(METHODS):
        for budget in BUDGETS:
            for seed in range(3):
                last = 0.3 + 0.02 * m + 0.05 * budget / MIB + 0.013 * ((seed * 7 + m) % 3)
                sizes = {"exemplars": 20, "budget": budget, "backbone": budget - 20 * 3076 - 1100}
                contents.append(result(name, seed, seen=(0.9, last + 0.15, last), **sizes))
    for seed in range(2):
        contents.append(result("Finetune", seed, seen=(0.9, 0.4, 0.2), exemplars=0))
        bound = {"out_of_budget": True, "config.memory.exemplars": "all"}
        contents.append(result("Joint", seed, seen=(0.9, 0.85, 0.8), exemplars=9000, change=bound))
    for content in contents:
        if content["strategy"].endswith("MEMO"):
            content["name"] = HOSTILE
    return contents


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages by name: (path, comparison, text)."""
    folder = tmp_path_factory.mktemp("pages")
    other = [result("WA", seed, change={"fingerprint": "e" * 64, "scenario.name": "other"}) for seed in range(2)]
    unfair = result("WA", 3, change={"config.trainer.epochs": 99, "command": HOSTILE, "machine.name": HOSTILE})
    places = {
        # At several memories, in few-shot sessions, and along a stream.
        "published": [ROOT / "results" / name for name in PUBLISHED],
        "many": write(folder / "many", *many()),
        "two scenarios": write(folder / "two", result("WA"), result("DER"), *other, unfair),
    }
    made = {}
    for name, runs in places.items():
        comparison = compare(runs)
        text = page(comparison, findings(comparison))
        path = folder / f"{name.replace(' ', '-')}.html"
        path.write_text(text, encoding="utf-8")
        made[name] = (path, comparison, text)
    return made


# --- markup -----------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects ids, places that are linked to or loaded, elements, and the text of scripts."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.loaded, self.tags, self.meta, self.scripts = [], [], [], [], {}, []
        self.words, self.attributes = "", set()
        self.open_script = False

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.attributes |= set(given)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        elif tag != "a":
            self.loaded += [given[key] for key in ("src", "href", "srcset", "data", "action") if key in given]
        if tag == "meta":
            self.meta[given.get("name") or given.get("http-equiv")] = given.get("content")
        self.open_script = tag == "script"
        if self.open_script:
            self.scripts.append((given.get("type"), ""))

    def handle_data(self, data):
        if self.open_script:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        else:
            self.words += data

    def handle_endtag(self, tag):
        self.open_script = False


def read(text):
    reader = Reader()
    reader.feed(text)
    return reader


@pytest.mark.parametrize("name", ["published", "many", "two scenarios"])
def test_the_markup_loads_nothing_and_its_links_lead_somewhere(pages, name):
    _, comparison, text = pages[name]
    found = read(text)
    assert found.loaded == ["data:,"]
    assert len(found.ids) == len(set(found.ids))
    assert found.links and all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert "width=device-width" in found.meta["viewport"]
    assert [kind for kind, _ in found.scripts] == ["application/json", None, None]
    assert not {"img", "i", "link href"} & set(found.tags)
    data = json.loads(found.scripts[0][1])
    assert data["comparison"] == json.loads(json.dumps(as_json(comparison, findings(comparison))))
    assert sum("plotly.js v" in script for _, script in found.scripts) == 1


@pytest.mark.parametrize("name", ["published", "many", "two scenarios"])
def test_the_policy_allows_the_scripts_of_the_page_and_nothing_else(pages, name):
    found = read(pages[name][2])
    hashes = [hashlib.sha256(script.encode()).digest() for kind, script in found.scripts if kind is None]
    allowed = " ".join(f"'sha256-{base64.b64encode(value).decode()}'" for value in hashes)
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    assert found.meta["Content-Security-Policy"] == policy
    assert not [attribute for attribute in found.attributes if attribute.startswith("on")]


def test_words_from_files_are_words_wherever_they_stand(tmp_path):
    """The page of files whose every free text is markup has the elements of the page of files with plain words."""
    keys = ("name", "command", "machine.name", "machine.device", "versions.commit", "versions.torch", "evaluator")
    keys += ("scenario.name", "config.model.backbone", "config.strategy.init_args.new", "selected_by", "fingerprint")

    def shown(text, folder):
        contents = []
        for number in range(2):
            change = {key: text for key in keys} | {"name": f"{text}{number}", "config.strategy.init_args.n": number}
            content = result("WA", change=change)
            for key in ("metrics", "task_confusion", "per_class_accuracy"):
                content[key] = {text: content[key]["linear"]}
            content["scenario"]["class_names"] = [f"{text}{k}" for k in range(6)]
            contents.append(content)
        comparison = compare(write(tmp_path / folder, *contents))
        made = read(page(comparison, findings(comparison)))
        return made.tags, made.words, made.scripts[0][1]

    tags, words, _ = shown(HOSTILE, "hostile")
    assert tags == shown("words", "plain")[0]
    assert words.count(HOSTILE) > 50
    data = shown(HOSTILE, "once more")[2]
    assert not set("<>&'") & set(data)
    assert json.loads(data)["comparison"]["scenarios"][0]["name"] == HOSTILE


def test_templates_leave_no_way_around_escaping():
    for path in TEMPLATES.glob("*.html"):
        text = path.read_text()
        assert not re.search(r"\|\s*safe|autoescape|Markup", text), path
        assert not re.search(r"""=\s*\{[{%]""", text), f"{path}: an attribute without quotes"
        assert "<script" not in text or path.name == "page.html"
    assert templates().from_string("{{ x }}<p title='{{ x }}'>").render(x="<'\"&>").count("&") == 10
    with pytest.raises(UndefinedError):
        templates().from_string("{% if x %}{% endif %}").render()


def test_every_command_and_finding_is_on_the_page(pages):
    text = pages["two scenarios"][2]
    shown = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "python tools/train.py --strategy DER --seed 0" in shown
    assert "different-epochs" in shown.split("<h2>Findings</h2>")[1].split("</section>")[0]
    assert HOSTILE not in text
    assert HOSTILE in read(text).words


@pytest.mark.parametrize(
    ("budgets", "heads", "others"),
    [
        ((None,), ["carried\nMiB", "APM\n% / MiB"], ["AUC", "APM-S"]),
        ((MIB, 2 * MIB), ["AUC-A\nfraction x MiB", "APM-S\n% / MiB"], ["carried\nMiB"]),
    ],
)
def test_areas_are_shown_where_there_are_several_memories(tmp_path, budgets, heads, others):
    contents = [
        result(name, budget=budget, **({"backbone": budget - 20 * 3076 - 1100} if budget else {}))
        for name in ("WA", "DER")
        for budget in budgets
    ]
    text = page(compare(write(tmp_path, *contents)), [])
    shown = text.partition('<script type="application/json"')[0]
    assert [word for word in heads if word not in shown] == []
    assert [word for word in others if word in shown] == []


@pytest.mark.parametrize(("seeds", "words"), [((0,), "1 seed (number 0)"), ((0, 1, 2), "3 seeds (0, 1, 2)")])
def test_seeds_are_counted_and_named(tmp_path, seeds, words):
    comparison = compare(write(tmp_path, *(result("WA", seed) for seed in seeds)))
    assert words in " ".join(read(page(comparison, [])).words.split())


def test_a_page_without_findings_says_so(tmp_path):
    comparison = compare(write(tmp_path, *(result("WA", seed) for seed in (0, 1))))
    assert "found nothing" in page(comparison, [])


# --- in a browser -----------------------------------------------------------------------------------------------------


def needs_browser(test):
    """Slow, and skipped where there is none."""
    return pytest.mark.slow(pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")(test))


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"], timeout=120_000)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, pages):
    """Opens a page; at the end nothing may have gone wrong or been asked for."""
    contexts, troubles, requests = [], [], []

    def opened(name, scheme="light", width=1300):
        context = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 850})
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(120_000)
        tab.on("console", lambda message: troubles.append(message.text) if message.type != "log" else None)
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(pages[name][0].as_uri())
        tab.wait_for_selector("html[data-ready=true]")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []
    assert {url.rpartition("/")[2] for url in requests} <= {path.name for path, _, _ in pages.values()}
    assert all(url.startswith("file:") for url in requests)


DRAWN = """() => [...document.querySelectorAll('figure[data-chart]')].map((figure) => {
  const plot = figure.querySelector('.plot');
  return {
    chart: figure.dataset.chart,
    given: (plot.data || []).length,
    marks: plot.querySelectorAll('.scatterlayer .point, .barlayer .point, .heatmaplayer image').length,
    titles: [...plot.querySelectorAll('.xtitle, .ytitle')].map((title) => title.textContent),
    caption: figure.querySelector('figcaption').textContent,
    width: plot.querySelector('.main-svg').getBoundingClientRect().width,
    room: figure.getBoundingClientRect().width,
  };
})"""
SIDEWAYS = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@needs_browser
@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [
        ("published", "light", 1300),
        ("published", "dark", 390),
        ("many", "light", 390),
        ("many", "dark", 1300),
        ("two scenarios", "light", 800),
    ],
)
def test_every_chart_is_drawn_and_nothing_is_cut(visit, pages, name, scheme, width):
    tab = visit(name, scheme, width)
    charts = tab.evaluate(DRAWN)
    expected = ["memory", "memory", "tasks", "ledger", "ledger_tasks", "classes", "confusion", "confusion"]
    sections = pages[name][1].sections
    assert [chart["chart"] for chart in charts] == [
        kind for section in sections for kind in expected[: len(expected) - (len(section.rows) == 1)]
    ]
    for chart in charts:
        assert chart["given"] and chart["marks"], chart
        assert chart["caption"] and chart["titles"], chart
        assert 0 < chart["width"] <= chart["room"] + 1, chart
    assert tab.evaluate(SIDEWAYS) == 0


@needs_browser
def test_charts_follow_the_scheme_when_it_changes(visit):
    tab = visit("published", "light")
    colours = """() => [getComputedStyle(document.body).backgroundColor,
      document.querySelector('.xtitle').style.fill, document.querySelector('.js-line').style.stroke]"""
    light = tab.evaluate(colours)
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function(f"before => ({colours})()[2] !== before", arg=light[2])
    dark = tab.evaluate(colours)
    assert light[0] == "rgb(255, 255, 255)"
    assert all(a != b for a, b in zip(light, dark, strict=True))


def _column(tab, section, name):
    """Values of a column of the first table in a section, as they stand."""
    return tab.evaluate(
        """([id, name]) => {
          const table = document.querySelector(`#${id} table`);
          const heads = [...table.tHead.rows[0].cells];
          const at = heads.findIndex((head) => head.textContent.replace(/\\s+/g, ' ') === name);
          return [heads[at].getAttribute('aria-sort'),
                  [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[at].dataset.value)];
        }""",
        [section, name],
    )


@needs_browser
def test_headers_sort_by_click_and_by_key(visit, pages):
    tab = visit("many")
    _, comparison, _ = pages["many"]
    averages = [row.metric("average_incremental_accuracy").mean for row in comparison.rows]
    head = tab.locator("#results-0 thead button").filter(has_text="average")
    assert _column(tab, "results-0", "average %")[0] == "none"
    head.click()
    sort, values = _column(tab, "results-0", "average %")
    assert (sort, [float(value) for value in values]) == ("descending", sorted(averages, reverse=True))
    head.focus()
    tab.keyboard.press("Enter")
    sort, values = _column(tab, "results-0", "average %")
    assert (sort, [float(value) for value in values]) == ("ascending", sorted(averages))
    tab.locator("#results-0 thead button").filter(has_text="method").click()
    sort, values = _column(tab, "results-0", "method")
    assert sort == "ascending"
    assert values == sorted(values, key=str.lower)
    assert _column(tab, "results-0", "average %")[0] == "none"
    # 9 before 10, and from the least memory to the most
    tab.locator("#results-0 thead button").filter(has_text="memory").click()
    values = _column(tab, "results-0", "memory")[1]
    assert values == sorted(values, key=int)


@needs_browser
def test_undefined_values_stay_at_the_end(visit):
    tab = visit("many")
    head = tab.locator("#memory-0 div:not([hidden]) > .scroll thead button").filter(has_text="AUC-A").first
    for _ in range(2):
        head.click()
        values = _column(tab, "memory-0", "AUC-A fraction x MiB")[1]
        assert [value == "" for value in values] == [False] * 7 + [True]


@needs_browser
def test_a_memory_can_be_chosen(visit):
    tab = visit("many")
    tab.locator("#results-0 select").select_option(label="2.00 MiB strict")
    assert len(_column(tab, "results-0", "method")[1]) == 7
    tab.locator("#results-0 select").select_option(label="all")
    assert len(_column(tab, "results-0", "method")[1]) == 23
    last = """() => document.querySelector('#tasks-0 .plot').data.filter((trace) => trace.mode === 'lines+markers')
      .map((trace) => trace.y[trace.y.length - 1])"""
    tab.locator("#tasks-0 select").select_option(label="1.00 MiB strict")
    low = tab.evaluate(last)
    tab.locator("#tasks-0 select").select_option(label="3.00 MiB strict")
    high = tab.evaluate(last)
    assert len(low) == len(high) == 9  # with the method without exemplars and the upper bound
    assert sum(a < b for a, b in zip(low, high, strict=True)) == 7


@needs_browser
def test_bytes_can_be_counted_both_ways(visit, pages):
    tab = visit("many")
    section = pages["many"][1].sections[0]
    x = "() => document.querySelector('#memory-0 .plot').data[1].x"
    rows = [section.row(id) for id in section.curves[1].rows]
    for convention in ("paper", "strict"):
        tab.locator("#memory-0 select").select_option(convention)
        assert tab.evaluate(x) == pytest.approx(sorted(row.final_bytes(convention) / MIB for row in rows))
        shown = tab.evaluate(
            "() => [...document.querySelectorAll('[data-only-convention]')].filter((place) => !place.hidden)"
            ".map((place) => place.dataset.onlyConvention)"
        )
        assert shown == [convention]


@needs_browser
def test_the_classes_of_a_method_are_drawn_from_the_best_to_the_worst(visit, pages):
    tab = visit("published")
    section = pages["published"][1].sections[0]
    row = next(row for row in section.rows if row.class_means)
    tab.locator('#classes-0 select[data-control="classes_row"]').select_option(row.id)
    drawn = tab.evaluate("() => document.querySelector('#classes-0 .plot').data[0].y")
    assert drawn == pytest.approx(sorted((100 * mean for mean in row.class_means.values()), reverse=True))
    assert len(drawn) > 30


@needs_browser
def test_the_legend_hides_a_method_in_all_charts_of_its_scenario(visit):
    tab = visit("many")
    count = "() => ['memory-0', 'tasks-0'].map((id) => document.querySelector(`#${id} .scatterlayer`).children.length)"
    before = tab.evaluate(count)
    tab.locator("#memory-0 .legend button").filter(has_text="Replay").click()
    after = tab.evaluate(count)
    assert after[0] == before[0] - 1
    assert after[1] == before[1] - 2  # line and band
    assert tab.locator("#tasks-0 .legend button").filter(has_text="Replay").get_attribute("aria-pressed") == "false"
    tab.locator("#tasks-0 .legend button").filter(has_text="Replay").press("Enter")
    assert tab.evaluate(count) == before


@needs_browser
@pytest.mark.parametrize("name", ["many", "two scenarios"])
def test_names_from_files_are_text_and_nothing_more(visit, name):
    tab = visit(name)
    assert tab.evaluate("() => typeof boom") == "undefined"
    assert tab.locator("img").count() == 0
    assert tab.locator("script").count() == 3
    if name == "many":
        labels = tab.locator("#ledger-0 .ytick text").all_text_contents()
        assert any("<img" in label for label in labels)
        assert any("&amp;</script>" in label for label in labels)  # wrapped, so in parts
        assert HOSTILE in tab.locator("#results-0 tbody th").all_text_contents()


@needs_browser
def test_headers_are_buttons_and_tables_scroll_in_their_box(visit):
    tab = visit("many", width=390)
    box = tab.locator("#results-0 .scroll")
    assert tab.evaluate("(box) => box.scrollWidth > box.clientWidth", box.element_handle())
    assert box.get_attribute("tabindex") == "0"
    heads = tab.locator("table.sortable thead th")
    assert heads.count() == tab.locator("table.sortable thead th[aria-sort] > button").count() > 0
