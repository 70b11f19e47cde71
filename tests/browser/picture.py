"""Takes the pictures of the pages that the documentation shows, from a real run of the demo and of several.

Run by scripts/picture.
"""

import argparse
import base64
import contextlib
import itertools
import struct
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvgauge.simulate.device import H100_LLAMA_31_8B
from kvgauge.simulate.load import SyntheticLoad
from kvgauge.simulate.serving import EmbeddedEngine
from tests.support.process import demo, sidecar

from .browsing import BrowserMissingError, Scheme, launched, visiting
from .clusters import aggregated, deaf_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser

MAX_PICTURE_BYTES = 250_000
_WIDTH = 1280
_DEMOS = 4
"""The first one's own page is shown too."""
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
    """Writes docs/live.png, docs/live-dark.png and docs/fleet.png. Exits 1 with one line when they cannot be had."""
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
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvgauge-picture-")))
        demos = [stack.enter_context(demo("--seed", str(seed))) for seed in range(1, _DEMOS + 1)]
        fleet = stack.enter_context(_fleet(folder, [one.port for one in demos]))
        print(f"scripts/picture: {seconds:g} s of {demos[0].url} and {fleet}", file=sys.stderr)
        # Both remember the load by themselves; nobody needs to look meanwhile.
        threading.Event().wait(seconds)
        for one in demos:
            if one.process.poll() is not None:
                sys.exit(f"scripts/picture: a demo ended before its time, with {one.process.returncode}")
        for scheme, name in _PICTURES:
            # Down to the memory; what follows holds names of this machine and is the same all the time.
            _take(browser, demos[0].url, scheme, _DOCS / name, "#gpus")
        _take(browser, fleet, "light", _DOCS / "fleet.png", "#past")


@contextlib.contextmanager
def _fleet(folder: Path, ports: Sequence[int]) -> Iterator[str]:
    """The page of an aggregator over the demos, a pod that is not heard, and two with a third of the demos' load."""
    with deaf_port() as nobody, _calm(11) as one, _calm(12) as other:
        *chat, batch = ports
        workloads = {
            ("chat", "llama-3.1-8b"): _pods("llama-3.1-8b-6d4cf56db6", chat),
            ("batch", "summaries"): _pods("summaries-6d4cf56db6", [batch, nobody]),
            ("search", "answers"): _pods("answers-6d4cf56db6", [one, other]),
        }
        with aggregated(folder, workloads) as address:
            yield address


@contextlib.contextmanager
def _calm(seed: int) -> Iterator[int]:
    """The port of a sidecar beside an embedded engine that every third of the demo's requests comes to."""
    load = itertools.islice(SyntheticLoad(seed, H100_LLAMA_31_8B.spec.max_model_len), 0, None, 3)
    with EmbeddedEngine(load=load) as engine, sidecar("--engine-url", engine.base_url) as running:
        yield running.port


def _pods(prefix: str, ports: Sequence[int]) -> dict[str, int]:
    return {
        f"{prefix}-{ending}": port for ending, port in zip(("x7k2p", "m4c9d", "tq8zl", "b5w6n"), ports, strict=False)
    }


def _take(browser: "Browser", address: str, scheme: Scheme, path: Path, last: str) -> None:
    """Down to the section that holds `last`."""
    with visiting(browser, address, width=_WIDTH, scheme=scheme) as visit:
        visit.until_live()
        box = visit.page.locator(f"section:has(> {last})").bounding_box()
        if box is None:
            sys.exit(f"scripts/picture: the page shows no {last}")
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
