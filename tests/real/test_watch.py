"""`silotune watch` in a real browser and with a real model's process, beside a run that goes on.

Needs Chromium (SILOTUNE_CHROMIUM, or one on the path) and Playwright; skipped with a reason without them.
"""

import json
import os
import re
import shutil
import signal
import urllib.error
import urllib.request

import psutil
import pytest
from tests.conftest import write_silo
from tests.real.helpers import PATIENCE, ended, run, start, until

import silotune
from silotune.recipe import dump_recipe

pytestmark = pytest.mark.real
CHROMIUM = os.environ.get("SILOTUNE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine: name one in SILOTUNE_CHROMIUM")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with playwright.sync_playwright() as made:
        opened = made.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def seen(browser):
    """A function that opens a URL at a width; what the page complains of fails the test."""
    pages, complaints = [], []

    def see(url, width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith((url.rstrip("/"), "data:")) else None)  # fmt: skip
        page.goto(url)
        pages.append(page)
        return page

    yield see
    for page in pages:
        page.close()
    assert not complaints


def served(process):
    """The URL that `watch` prints when it answers."""
    return json.loads(process.stdout.readline())["url"]


@pytest.fixture
def done(make_recipe, tmp_path):
    write_silo(tmp_path / "silos" / "<i>odd</i> & long name of a silo that goes on and on", 5, 400)
    return silotune.train(make_recipe(report={"samples": 1}), out=tmp_path / "run")


def watching(run_folder):
    process = start("watch", run_folder, "--port", "0", "--json")
    return process, served(process)


def test_the_page_fits_a_phone_and_a_screen_and_paper(done, seen, tmp_path):
    """No script in the file, nothing wider than the window, words that can be read, figures on pointing."""
    for width in (360, 390, 768, 1280):
        page = seen(done.report().as_uri(), width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.scripts.length") == 0
        sizes = page.evaluate(
            "[...document.querySelectorAll('.plot svg')].filter(e => e.getBoundingClientRect().width).flatMap(svg => "
            "[...svg.querySelectorAll('text')].map(t => parseFloat(getComputedStyle(t).fontSize) * svg.getBoundingClientRect().width"
            " / svg.viewBox.baseVal.width))"
        )
        assert sizes and min(sizes) > 9.5, "words in plots that nobody can read"
        assert page.locator(".plot:visible").count() == page.locator("figure").count()
    page.locator(".plot.wide-plot .hit").first.hover()
    assert page.locator(".plot.wide-plot .hit").first.evaluate("e => getComputedStyle(e).fillOpacity") != "0"
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and len(pdf) > 10_000


def test_light_and_dark_have_enough_contrast(done, seen):
    """WCAG AA: 4.5 between words and what is behind them."""
    for scheme in ("light", "dark"):
        page = seen(done.report().as_uri(), 1280, scheme)
        worst = page.evaluate(CONTRAST)
        assert worst["ratio"] >= 4.5, worst


CONTRAST = """() => {
  const shade = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!c.endsWith(', 0)')) return c; }
    return 'rgb(255, 255, 255)';
  };
  let worst = { ratio: 99 };
  for (const e of document.querySelectorAll('h1, h2, h3, p, th, td, dt, dd, strong, summary, figcaption, a, code, .plot text')) {
    if (!e.getBoundingClientRect().width) continue;
    const style = getComputedStyle(e);
    const [a, b] = [shade(e.closest('svg') ? style.fill : style.color), shade(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst.ratio) worst = { ratio, tag: e.tagName, text: e.textContent.trim().slice(0, 40) };
  }
  return worst;
}"""


def test_a_finished_run_can_be_watched_and_asked(done, seen):
    process, url = watching(done.path)
    try:
        page = seen(url, 390)
        page.get_by_text("The run has come to its end after 2 rounds.").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.get_by_text("Ask the base and the tuned model").click()
        page.get_by_label("Your question").fill("Where is the <b>red</b> key?")
        page.get_by_role("button", name="Ask").click()
        page.locator("#chat-ask:not([disabled])").wait_for(timeout=PATIENCE * 1000)
        said = page.locator("#chat-log .pair p:not(.label)").all_inner_texts()
        alone = [done.answer("Where is the <b>red</b> key?", base=base) for base in (True, False)]
        assert [" ".join(text.split()) for text in said] == [" ".join(text.split()) or "(no answer)" for text in alone]
        assert page.locator("#chat-log b").count() == 0, "what was asked is text"
        page.get_by_label("Your question").fill("And the blue one?")
        page.get_by_label("Your question").press("Enter")
        page.locator("#chat-ask:not([disabled])").wait_for(timeout=PATIENCE * 1000)
        assert page.locator("#chat-log .sample").count() == 2 and page.locator("#chat .bad").count() == 0
        page.get_by_role("button", name="Start again").click()
        assert page.locator("#chat-log .sample").count() == 0
    finally:
        process.terminate()
        ended(process, 30)


def test_an_answer_can_be_stopped_and_another_asked(done):
    """Through the server alone: a reader that goes away stops the answer, and the next question is answered."""
    process, url = watching(done.path)
    try:

        def ask(words, **more):
            body = json.dumps({"question": words, **more}).encode()
            return urllib.request.urlopen(
                urllib.request.Request(f"{url}chat", body, {"Content-Type": "application/json"}), timeout=PATIENCE
            )

        with ask("Where is the key?", max_tokens=400) as answer:
            assert "model" in json.loads(answer.readline())
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask("And I?")
            assert refused.value.code == 409
        until(lambda: _answered(ask), process)
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        until(lambda: _answered(ask), process)  # a model's process that died is started again
    finally:
        process.terminate()
        ended(process, 30)


def _answered(ask):
    try:
        with ask("Where is the key?", max_tokens=3) as answer:
            return [json.loads(line) for line in answer][-1].get("done")
    except urllib.error.HTTPError as error:
        assert error.code == 409  # the first is not over yet
        return None


def test_a_run_is_watched_while_it_goes_on(make_recipe, tmp_path, seen):
    """The page follows the rounds by itself, keeps what the reader opened, and ends when the run does."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(dump_recipe(make_recipe(training={"rounds": 30, "steps": 20})), encoding="utf-8")
    from playwright.sync_api import expect

    train = start("train", recipe, "--out", tmp_path / "run", "--json")
    watch = None
    try:
        until(lambda: (tmp_path / "run" / "state" / "round-0001").is_dir(), train)
        watch, url = watching(tmp_path / "run")
        page = seen(url)
        page.get_by_text("of 30 goes on").wait_for()
        page.locator("#d-loss summary").click()
        assert page.locator("#live-silos .name").all_inner_texts() == ["ash", "birch", "cedar"]
        told = page.locator("#report > p").first
        first = re.search(r"silos, \d+ of", told.inner_text()).group()
        expect(told).not_to_contain_text(first, timeout=PATIENCE * 1000)
        assert page.locator("#d-loss").evaluate("e => e.open"), "what was opened stays open"
        page.get_by_text("Ask the base and the tuned model").click()
        page.get_by_text("answers share this machine with the training").wait_for()
        assert ended(train, 300)[0]
        page.get_by_text("The run has come to its end after 30 rounds.").wait_for(timeout=PATIENCE * 1000)
        expect(page.locator("#report")).to_contain_text("SHA-256", timeout=PATIENCE * 1000)
    finally:
        train.kill()
        if watch:
            watch.terminate()
            ended(watch, 30)


def test_ctrl_c_ends_it_and_its_model(done):
    process, url = watching(done.path)
    urllib.request.urlopen(
        urllib.request.Request(
            f"{url}chat", b'{"question": "x", "max_tokens": 2}', {"Content-Type": "application/json"}
        ),
        timeout=PATIENCE,
    ).read()
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    _, err = ended(process, 30)
    assert process.returncode == 0 and "Traceback" not in err
    assert not psutil.wait_procs(children, timeout=30)[1]


def test_what_cannot_be_watched_is_told(tmp_path, done):
    assert "not a run folder" in run("watch", tmp_path / "silos", "--json", code=2)
    assert "ssh -L" in run("watch", done.path, "--host", "0.0.0.0", "--json", code=2)
