"""The page as it is sent, and the policy that lets nothing from elsewhere into it."""

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from re import findall
from typing import NamedTuple


class Page(NamedTuple):
    """One HTML file with its style and script inside."""

    html: bytes
    policy: str
    """For Content-Security-Policy."""


def read_page() -> Page:
    """The page of this package."""
    html = files(__package__).joinpath("page.html").read_text("utf-8")
    policy = (
        f"default-src 'none'; style-src {_digest('style', html)}; script-src {_digest('script', html)}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(html.encode(), policy)


def _digest(tag: str, html: str) -> str:
    """What allows the page's only element of that kind, by its content."""
    (text,) = findall(rf"(?s)<{tag}>(.*?)</{tag}>", html)
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
