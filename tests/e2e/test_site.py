"""The documentation's site: every link leads somewhere, it fits a phone, and nothing comes from outside."""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

from browser import CHROMIUM, browser

ROOT = Path(__file__).parents[2]
PAGES = ("", "quick-start/", "user-guide/", "troubleshooting/", "errors/", "cli-reference/", "api-reference/")
WIDTHS = (1280, 400)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. `--strict` makes a warning, such as a link to a page that is not there, an error."""
    folder = tmp_path_factory.mktemp("site")
    mkdocs = Path(sys.executable).with_name("mkdocs")
    command = [mkdocs, "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site, served."""
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


class Links(HTMLParser):
    """Collects a page's links and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name in ("id", "name"):
                self.anchors.add(value)
            if (tag, name) in (("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")):
                self.links.append(value)


def test_every_internal_link_and_anchor_leads_somewhere(site: Path) -> None:
    pages = {path: Links(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 10
    dead = []
    for path, page in pages.items():
        base = "http://site/" + str(path.relative_to(site))
        for link in page.links:
            url, anchor = urldefrag(urljoin(base, link))
            if urlsplit(url).netloc != "site":
                continue
            target = site / unquote(urlsplit(url).path).lstrip("/")
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (anchor and target in pages and unquote(anchor) not in pages[target].anchors):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert dead == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
async def test_pages_fit_desktop_and_phone_and_load_nothing_from_outside(address: str, tmp_path: Path) -> None:
    async with browser(tmp_path / "profile") as page:
        for width in WIDTHS:
            await page.resize(width, 1400)
            for name in PAGES:
                await page.open(address + name)
                assert await page.evaluate("document.querySelector('h1').textContent"), name
                assert await page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
                broken = "[...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
                assert await page.evaluate(broken) == [], name
                await page.screenshot(ROOT / "build" / "site" / f"{name.strip('/') or 'index'}-{width}.png")
        outside = [url for url in page.requests if not url.startswith((address, "data:"))]
        assert outside == []
        assert page.errors == []
