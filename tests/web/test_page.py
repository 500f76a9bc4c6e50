"""The page in a real browser: headless Chromium, driven by Playwright. Without them, or npm's packages, it is skipped.

pip install playwright; apt-get install chromium; make page
"""

import importlib.util
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_model
from PIL import Image

from utils.checkpoints.checkpoint import TrainedOn, build_model
from utils.config.schema import Config
from web import make_models

ROOT = Path(__file__).parents[2]
NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
WHAT_IS_MISSING = [
    what
    for what, is_there in {
        "playwright (pip)": importlib.util.find_spec("playwright"),
        "chromium": CHROMIUM,
        "npm's packages (make page)": (ROOT / "web/node_modules/installed").exists(),
    }.items()
    if not is_there
]
pytestmark = pytest.mark.skipif(
    bool(WHAT_IS_MISSING), reason=f"the page is not tested, for want of {', '.join(WHAT_IS_MISSING)}"
)
DRAWN = "Both are done."


class Quiet(SimpleHTTPRequestHandler):
    """A server that does not know scripts that are called .mjs."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "application/octet-stream"}

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder to serve."""
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def address(site):
    """Where the page is served, as from any static host, in a folder of it."""
    root = site
    subprocess.run(["make", "page", f"PAGE={root}/some/where"], cwd=ROOT, check=True, capture_output=True)
    server = ThreadingHTTPServer(("localhost", 0), partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}/some/where/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page at a state, and waits until both have drawn; at the end, nothing may have gone wrong in it."""
    wrong, contexts = [], []

    def open_page(state: str = "", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda asked: asked.url.startswith((address.removesuffix("where/"), "data:")) or wrong.append(asked.url),
        )
        page.goto(address + state)
        wait_for(page, DRAWN)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def wait_for(page, status: str) -> None:
    page.wait_for_function("text => document.getElementById('status').textContent === text", arg=status, timeout=60_000)


def drawn(page, who: str) -> np.ndarray:
    """The picture of a panel, in grey."""
    read = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
    pixels = np.array(page.locator(f"#{who} canvas.z").evaluate(read), dtype=int)
    return pixels[::4].reshape(32, 32)


@pytest.mark.parametrize(("golden", "student"), [("page_digits", "steps=4"), ("page_matched", "steps=2&matched=1")])
def test_ten_digits_are_those_of_sample_py(visit, golden, student):
    """Golden: `sample.py --num_samples 10 --precision fp32` of pretrained/mnist-matched-2 and, by DDIM, -student-4."""
    golden = np.array(Image.open(ROOT / f"tests/golden/{golden}.png").convert("L"), dtype=int)
    page = visit(f"#label=0&noise=0&{student}")
    for digit in range(10):
        if digit:
            page.evaluate(f"location.hash = '#label={digit}&noise={digit}&{student}'")
            page.wait_for_function(
                f"document.querySelector('#student canvas.z').ariaLabel.endsWith('sample of class {digit}')"
            )
            wait_for(page, DRAWN)
        expected = golden[-34:-2, 34 * digit + 2 : 34 * digit + 34]
        assert abs(drawn(page, "student") - expected).max() <= 1


def test_the_slider_halves_the_steps_and_the_address_remembers(visit):
    page = visit("#label=5&noise=3&steps=4")
    assert page.locator("#student .counts").inner_text().startswith("4 network evaluations, ")
    page.locator("#steps").press("ArrowRight")
    page.wait_for_function("location.hash.includes('steps=2')")
    wait_for(page, DRAWN)
    assert page.locator("#teacher h2").inner_text() == "Teacher, 2 steps"
    assert page.locator("#student .counts").inner_text().startswith("2 network evaluations, ")
    again = visit(page.evaluate("location.hash"))
    assert again.locator("#steps-text").inner_text() == "2" and again.locator("#noise").input_value() == "3"
    for who in ("teacher", "student"):
        assert (drawn(page, who) == drawn(again, who)).all()
    assert abs(drawn(page, "teacher") - drawn(page, "student")).mean() > 5


def test_faces_are_those_of_sample_py(visit):
    """Golden: `sample.py --num_samples 8 --precision fp32 --guidance 1.5` of pretrained/faces-matched-2."""
    page = visit("#steps=2&label=0&noise=0")
    page.locator("#data").select_option(label="faces")
    page.wait_for_function("location.hash.includes('data=1')")
    golden = np.array(Image.open(ROOT / "tests/golden/page_faces.png").convert("RGB"), dtype=int)[::2, ::2]
    names = ["long", "long glasses", "long glasses hat", "long hat", "short", "short glasses", "short glasses hat"]
    for number, name in enumerate([*names, "short hat"]):
        page.evaluate(f"location.hash = '#data=1&steps=2&guidance=1.5&noise={number}&label={number}'")
        page.wait_for_function(
            f"document.querySelector('#student canvas.z').ariaLabel.endsWith('class {name.replace(' ', '_')}')"
        )
        wait_for(page, DRAWN)
        checked = page.locator("#classes :checked").evaluate_all("inputs => inputs.map(input => input.value)")
        assert checked == name.split()
        read = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 16, 16).data]"
        found = np.array(page.locator("#student canvas.z").evaluate(read), dtype=int).reshape(16, 16, 4)[:, :, :3]
        assert abs(found - golden[-18:-2, 18 * number + 2 : 18 * number + 18]).max() <= 1


@pytest.fixture(scope="module")
def guided(site, address):
    """The page, with an untrained teacher in colour, and a student of 4 steps that takes guidance from 1 to 3."""
    data, network = {"name": "MNIST", "image_size": 32, "num_channels": 3}, {"features": 8, "num_classes": 4}
    trained_on = TrainedOn(data_hash="", class_names=["long", "long_hat", "short", "short_hat"])
    network |= {"multipliers": [1, 2], "num_residual_blocks": 1, "attention_resolutions": [], "patch_size": 2}
    config = Config.model_validate({"data": data, "network": network})
    paths = [site / "teacher.pt", site / "student.pt"]
    for path, options in zip(paths, ({}, {"sampling_steps": 4, "guidance": [1.0, 3.0]}), strict=True):
        model = build_model(config, torch.device("cpu"), takes_guidance=bool(options))
        for weight in model.network.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        save_model(path, model.network.state_dict(), config=config, trained_on=trained_on, **options)
    shutil.copytree(site / "some/where", site / "some/guided")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_models, "FOLDER", site / "some/guided/models")
        patch.setattr(sys, "argv", ["make_models.py", "digits", *map(str, paths)])
        make_models.main()
    return "../guided/"


def test_guidance_moves_teacher_and_student_within_the_range_of_the_student(visit, guided):
    page = visit(f"{guided}#steps=4&guidance=50")
    assert "guidance=3" in page.evaluate("location.hash")
    assert page.locator("#teacher .counts").inner_text().startswith("8 network evaluations, ")
    assert page.locator("#student .counts").inner_text().startswith("4 network evaluations, ")
    other = visit(f"{guided}#steps=4&guidance=1")
    assert other.locator("#teacher .counts").inner_text().startswith("4 network evaluations, ")
    for who in ("teacher", "student"):
        assert (drawn(page, who) != drawn(other, who)).any()
    assert "guidance=1" in visit("#guidance=50").evaluate("location.hash")  # a student without guidance


def test_classes_of_parts_are_radio_buttons_and_check_boxes(visit, guided):
    page = visit(f"{guided}#label=0&steps=4")
    assert page.get_by_role("radio").count() == 2 and page.get_by_role("checkbox").count() == 1
    page.get_by_label("short").check()
    page.get_by_label("hat").check()
    page.wait_for_function("location.hash.includes('label=3')")
    wait_for(page, DRAWN)
    assert page.locator("#student canvas.z").get_attribute("aria-label") == "Student: sample of class short_hat"
    read = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 32, 32).data]"
    red, green, blue, _ = np.array(page.locator("#student canvas.z").evaluate(read)).reshape(-1, 4).T
    assert (red != green).any() and (green != blue).any()


def test_where_there_is_no_student_the_teacher_draws_alone(visit):
    page = visit("#steps=4")
    page.locator("#steps").press("ArrowLeft")
    wait_for(page, "The teacher is done.")
    assert page.locator("#student .counts").inner_text() == "There is no student of 8 steps here, only of 4, 2, 1."


def test_sixteen_more_and_a_picture_to_keep(visit, tmp_path):
    page = visit("#label=7&noise=17&steps=2")
    page.get_by_role("button", name="Sixteen more samples").click()
    wait_for(page, "All are done.")
    grid = page.locator("#grid canvas")
    assert grid.count() == 32 and grid.last.get_attribute("aria-label") == "Student, noise 33: 7"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as PNG").click()
    download.value.save_as(tmp_path / "kept.png")
    assert download.value.suggested_filename == "digits-7-noise-17-steps-2.png"
    assert Image.open(tmp_path / "kept.png").size == (520, 256)


@pytest.mark.parametrize(
    "options", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}]
)
def test_it_can_be_seen_by_all(visit, options):
    page = visit("#steps=1", **options)
    page.get_by_role("button", name="Sixteen more samples").click()
    wait_for(page, "All are done.")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.add_script_tag(path=ROOT / "web/node_modules/axe-core/axe.min.js")
    found = page.evaluate(
        "axe.run().then(found => found.violations.map(one => [one.impact, one.id, one.nodes[0].html]))"
    )
    assert [one for one in found if one[0] in ("serious", "critical")] == []


def test_with_the_keyboard_alone(visit):
    page = visit("#label=3&noise=17&steps=1")
    page.keyboard.press("Tab")  # to the choice of data
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")  # to the next digit
    page.wait_for_function("location.hash.includes('label=4')")
    page.keyboard.press("Tab")
    page.keyboard.type("18")
    page.keyboard.press("Enter")
    page.wait_for_function("location.hash.includes('noise=18')")
    wait_for(page, DRAWN)


def test_what_is_wrong_is_said(browser, address):
    page = browser.new_page()
    page.add_init_script("delete WebAssembly")
    page.goto(address)
    page.wait_for_function(
        "document.getElementById('status').textContent.startsWith('This browser has no WebAssembly')"
    )
    page.close()
    page = browser.new_page()
    page.route("**/models.json", lambda route: route.fulfill(status=404))
    page.goto(address)
    page.wait_for_function("document.getElementById('status').textContent.includes('cannot be loaded (404)')")
    page.close()
    page = browser.new_page()
    page.goto(f"file://{ROOT}/web/index.html")
    assert "make serve" in page.locator("#status").inner_text()
    page.close()
