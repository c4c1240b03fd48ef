"""A page in a real browser: its console, overflow, contrast, images and charts, by width."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium")
WIDTHS = (390, 700, 720, 1280)
SCHEMES = {"dark": 0, "light": 1}  # values of Chromium's preferredColorScheme
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no `chromium` on PATH: apt-get install -y chromium",
)

MEASURE = """
const luminance = colour => {
  const parts = colour.slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const parse = text => {
  const parts = text.match(/[0-9.]+/g).map(Number);
  return parts.length === 3 ? [...parts, 1] : parts;
};
const behind = (element, view) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = parse(view.getComputedStyle(at).backgroundColor);
    if (colour[3] === 1) return colour;
  }
  return [255, 255, 255, 1];
};
const measure = frame => {
  const page = frame.contentDocument, view = frame.contentWindow, found = {};
  const root = page.documentElement;
  found.width = root.clientWidth;
  found.overflow = Math.max(root.scrollWidth, page.body.scrollWidth) - root.clientWidth;
  found.outside = [];
  found.clipped = [];
  found.contrast = 21;
  for (const element of page.body.querySelectorAll('*')) {
    const box = element.getBoundingClientRect(), style = view.getComputedStyle(element);
    if (!box.width || element.closest('.hidden, details:not([open]) > :not(summary)')) continue;
    if (!element.closest('.scroll') && (box.right > found.width + 0.5 || box.left < -0.5))
      found.outside.push(element.outerHTML.slice(0, 120));
    const drawing = element.tagName === 'text' && element.closest('svg').getBoundingClientRect();
    if (drawing && (box.left < drawing.left - 1 || box.right > drawing.right + 1
        || box.top < drawing.top - 3 || box.bottom > drawing.bottom + 3))
      found.clipped.push(element.outerHTML.slice(0, 120));
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || ['title', 'desc'].includes(element.tagName)) continue;
    const inSvg = element.namespaceURI.endsWith('svg');
    const front = luminance(parse(inSvg ? style.fill : style.color));
    const back = luminance(behind(element, view));
    const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (contrast < found.contrast) {
      found.contrast = contrast;
      found.faintest = element.outerHTML.slice(0, 120);
    }
  }
  found.background = view.getComputedStyle(page.body).backgroundColor;
  found.images = [...page.images].map(image => image.complete && image.naturalWidth > 0);
  found.charts = [...page.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect().width);
  found.title = page.title;
  return found;
};
addEventListener('load', () => {
  const found = [...document.querySelectorAll('iframe')].map(measure);
  document.getElementById('found').textContent = JSON.stringify(found);
});
"""


def browse(page, tmp_path, scheme, widths=WIDTHS):
    """Open ``page`` as it is in frames of several widths; what was measured, and the console."""
    frames = "".join(
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{html.escape(page)}">'
        "</iframe>"
        for width in widths
    )
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f'<!doctype html><meta charset="utf-8"><script>{MEASURE}</script>{frames}'
        '<pre id="found"></pre>',
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            f"--user-data-dir={tmp_path / ('profile-' + scheme)}",
            "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found.group(1))), console
