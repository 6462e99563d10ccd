"""The page in front of the figures: what it answers, what it refuses, and in a browser."""

from __future__ import annotations

import http.client
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from dynamic_sparse_rcnn import Predictor
from dynamic_sparse_rcnn.app.page import Page, errors_shown
from dynamic_sparse_rcnn.app.server import LocalOnly, listen

PICTURE = Path(__file__).parents[2] / "docs/shapes.png"
CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
# Anything that reaches out of this machine is an error, and is told.
SERVER = """
import socket, sys
connect = socket.socket.connect
def local_only(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        print("REACHED OUT to", address, flush=True)
        raise OSError("no network")
    return connect(self, address)
socket.socket.connect = local_only
from dynamic_sparse_rcnn.cli import main
main(sys.argv[1:])
"""


def test_errors_are_shown_with_their_message(caplog):
    with pytest.raises(gr.Error, match="what is wrong") as shown, errors_shown():
        raise ValueError("what is wrong")
    assert shown.value.duration is None
    assert "Traceback" in caplog.text


def test_an_upload_takes_the_place_of_an_annotated_image_and_the_other_way_round(shapes):
    from dynamic_sparse_rcnn.app.images import find_records

    predictor = Predictor(device="cpu")
    page = Page(predictor, find_records(predictor, [shapes]))
    uploaded, choice = page.look_at_file(str(PICTURE))
    annotated, upload = page.look_at_record(next(iter(page.records)))
    assert (choice, upload) == (None, None)
    assert page.draw(uploaded, 0.5, 3, "DLA")[2] is None
    assert page.draw(annotated, 0.5, 3, "DLA")[2] is not None
    assert page.look_at_file(None) == (None, None)
    assert page.draw(None, 0.5, 3, "DLA") == (None,) * 5


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example:7860"}, 403),
        ({"host": "evil.example:7860", "origin": "http://evil.example:7860"}, 403),
        ({"host": "127.0.0.1.evil.example:7860"}, 403),
        ({"host": ""}, 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_other_hosts_and_origins_are_refused(headers, status, method):
    client = TestClient(LocalOnly(PlainTextResponse("welcome")), base_url="http://127.0.0.1:7860")
    response = client.request(method, "/", headers=headers)
    assert response.status_code == status
    assert (response.text == "welcome") == (status == 200)
    if status == 200:
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert "http" not in response.headers["content-security-policy"]


def test_a_taken_port_is_named():
    with listen(0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=rf"Port {port} cannot be used \(.*\): name another"):
            listen(port)


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """The page of the shapes detector with annotated images, served by the command in a process of its own."""
    from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes

    paths = generate_shapes(tmp_path_factory.mktemp("shapes"), "val", ShapesConfig(num_images=2))
    arguments = ["app", "--port", "0", "--device", "cpu", "--data", f"coco:{paths.json_path}:{paths.image_folder}"]
    command = [sys.executable, "-u", "-c", SERVER, *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: queue.Queue[str] = queue.Queue()
    output: list[str] = []

    def read() -> None:
        assert server.stdout is not None
        for line in server.stdout:
            output.append(line)
            lines.put(line)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        while True:
            found = re.match(r"http://127\.0\.0\.1:\d+", lines.get(timeout=300))
            if found:
                break
        yield found[0]
    finally:
        server.terminate()
        server.wait(30)
        reader.join()
    assert "REACHED OUT" not in "".join(output)


@pytest.fixture
def browser_page(request) -> Iterator[Any]:
    """A page in headless Chromium, as wide as the test says."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": request.param, "height": 900})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


@pytest.mark.slow
def test_the_server_refuses_an_upload_from_another_origin(url):
    address = url.removeprefix("http://")
    for origin, status in ((url, 200), ("http://evil.example", 403)):
        connection = http.client.HTTPConnection(address, timeout=30)
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n0\r\n--x--\r\n'
        headers = {"Origin": origin, "Content-Type": "multipart/form-data; boundary=x"}
        connection.request("POST", "/gradio_api/upload", body, headers)
        assert connection.getresponse().status == status
        connection.close()


@pytest.mark.slow
def test_the_server_refuses_a_file_that_is_too_large(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + bytes(33 << 20) + b"\r\n--x--\r\n"
    connection.request("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("browser_page", [1280, 390], indirect=True)
def test_an_uploaded_image_is_followed_through_the_stages(browser_page, url, tmp_path):
    page = browser_page
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(url)
    page.get_by_role("tab", name="Proposals").click()

    def picture_after(change: Any) -> np.ndarray:
        """What the tab shows once a redraw has ended."""
        shown = page.get_by_role("tabpanel").locator("img:visible")
        before = shown.get_attribute("src") if shown.count() else None
        change()
        page.wait_for_function(
            "before => [...document.querySelectorAll('[role=tabpanel] img')]"
            ".some(x => x.checkVisibility() && x.complete && x.src && x.src !== before)",
            arg=before,
        )
        (tmp_path / "shown").write_bytes(page.request.get(shown.get_attribute("src")).body())
        return np.asarray(Image.open(tmp_path / "shown").convert("RGB")).astype(int)

    def move(name: str, value: float) -> np.ndarray:
        return picture_after(lambda: page.get_by_label(f"range slider for {name}").fill(str(value)))

    last = picture_after(lambda: page.locator("input[type=file]").set_input_files(str(PICTURE)))
    first = move("Stage", 0)
    assert first.shape == last.shape and np.abs(first - last).mean() > 1
    assert np.array_equal(move("Stage", 3), last)
    assert not np.array_equal(move("Score threshold", 0.85), last)  # one of four detections is left
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(re.match(rf"{url}/|data:|blob:", address) for address in requested)


@pytest.mark.slow
@pytest.mark.parametrize("browser_page", [1280], indirect=True)
def test_an_annotated_image_shows_its_assignment_and_errors_are_shown(browser_page, url, tmp_path):
    page = browser_page
    page.goto(url)
    page.get_by_label("Annotated images").click()
    page.get_by_role("option", name="000002.png").click()
    page.get_by_role("tab", name="Experts").click()
    page.get_by_text("expert 1").first.wait_for()
    page.get_by_role("tab", name="Assignment").click()
    page.get_by_role("tabpanel").locator("img:visible").wait_for()
    page.get_by_text("Matcher", exact=True).wait_for()
    (tmp_path / "notes.png").write_text("no image")
    page.locator("input[type=file]").set_input_files(str(tmp_path / "notes.png"))
    page.get_by_text("cannot identify image file").wait_for()
