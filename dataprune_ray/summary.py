"""A finished run on the terminal: a short table that ends with the paths."""

from __future__ import annotations

from typing import Any


def text(manifest: dict[str, Any]) -> str:
    """The summary that the prune job prints."""
    rows, keep = manifest["rows"], manifest["keep"]
    asked = "" if keep["requested"] is None else f", asked {100 * keep['requested']:g} %"
    lines = [
        manifest["rule"]["explanation"],
        "",
        f"  rows in      {rows['in']:>14,}",
        f"  kept         {rows['kept']:>14,}   {100 * keep['achieved']:.2f} %{asked}",
        f"  dropped      {rows['dropped']:>14,}",
        f"  quarantined  {rows['quarantined']:>14,}",
        (
            f"  bytes        {_bytes(sum(f['size'] for f in manifest['inputs'])):>14}   "
            f"now {_bytes(sum(part['bytes'] for part in manifest['outputs']))}"
        ),
        f"  seconds      {sum(manifest['seconds'].values()):>14.1f}   "
        + ", ".join(f"{name} {value:.1f}" for name, value in manifest["seconds"].items()),
    ]
    if manifest["keep_end_overridden"]:
        lines.append(
            f"  kept end     {manifest['keep_end']:>14}   (--keep-end; not the metric's own)"
        )
    lines += [f"  warning      {warning}" for warning in manifest["warnings"]]
    output = manifest["output"].rstrip("/")
    lines += ["", f"  pruned data  {output}/data", f"  report       {output}/report.html"]
    return "\n".join(lines)


def for_scheduler(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the last line of ``--json`` holds."""
    return {
        "rows": manifest["rows"],
        "keep": manifest["keep"],
        "content_hash": manifest["content_hash"],
        "warnings": manifest["warnings"],
        "seconds": manifest["seconds"],
        "data": f"{manifest['output'].rstrip('/')}/data",
        "report": f"{manifest['output'].rstrip('/')}/report.html",
        "manifest": f"{manifest['output'].rstrip('/')}/manifest.json",
    }


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":  # noqa: PLR2004
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return ""
