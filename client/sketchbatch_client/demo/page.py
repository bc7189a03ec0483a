"""Load the page and compute the policy that blocks all content from other origins."""

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from re import findall


def read_page() -> tuple[bytes, str]:
    """Return the page, which contains its style and script, and its Content-Security-Policy."""
    html = files(__package__).joinpath("page.html").read_text("utf-8")
    policy = (
        f"default-src 'none'; style-src {_digest('style', html)}; script-src {_digest('script', html)}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.encode(), policy


def _digest(tag: str, html: str) -> str:
    """Return the hash of the text in the only element with this tag, for a Content-Security-Policy: 'sha256-...'."""
    (text,) = findall(rf"(?s)<{tag}>(.*?)</{tag}>", html)
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
