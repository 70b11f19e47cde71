"""Takes the pictures of the live page that the documentation shows, from a real run of the demo.

Run by scripts/picture.
"""

import argparse
import base64
import contextlib
import struct
import sys
import zlib
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import TYPE_CHECKING

from .browsing import BrowserMissingError, Scheme, launched, visiting

if TYPE_CHECKING:
    from playwright.sync_api import Browser

MAX_PICTURE_BYTES = 250_000
_WIDTH = 1280
_DOCS = Path(__file__).parents[2] / "docs"
_PIXELS = """async (png) => {
  const image = await createImageBitmap(await (await fetch("data:image/png;base64," + png)).blob());
  const pen = new OffscreenCanvas(image.width, image.height).getContext("2d");
  pen.drawImage(image, 0, 0);
  const pixels = pen.getImageData(0, 0, image.width, image.height).data.filter((_, index) => index % 4 < 3);
  const reader = new FileReader();
  await new Promise((done) => { reader.onload = done; reader.readAsDataURL(new Blob([pixels])); });
  return [image.width, image.height, reader.result.split(",")[1]];
}"""
_PICTURES: tuple[tuple[Scheme, str], ...] = (("light", "live.png"), ("dark", "live-dark.png"))


def main() -> None:
    """Writes docs/live.png and docs/live-dark.png. Exits 1 with one line when they cannot be had."""
    arguments = argparse.ArgumentParser(prog="scripts/picture", description=__doc__)
    arguments.add_argument(
        "--seconds",
        type=float,
        default=190.0,
        help="run of the demo before the picture (default 190: two bursts of the load)",
    )
    seconds = arguments.parse_args().seconds
    try:
        with launched() as browser:
            _take_after(seconds, browser)
    except BrowserMissingError as missing:
        sys.exit(f"scripts/picture: {missing}")


def _take_after(seconds: float, browser: "Browser") -> None:
    with Popen([sys.executable, "-m", "kvgauge", "demo", "--port", "0"], stderr=PIPE, text=True) as demo:
        try:
            address = next(
                (word for line in demo.stderr or () for word in line.split() if word.startswith("http")), None
            )
            if address is None:
                sys.exit("scripts/picture: the demo did not start")
            print(f"scripts/picture: {seconds:g} s of {address}", file=sys.stderr)
            # The sidecar remembers the load by itself; nobody needs to look meanwhile.
            with contextlib.suppress(TimeoutExpired):
                status = demo.wait(seconds)
                sys.exit(f"scripts/picture: the demo ended before its time, with {status}: {demo.communicate()[1]}")
            for scheme, name in _PICTURES:
                _take(browser, address, scheme, _DOCS / name)
        finally:
            demo.terminate()


def _take(browser: "Browser", address: str, scheme: Scheme, path: Path) -> None:
    with visiting(browser, address, width=_WIDTH, scheme=scheme) as visit:
        visit.until_live()
        # Down to the memory; what follows holds names of this machine and is the same all the time.
        box = visit.page.locator("section:has(> #gpus)").bounding_box()
        if box is None:
            sys.exit("scripts/picture: the page shows no memory")
        height = round(box["y"] + box["height"]) + 16
        visit.page.set_viewport_size({"width": _WIDTH, "height": height})
        picture = visit.page.screenshot()
    with visiting(browser, "about:blank") as workshop:
        path.write_bytes(_smaller(workshop.page.evaluate(_PIXELS, base64.b64encode(picture).decode())))
    size = path.stat().st_size
    print(f"{path.relative_to(_DOCS.parent)}  {size} bytes, at most {MAX_PICTURE_BYTES}")
    if size > MAX_PICTURE_BYTES:
        sys.exit(f"scripts/picture: {path.name} has {size} bytes, more than {MAX_PICTURE_BYTES}")


def _smaller(picture: tuple[int, int, str]) -> bytes:
    """(width, height, RGB in base64) as a PNG whose lines are not filtered: a quarter smaller, where most is text."""
    width, height, encoded = picture
    pixels, line = base64.b64decode(encoded), width * 3
    lines = b"".join(b"\0" + pixels[start : start + line] for start in range(0, len(pixels), line))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    framed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


if __name__ == "__main__":
    main()
