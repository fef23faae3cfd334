"""The widgets in a real browser: JupyterLab on this machine, headless Chromium, a slider that is pulled, a word typed.

Opens 03_attention_saliency and 05_libero_rollout in a fresh run folder at profile micro, runs all cells, moves the
controls as a reader would, and fails unless the displayed picture changes. Screenshots are left in build/browser.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import nbformat
import numpy as np
from make_notebooks import ROOT, SOURCES, generate
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

FOLDER = ROOT / "build" / "browser"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--window-size=1400,1500")
SETTINGS = {"notebook-extension/tracker": {"windowingMode": "none"},  # otherwise cells out of view are not in the page
            "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}}
PATIENCE = 420  # seconds for a notebook to run


def main() -> None:
    """Run both notebooks; ends with exit code 1 and a traceback at the first expectation that fails."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    names = ("03_attention_saliency", "05_libero_rollout")
    for name in names:
        (FOLDER / "notebooks").mkdir(parents=True, exist_ok=True)
        nbformat.write(generate(SOURCES / f"{name}.py"), FOLDER / "notebooks" / f"{name}.ipynb")
    with jupyterlab() as address, browser() as driver:
        for name, look in zip(names, (explore, play)):
            page = Page(driver, address, name)
            page.run_all()
            look(page)
            print(f"{name}: the picture follows its controls", flush=True)
    print(f"Screenshots: {FOLDER}/*.png")


def explore(page: Page) -> None:
    """The heatmap explorer follows the frame slider, the presets and a sentence of one's own."""
    box = page.picture("frame")
    page.changes(box, lambda: page.pull_slider("frame", 20), "frame")
    page.changes(box, lambda: page.press("blank"), "blank")
    page.changes(box, lambda: page.type_into("or your own", "open the drawer"), "sentence")
    assert "drawer" in page.driver.find_element(By.CSS_SELECTOR, ".widget-select-multiple select").text


def play(page: Page) -> None:
    """The rollout player follows its slider, and plays."""
    box = page.picture("frame")
    page.changes(box, lambda: page.pull_slider("frame", 10), "frame")
    page.changes(box, page.play, "play")


class Page:
    """One notebook in JupyterLab."""

    def __init__(self, driver: webdriver.Chrome, address: str, name: str):
        self.driver, self.name = driver, name
        driver.get(f"{address}/lab/tree/{name}.ipynb?reset")
        self.until(lambda: driver.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-CodeCell"), 90, "the notebook opens")
        self.until(lambda: self._kernel() == "idle", 90, "the kernel starts")

    def run_all(self) -> None:
        """Run all cells and wait until the last one is done."""
        self.driver.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.until(lambda: self._prompts()[-1].strip("[]: ").isdigit() or self._errors(), PATIENCE, "all cells run")
        assert not self._errors(), self._errors()[0].text
        self.screenshot("all")

    def picture(self, label: str) -> WebElement:
        """The picture that belongs to the widgets with a control of that label."""
        return self._box(label).find_element(By.CSS_SELECTOR, "img.widget-image")

    def changes(self, picture: WebElement, act: Callable[[], None], name: str) -> None:
        """Do something and expect another picture within ten seconds; keeps screenshots of before and after."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
        before = _pixels(picture)
        self.screenshot(f"{name}-before")
        act()
        self.until(lambda: (_pixels(picture).shape != before.shape or (_pixels(picture) != before).mean() > 0.002), 10,
                   f"{name} changes the picture")
        self.screenshot(f"{name}-after")

    def pull_slider(self, label: str, steps: int) -> None:
        handle = self._box(label).find_element(By.CSS_SELECTOR, ".noUi-handle")
        handle.send_keys(Keys.ARROW_RIGHT * steps)

    def press(self, text: str) -> None:
        self.driver.find_element(By.XPATH, f"//button[contains(@class, 'widget-toggle-button') and .='{text}']").click()

    def play(self) -> None:
        self.driver.find_element(By.CSS_SELECTOR, ".widget-play button").click()

    def type_into(self, label: str, text: str) -> None:
        field = self.driver.find_element(By.XPATH, f"//label[.='{label}']/following-sibling::input")
        field.send_keys(Keys.CONTROL + "a")
        field.send_keys(text + Keys.ENTER)

    def screenshot(self, name: str) -> None:
        self.driver.save_screenshot(str(FOLDER / f"{self.name[:2]}-{name}.png"))

    def until(self, condition: Callable[[], object], seconds: float, expected: str) -> None:
        """Wait; a condition that never comes true is an assertion that names it."""
        try:
            WebDriverWait(self.driver, seconds, poll_frequency=0.3).until(lambda _: condition())
        except Exception as error:
            self.screenshot("failed")
            raise AssertionError(f"{self.name}: not within {seconds} s: {expected} ({type(error).__name__})") from error

    def _box(self, label: str) -> WebElement:
        """The outermost box of widgets around a label."""
        path = f"(//label[.='{label}']/ancestor::div[contains(@class, 'widget-vbox')])[1]"
        return self.driver.find_element(By.XPATH, path)

    def _kernel(self) -> str | None:
        return self.driver.execute_script(
            "const s = window.jupyterapp.shell.currentWidget?.sessionContext; return s?.session?.kernel?.status")

    def _prompts(self) -> list[str]:
        return [cell.text for cell in self.driver.find_elements(By.CSS_SELECTOR, ".jp-CodeCell .jp-InputPrompt")]

    def _errors(self) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, "[data-mime-type='application/vnd.jupyter.error'], "
                                                          "[data-mime-type='application/vnd.jupyter.stderr'] .jp-error")


@contextlib.contextmanager
def jupyterlab() -> Iterator[str]:
    """JupyterLab on a free port of this machine, closed to others; yields its address."""
    settings = FOLDER / "settings"
    for name, values in SETTINGS.items():
        path = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
               "--IdentityProvider.token=", f"--ServerApp.root_dir={FOLDER / 'notebooks'}", "--expose-app-in-browser"]
    environment = os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(settings), "LAR_PROFILE": "micro",
                                "LAR_WORK": str(FOLDER / "work")}
    with open(FOLDER / "jupyterlab.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(120):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


@contextlib.contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Headless Chromium with an empty profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def _pixels(element: WebElement) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB"))


if __name__ == "__main__":
    main()
