"""Swagger UI at `/docs`, from the files that the package swagger-ui-py installs, with no outside address."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from aiohttp import web

from sendense_gateway.routes import DOCS_PATH, OPENAPI_PATH

_ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sendense API</title>
<link rel="icon" href="{DOCS_PATH}/favicon-32x32.png">
<link rel="stylesheet" href="{DOCS_PATH}/swagger-ui.css">
</head>
<body>
<main id="api"></main>
<script src="{DOCS_PATH}/swagger-ui-bundle.js"></script>
<script src="{DOCS_PATH}/start.js"></script>
</body>
</html>
"""
_START = f"""SwaggerUIBundle({{
  url: "{OPENAPI_PATH}",
  dom_id: "#api",
  deepLinking: true,
  validatorUrl: null,
  persistAuthorization: false,
}});
"""
_HEADERS = {
    # Whatever the page tries, the browser talks to this gateway only.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_docs(application: web.Application) -> None:
    """Adds the page and its files to an application.

    Raises:
        FileNotFoundError: swagger-ui-py is not installed.
    """
    assets = _assets_folder()

    async def page(request: web.Request) -> web.Response:
        del request
        return web.Response(text=_PAGE, content_type="text/html", headers=_HEADERS)

    async def start(request: web.Request) -> web.Response:
        del request
        return web.Response(text=_START, content_type="text/javascript", headers=_HEADERS)

    async def asset(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in _ASSETS:
            raise web.HTTPNotFound
        return web.FileResponse(assets / name, headers={**_HEADERS, "Content-Type": _ASSETS[name]})

    application.router.add_get(DOCS_PATH, page)
    application.router.add_get(f"{DOCS_PATH}/", page)
    application.router.add_get(f"{DOCS_PATH}/start.js", start)
    application.router.add_get(f"{DOCS_PATH}/{{name}}", asset)


def _assets_folder() -> Path:
    # Not imported: of the package only the files are wanted.
    found = importlib.util.find_spec("swagger_ui")
    for place in (found.submodule_search_locations if found else None) or ():
        if (Path(place) / "static" / "swagger-ui-bundle.js").is_file():
            return Path(place) / "static"
    raise FileNotFoundError("the files of swagger-ui-py are not installed: run `make setup`")
