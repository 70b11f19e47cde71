"""What the web pages have in common. A page is one HTML file of its wing, in which marks stand for it."""

from importlib import resources

PAGE_HEADERS = {
    # Pages of our own may run their inline script and ask this server, nothing else.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

_MARKS = {
    "<!--head.html-->": "head.html",
    "/*page.css*/": "page.css",
    "<!--answer.html-->": "answer.html",
    "/*page.js*/": "page.js",
}


def composed(package: str, name: str) -> str:
    """The page `name` of `package` in one piece: each mark in it becomes the file of that name, which pages share."""
    page = resources.files(package).joinpath(name).read_text()
    for mark, part in _MARKS.items():
        page = page.replace(f"{mark}\n", resources.files(__name__).joinpath(part).read_text())
    return page
