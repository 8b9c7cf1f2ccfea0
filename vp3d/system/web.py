"""The one way in which VP3D asks a web server: credentials stay with the server they are for.

urllib repeats the headers of a request to wherever a redirect leads, and turns a redirected POST
into a GET. Here a redirect never carries a credential along, a POST is not redirected at all, and
no redirect leaves http(s) or goes from https back to http.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

CREDENTIALS = frozenset(("authorization", "proxy-authorization", "cookie", "x-api-key"))
SAFE_METHODS = ("GET", "HEAD")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect of GET and HEAD without the credentials of the request."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to send to `newurl`; HTTPError where the redirect is refused."""
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        method = req.get_method()
        refused = ""
        if method not in SAFE_METHODS:
            refused = f"it redirects a {method} to {after.netloc}, which is not followed"
        elif after.scheme not in ("http", "https"):
            refused = f"it redirects to an address of another kind ({after.scheme}:)"
        elif before.scheme == "https" and after.scheme == "http":
            refused = "it redirects from https to http, which is not followed"
        if refused:
            raise urllib.error.HTTPError(req.full_url, code, refused, headers, fp)
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None:
            for name in [name for name in following.headers if name.lower() in CREDENTIALS]:
                del following.headers[name]
        return following


def open_url(
    url: str,
    timeout_s: float,
    headers: dict[str, str] | None = None,
    data: bytes | None = None,
    method: str | None = None,
) -> Any:
    """Send one request and return the reply, a context manager with `status` and `headers`.

    Args:
        url: An http(s) address.
        timeout_s: Seconds without a byte before TimeoutError.
        headers: Headers of the request. Credentials among them go to `url` alone.
        data: The body; with one, the request is a POST.
        method: The method, if it is neither GET nor POST.

    Returns:
        urllib's reply.

    Raises:
        urllib.error.HTTPError: The server answers with an error, or with a redirect that is not
            followed.
        urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException, ValueError:
            There is no usable answer.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{url[:60]} is not an http(s) address")
    request = urllib.request.Request(url, data, method=method)
    for name, value in (headers or {}).items():
        add = request.add_unredirected_header if name.lower() in CREDENTIALS else request.add_header
        add(name, value)
    return urllib.request.build_opener(_Redirects).open(request, timeout=timeout_s)
