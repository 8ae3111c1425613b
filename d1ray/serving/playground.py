"""The playground's files: the folder page/, and d1ray/page/ with what all pages have."""

from pathlib import Path

from starlette.responses import Response

import d1ray.page
from d1ray.serving.refusals import ApiError

FOLDERS = (Path(__file__).parent / "page", Path(d1ray.page.__path__[0]))
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def answer(name: str) -> Response:
    """The file of that name; nothing outside of the folders can be named.

    Raises:
        ApiError: 404.
    """
    files = {path.name: path for folder in FOLDERS for path in folder.iterdir() if path.suffix in TYPES}
    if name not in files:
        raise ApiError(404, "there is no such file")
    path = files[name]
    return Response(path.read_bytes(), media_type=TYPES[path.suffix], headers=HEADERS)
