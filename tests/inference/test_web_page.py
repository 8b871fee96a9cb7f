"""The page in a real headless browser, driven over Chromium's debugging pipe."""

import base64
import http.client
import io
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from inference.similarity_model import SimilarityModel

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
ROOT = Path(__file__).parents[2]
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--window-size=1200,1000 --remote-debugging-pipe"
).split()


class Browser:
    """One page in Chromium, and the addresses it asked for."""

    def __init__(self, folder, address):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        options = " ".join([*OPTIONS, f"--user-data-dir={folder}"])
        command = f"exec {BROWSER} {options} about:blank 3<&{to_browser} 4>&{from_browser}"
        self.process = subprocess.Popen(
            ["bash", "-c", command], pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL
        )
        os.close(to_browser), os.close(from_browser)
        self.requests, self._numbers, self._rest, self._session = [], itertools.count(1), b"", None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Network", "Page", "DOM"):
            self.send(f"{domain}.enable")
        self.send("Page.navigate", url=address)

    def send(self, method, **params):
        """Sends a command and waits for its answer, noting what the page asks for meanwhile."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                self._rest += os.read(self._read, 65536)
            text, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, script):
        """The value of a JavaScript expression."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        return found["result"].get("value")

    def wait_for(self, script, seconds=30):
        """Waits until an expression is true, and gives its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end, (script, self.evaluate("document.body.innerText"))
            time.sleep(0.2)
        return value

    def drop(self, place, path):
        """Gives a file to the n-th visible place for one, and waits until it is there."""
        script = "[...document.querySelectorAll('input[type=file]')].filter(i => i.closest("
        script += f"'[role=tabpanel]').offsetParent)[{place}]"
        before = "document.querySelectorAll('[role=tabpanel] img').length"
        images = self.evaluate(before)
        self.wait_for(f"!!({script})")
        found = self.send("Runtime.evaluate", expression=script)["result"]["objectId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], objectId=found)
        self.wait_for(f"{before} > {images}")

    def click(self, text):
        """Clicks the visible button of a text."""
        script = "[...document.querySelectorAll('button.primary')].find(b => b.offsetParent && "
        self.wait_for(f"!!({script}b.innerText.trim() == {text!r}))")
        self.evaluate(f"{script}b.innerText.trim() == {text!r}).click()")

    def reload(self):
        """Opens the page afresh."""
        self.evaluate("window.isOld = true")
        self.send("Page.reload")
        self.wait_for("!window.isOld && !!document.querySelector('button.primary')?.offsetParent")
        time.sleep(0.5)  # until the buttons do something

    def close(self):
        """Ends the browser."""
        self.process.terminate()
        self.process.wait()
        os.close(self._write), os.close(self._read)


@pytest.fixture(scope="module")
def place(tiny_run, tmp_path_factory):
    """A folder with a run, images and references."""
    folder = tmp_path_factory.mktemp("serve")
    shutil.copytree(tiny_run, folder, dirs_exist_ok=True)
    for label in (0, 7):
        (folder / "references" / f"colour {label}").mkdir(parents=True)
        shutil.copy(folder / f"images/class{label}/0.png", folder / f"references/colour {label}")
    (folder / "secret.txt").write_text("for nobody else")
    (folder / "text.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def address(place):
    """The page's address, served by the command line in a process of its own."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "predict.py", "serve", "runs/run", "--references",
               "references", "--gallery", "images", "--port", str(port)]  # fmt: skip
    with open(place / "log", "w") as log:
        process = subprocess.Popen(command, cwd=place, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    for _ in range(300):
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
def browser(address, tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no Chromium to open the page in")
    browser = Browser(tmp_path_factory.mktemp("browser"), address)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def model(place):
    return SimilarityModel.load(place / "runs" / "run")


def open_tab(browser, name):
    script = "[...document.querySelectorAll('[role=tab]')].filter(t => t.offsetParent)"
    browser.wait_for(f"{script}.some(t => t.innerText.trim() == {name!r})")
    browser.evaluate(f"{script}.find(t => t.innerText.trim() == {name!r}).click()")


ANSWER = "[...document.querySelectorAll('textarea')].filter(t => t.offsetParent)[0].value"


def test_compare_shows_distance_probability_and_maps(place, browser, model):
    paths = [place / "images/class0/0.png", place / "images/class7/1.png"]
    open_tab(browser, "Compare two images")
    for number in (1, 0):  # the place may go once it is filled
        browser.drop(number, paths[number])
    browser.click("Compare")
    text = browser.wait_for(ANSWER)
    assert f"distance {model.distance(*paths):.3f}" in text
    assert f"{model.probability(*paths):.1%}" in text
    assert text.startswith("Same" if model.distance(*paths) < model.threshold else "Different")
    pictures = "[...document.querySelectorAll('[role=tabpanel] img')].filter(i => i.offsetParent)"
    browser.wait_for(f"{pictures}.length == 4 && {pictures}.every(i => i.naturalWidth)")
    shot = base64.b64decode(browser.send("Page.captureScreenshot")["data"])
    assert np.asarray(Image.open(io.BytesIO(shot))).std() > 5


def test_identify_and_neighbours(place, browser, model):
    query = place / "images/class7/1.png"
    expected = model.identify([query], place / "references")[0]
    open_tab(browser, "Identify")
    browser.drop(0, query)
    browser.click("Identify")
    text = browser.wait_for(ANSWER)
    assert text.splitlines()[0] == (expected["class"] or "none of these")
    assert f"{expected['candidates'][0]['class']}: probability" in text
    open_tab(browser, "Find similar")
    browser.drop(0, query)
    browser.click("Find")
    found = model.search([query], place / "images")[0]["results"]
    browser.wait_for("document.body.innerText.includes('0.000  1.png') "
                     "|| document.body.innerText.includes('0.000 1.png')")  # fmt: skip
    assert f"{found[1]['distance']:.3f}" in browser.evaluate("document.body.innerText")


def test_an_unreadable_file_is_a_message_on_the_page(place, browser):
    for tab, button in (("Identify", "Identify"), ("Find similar", "Find")):
        browser.reload()
        open_tab(browser, tab)
        browser.drop(0, place / "text.png")
        browser.click(button)
        browser.wait_for("document.body.innerText.includes('not an image')")


def test_asking_without_an_image_is_a_message_on_the_page(browser):
    browser.reload()
    browser.click("Compare")
    browser.wait_for("document.body.innerText.includes('Drop an image first')")


def test_nothing_leaves_the_machine_and_no_other_file_is_served(place, address, browser):
    outside = [
        url for url in browser.requests if not url.startswith((address, "data:", "blob:", "about:"))
    ]
    assert browser.requests and not outside
    (place / "references/link.png").symlink_to(place / "secret.txt")
    inside = [place / "secret.txt", "/etc/passwd", place / "images/class0/0.png", place / "runs",
              "../secret.txt", "references/link.png", f"{place}/images/../secret.txt"]  # fmt: skip
    paths = [f"/gradio_api/file={path}" for path in inside]
    climb = "../" * 20
    for folder in ("static", "assets", "gradio_api/file=", "gradio_api/stream", "svelte"):
        paths += [f"/{folder}/{climb}etc/passwd", f"/{folder}/{quote(climb, safe='')}etc/passwd"]
    for path in paths:
        status, text = request(address, path)
        assert status >= 400 or "<!doctype html>" in text.lower(), path  # no more than the page
        assert "root:" not in text and "for nobody else" not in text, path
    port = address.rpartition(":")[2]
    listening = subprocess.run(["ss", "-ltn"], capture_output=True, text=True).stdout
    assert all(
        f"127.0.0.1:{port}" in line for line in listening.splitlines() if f":{port} " in line
    )


def request(address, path, body=None):
    """Status and text of an answer to a path that is sent as it is."""
    connection = http.client.HTTPConnection(address.partition("//")[2], timeout=60)
    headers = {"Content-Type": "application/json"} if body else {}
    connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")


def test_a_request_cannot_name_a_file_of_this_machine(place, address):
    """Nor an address: only what was uploaded is read."""
    functions = json.loads(request(address, "/gradio_api/info")[1])["named_endpoints"]
    assert len(functions) == 3
    other = f"{address}/gradio_api/file={place}/images/class0/0.png"
    for name, about in functions.items():
        for file in ({"path": str(place / "images/class0/0.png")}, {"path": "x.png", "url": other}):
            given = [file | {"meta": {"_type": "gradio.FileData"}}] * len(about["parameters"])
            status, text = request(address, f"/gradio_api/call{name}", {"data": given})
            assert status == 200
            event = json.loads(text)["event_id"]
            status, text = request(address, f"/gradio_api/call{name}/{event}")
            assert "event: error" in text and "complete" not in text, text
            assert "distance" not in text and "probability" not in text


def test_a_file_name_that_is_html_is_shown_as_text(place, browser):
    """In a message, which Gradio shows as HTML."""
    evil = place / "images/class0/<img src=x onerror=document.title='taken'>.png"
    evil.write_text("no picture")
    browser.reload()
    open_tab(browser, "Find similar")
    browser.drop(0, place / "images/class0/1.png")
    others = [path for path in (place / "images").rglob("*.png") if path != evil]
    for path in others:
        path.rename(path.with_suffix(".away"))
    try:
        browser.click("Find")
        browser.wait_for("document.body.innerText.includes('onerror=document.title')")
    finally:
        for path in others:
            path.with_suffix(".away").rename(path)
        evil.unlink()
    assert browser.evaluate("document.querySelectorAll('img[onerror], img[src=x]').length") == 0
    assert browser.evaluate("document.title") != "taken"
