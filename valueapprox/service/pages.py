"""The pages for people: each is one file, and comes with a policy by which a browser runs and loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import Request, Response

__all__ = ["page"]


def page(name: str) -> Callable[[Request], Awaitable[Response]]:
    """The handler of a page: the file `name` beside this one."""
    body = Path(__file__).with_name(name).read_bytes()
    headers = {
        "content-security-policy": _policy(body),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }

    async def answer(request: Request) -> Response:
        return Response(body, 200, headers, "text/html; charset=utf-8")

    return answer


def _policy(body: bytes) -> str:
    """The page's own script and style, known by their hashes, and requests to where it came from.

    What a script puts into the page can only be text: a browser that knows trusted types refuses to read it as HTML.
    """

    def hashes(tag: str) -> str:
        found: list[bytes] = re.findall(rb"<%b>(.*?)</%b>" % (tag.encode(), tag.encode()), body, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text).digest()).decode() for text in found]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {hashes('script')}",
            f"style-src {hashes('style')}",
            "connect-src 'self'",
            "img-src data:",
            *(f"{name} 'none'" for name in ("base-uri", "form-action", "frame-ancestors", "trusted-types")),
            "require-trusted-types-for 'script'",
        ]
    )
