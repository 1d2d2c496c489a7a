"""A real JupyterLab on loopback, and a real browser in front of it, for tests and for pictures."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
QUIET = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}


def find_browser() -> str | None:
    """The path of an installed Chromium or Chrome."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Lab:
    """A JupyterLab server over a folder of notebooks.

    Attributes:
        url: Its address; with `token` it lets one in.
        folder: What it serves.
    """

    def __init__(self, folder: Path, private: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder = folder
        self.token = secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{port}"
        settings = private / "settings"
        for name, values in QUIET.items():
            path = settings / f"{name.replace(':', '/')}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")
        self._environment = os.environ | {
            "JUPYTER_CONFIG_DIR": str(private / "config"),
            "JUPYTER_DATA_DIR": str(private / "data"),
            "JUPYTER_RUNTIME_DIR": str(private / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(settings),
            "JUPYTERLAB_WORKSPACES_DIR": str(private / "workspaces"),
            "PYTHONPATH": str(REPO),
        }
        command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
        command += ["--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
        command += [f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={folder}"]
        command += ["--expose-app-in-browser"]
        self.log = private / "lab.log"
        with open(self.log, "wb") as log:
            self._server = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._wait()

    def _wait(self) -> None:
        for _ in range(240):
            if self._server.poll() is not None:
                break
            try:
                self.ask("GET", "/api/status")
                return
            except OSError:
                time.sleep(0.25)
        self.close()
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()[-3000:]}")

    def ask(self, method: str, path: str) -> Any:
        """What the server's API answers."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def trust(self, path: Path) -> None:
        """Sign a notebook as its author would: widgets of others are not shown."""
        command = [sys.executable, "-m", "jupyter", "trust", str(path)]
        subprocess.run(command, env=self._environment, check=True, capture_output=True)

    def end_sessions(self) -> None:
        """Kernels outlive pages."""
        for session in self.ask("GET", "/api/sessions"):
            self.ask("DELETE", f"/api/sessions/{session['id']}")

    def close(self) -> None:
        self._server.terminate()
        try:
            self._server.wait(20)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()


class Notebook:
    """A notebook open in a page of the browser."""

    def __init__(self, lab: Lab, page: Any, name: str, *, kernel: bool = True) -> None:
        self.lab = lab
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(f"{lab.url}/lab/tree/{name}?reset&token={lab.token}")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)
        self.wait_for("async () => { await jupyterapp.shell.currentWidget.context.ready; }")
        if kernel:
            # the idle light shows before the kernel exists, and "run all" would then be lost
            self.wait_for(
                "async () => { const c = jupyterapp.shell.currentWidget.sessionContext;"
                "await c.ready; await c.session.kernel.info; }"
            )

    def wait_for(self, script: str) -> None:
        self.page.evaluate(script)

    def run_all(self) -> None:
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")

    def save(self) -> None:
        self.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")

    def ask_kernel(self, expression: str) -> Any:
        """The value of an expression in the kernel, by way of JSON."""
        script = """async (code) => {
            const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const future = kernel.requestExecute({ code: "", silent: true, store_history: false,
                user_expressions: { value: code } });
            const reply = await future.done;
            return reply.content.user_expressions.value;
        }"""
        reply = self.page.evaluate(script, f"__import__('json').dumps({expression})")
        if reply["status"] != "ok":
            raise RuntimeError(f"{expression}: {reply}")
        return json.loads(json.loads(_unquoted(reply["data"]["text/plain"])))

    def run_in_kernel(self, code: str) -> None:
        """Run a statement there."""
        self.page.evaluate(
            """async (code) => {
            const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            await kernel.requestExecute({ code, silent: true }).done;
        }""",
            code,
        )

    def theme(self, name: str) -> None:
        """ "JupyterLab Light" or "JupyterLab Dark"."""
        self.page.evaluate(
            "(theme) => jupyterapp.commands.execute('apputils:change-theme', { theme })", name
        )
        self.page.wait_for_timeout(600)


def _unquoted(text: str) -> str:
    """A Python string's repr, as JSON of that string."""
    import ast

    return json.dumps(ast.literal_eval(text))


@contextmanager
def open_browser(**options: Any) -> Iterator[Any]:
    """A browser of this machine.

    Raises:
        FileNotFoundError: There is none.
    """
    from playwright.sync_api import sync_playwright

    path = find_browser()
    if path is None:
        raise FileNotFoundError("no Chromium or Chrome is installed; expected one on PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS), **options)
        try:
            yield browser
        finally:
            browser.close()
