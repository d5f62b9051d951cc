"""Bodies that say beforehand that they are too large: read and thrown away, then refused.

Envoy by itself refuses them at once and resets the HTTP/2 stream. A client that still sends then loses the answer:
curl before 8.0 ends with error 92 and shows nothing. So this process takes the body, within bounds, and answers last.
What sends no length, or too much, is refused by Envoy's own limit all the same.
"""

from __future__ import annotations

import json

from aiohttp import web

from sendense_gateway.edge_errors import EDGE_ERRORS

READ_BYTES = 64 << 20
"""What is taken at most. A client that sends more sees the stream reset."""
_CHUNK = 256 << 10


async def refuse_oversize(request: web.Request) -> web.Response:
    """Reads the body and answers 413."""
    left = READ_BYTES
    async for chunk in request.content.iter_chunked(_CHUNK):
        left -= len(chunk)
        if left < 0:
            break
    (error,) = [each for each in EDGE_ERRORS if each.status == web.HTTPRequestEntityTooLarge.status_code]
    shown = {"code": error.code, "reason": error.reason, "message": error.message, "help": error.help, "details": []}
    return web.Response(body=json.dumps(shown).encode(), status=error.status, content_type="application/json")
