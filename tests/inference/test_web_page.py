"""The page in a real headless browser; nothing leaves the machine."""

import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest

from inference.similarity_model import SimilarityModel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(place):
    """A folder with a run, images and references."""
    for label in (0, 7):
        (place / "references" / f"colour {label}").mkdir(parents=True)
        shutil.copy(place / f"images/class{label}/0.png", place / f"references/colour {label}")
    (place / "secret.txt").write_text("for nobody else")
    (place / "references/link.png").symlink_to(place / "secret.txt")
    return place


@pytest.fixture(scope="module")
def address(place):
    """The page's address, served by the command line in a process of its own."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"runs/run --references references --gallery images --port {port}".split()
    command = [sys.executable, ROOT / "predict.py", "serve", *options]
    with open(place / "log", "w") as log:
        process = subprocess.Popen(command, cwd=place, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        time.sleep(0.2)
        try:
            urllib.request.urlopen(address).close()
            break
        except OSError:
            assert process.poll() is None, (place / "log").read_text()
    yield address
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def page(address, browser):
    """The page opened in Chromium; `page.requests` are the addresses it asked for."""
    page = browser.new_page()
    page.requests = []
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(address)
    return page


@pytest.fixture(scope="module")
def model(place):
    return SimilarityModel(place / "runs" / "run")


def ask(page, tab, button, *files):
    """Drops the files in a tab and clicks its button."""
    page.reload()
    page.get_by_role("tab", name=tab).click()
    panel = page.locator("[role=tabpanel]:visible")
    for number, file in reversed(list(enumerate(files))):  # a place may go once it is filled
        panel.locator("input[type=file]").nth(number).set_input_files(file)
        panel.locator("img").nth(len(files) - 1 - number).wait_for()
    panel.get_by_role("button", name=button, exact=True).click()
    return panel


def answer(panel):
    area = panel.locator("textarea").first
    for _ in range(150):
        if area.input_value():
            return area.input_value()
        time.sleep(0.2)
    raise AssertionError(panel.inner_text())


def test_compare_shows_distance_probability_and_maps(place, page, model):
    paths = [place / "images/class0/0.png", place / "images/class7/1.png"]
    [expected] = model.compare(paths)
    panel = ask(page, "Compare two images", "Compare", *paths)
    text = answer(panel)
    assert f"distance {expected['distance']:.3f}" in text
    assert f"{expected['probability']:.1%}" in text
    assert text.startswith("same" if expected["same"] else "different")
    panel.locator("img").nth(3).wait_for()


def test_identify_and_neighbours(place, page, model):
    query = place / "images/class7/1.png"
    [expected] = model.identify([query], place / "references")
    text = answer(ask(page, "Identify", "Identify", query))
    assert text.startswith(expected["class"] or "none of these")
    first = expected["candidates"][0]
    assert f"distance {first['distance']:.3f}  {first['class']}" in text
    panel = ask(page, "Find similar", "Find", query)
    second = model.search([query], place / "images")[0]["results"][1]
    panel.get_by_text(f"{second['distance']:.3f}").first.wait_for()


def test_what_goes_wrong_is_a_sentence_and_a_file_name_is_text(place, page):
    """Gradio shows messages as HTML."""
    ask(page, "Compare two images", "Compare")
    page.get_by_text("Drop an image first").wait_for()
    query = shutil.copy(place / "images/class0/1.png", place / "query.png")
    (place / "images").rename(place / "away")
    (place / "images").mkdir()
    (place / "images/<img src=x onerror=document.title='taken'>.png").write_text("no picture")
    try:
        ask(page, "Find similar", "Find", query)
        page.get_by_text("onerror=document.title").first.wait_for()
    finally:
        shutil.rmtree(place / "images")
        (place / "away").rename(place / "images")
    assert "Traceback" not in page.inner_text("body")
    assert not page.locator("img[onerror]").count() and page.title() != "taken"


def test_nothing_leaves_the_machine(address, page):
    local = (address, "data:", "blob:", "about:")
    assert page.requests and all(url.startswith(local) for url in page.requests)
    port = address.rpartition(":")[2]
    listening = subprocess.run(["ss", "-ltn"], capture_output=True, text=True).stdout
    lines = [line for line in listening.splitlines() if f":{port} " in line]
    assert all(f"127.0.0.1:{port}" in line for line in lines)


def request(address, path, body=None):
    """Status and text of an answer to a path that is sent as it is."""
    connection = http.client.HTTPConnection(address.partition("//")[2], timeout=60)
    headers = {"Content-Type": "application/json"} if body else {}
    connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")


def test_no_other_file_is_served(place, address):
    inside = [place / "secret.txt", "/etc/passwd", place / "images/class0/0.png", place / "runs",
              "../secret.txt", "references/link.png", f"{place}/images/../secret.txt"]  # fmt: skip
    paths, climb = [f"/gradio_api/file={path}" for path in inside], "../" * 20
    for folder in ("static", "assets", "gradio_api/file=", "gradio_api/stream", "svelte"):
        paths += [f"/{folder}/{climb}etc/passwd", f"/{folder}/{quote(climb, safe='')}etc/passwd"]
    for path in paths:
        status, text = request(address, path)
        assert status >= 400 or "<!doctype html>" in text.lower(), path  # no more than the page
        assert "root:" not in text and "for nobody else" not in text, path


def test_a_request_cannot_name_a_file_of_this_machine(place, address):
    """Nor an address: only what was uploaded is read."""
    functions = json.loads(request(address, "/gradio_api/info")[1])["named_endpoints"]
    assert len(functions) == 3
    other = f"{address}/gradio_api/file={place}/images/class0/0.png"
    for name, about in functions.items():
        for file in ({"path": str(place / "images/class0/0.png")}, {"path": "x.png", "url": other}):
            given = [file | {"meta": {"_type": "gradio.FileData"}}] * len(about["parameters"])
            status, text = request(address, f"/gradio_api/call{name}", {"data": given})
            event = json.loads(text)["event_id"]
            status, text = request(address, f"/gradio_api/call{name}/{event}")
            assert "event: error" in text and "complete" not in text, text
            assert "distance" not in text and "probability" not in text
