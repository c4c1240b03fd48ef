"""A finished run on the terminal: a short table that ends with the paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataprune_ray.costs import Estimate, StageCost


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
    lines += _since_baseline(manifest)
    lines += [f"  warning      {warning}" for warning in manifest["warnings"]]
    output = manifest["output"].rstrip("/")
    lines += ["", f"  pruned data  {output}/data", f"  report       {output}/report.html"]
    return "\n".join(lines)


def _since_baseline(manifest: dict[str, Any]) -> list[str]:
    baseline, drift = manifest.get("baseline"), manifest.get("drift")
    lines = []
    if baseline:
        files, rows = baseline["files"], baseline["rows"]
        lines.append(
            f"  baseline     {rows['reused']:>14,}   rows reused, {rows['scored']:,} scored; "
            f"files: {files['reused']:,} reused, {files['new']:,} new, "
            f"{files['changed']:,} changed, {files['vanished']:,} vanished"
        )
    if drift:
        classes = "" if drift["class_psi"] is None else f", of classes {drift['class_psi']:.3f}"
        limit = "" if drift["max_drift"] is None else f"; limit {drift['max_drift']:g}"
        lines.append(
            f"  drift        {drift['psi']:>14.3f}   PSI of scores{classes}; "
            f"KS {drift['ks']:.3f}{limit}{', exceeded' if drift['exceeded'] else ''}"
        )
    return lines


def for_scheduler(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the last line of ``--json`` holds."""
    return {
        "rows": manifest["rows"],
        "keep": manifest["keep"],
        "content_hash": manifest["content_hash"],
        "baseline": manifest.get("baseline"),
        "drift": manifest.get("drift"),
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


def cost_lines(estimates: Sequence[Estimate]) -> list[str]:
    """What a run costs: every stage on the first cluster, one line for each of the others."""
    here, *planned = estimates
    priced = here.dollars is not None
    head = f"  {'stage':<13}  {'seconds':>9}  {'core hours':>10}  {'GPU hours':>10}"
    lines = ["", head + (f"  {'dollars':>9}" if priced else "")]
    lines += [f"  {stage.name:<13}  {_figures(stage)}" for stage in here.stages]
    lines += [f"  {'all':<13}  {_figures(here)}"]
    written = f"{_bytes(here.data_bytes)} of data, {_bytes(here.score_bytes)} of scores and "
    written += f"{_bytes(here.decision_bytes)} of decisions"
    lines.append(f"  driver memory about {_bytes(here.driver_bytes)}; writes about {written}")
    if planned:
        lines += [
            "",
            f"  {'on CPUs, GPUs':<13}{head[15:]}" + (f"  {'dollars':>9}" if priced else ""),
        ]
    for one in planned:
        name = f"{one.shape.cpus:,g}, {one.shape.gpus:,g}"
        lines.append(f"  {name:<13}  {_figures(one)}")
    return lines


def _figures(of: StageCost | Estimate) -> str:
    text = f"{of.seconds:>9,.1f}  {of.core_hours:>10,.3f}  {of.gpu_hours:>10,.3f}"
    return text if of.dollars is None else f"{text}  {of.dollars:>9,.2f}"


def comparison_text(found: dict[str, Any]) -> str:
    """The table and the verdict that the compare job prints."""
    unit = "accuracy %" if found["measure"] == "accuracy" else "100 R²"
    lines = [f"Tested on {found['test']}.", ""]
    width = max(len(arm["arm"]) for arm in found["arms"])
    head = f"  {'arm':<{width}}  {'budget':<7}  {'rows':>11}  {'keep':>7}  {unit:>15}"
    lines.append(
        head + f"  {'minus full':>22}  {'minus random':>22}  {'updates':>9}  {'seconds':>8}"
    )
    for arm in found["arms"]:
        lines.append(
            f"  {arm['arm']:<{width}}  {arm['budget']:<7}  {arm['rows']:>11,}  "
            f"{100 * arm['keep']:>6.2f}%  {_points(arm['mean'], arm['std'])}"
            f"  {_interval(arm['to_full']):>22}  {_interval(arm['to_random']):>22}"
            f"  {arm['updates']:>9,.0f}  {arm['seconds']:>8.1f}"
        )
        if arm["worst_class"] and arm["arm"] == "pruned":
            name, change = arm["worst_class"]
            lines.append(f"  {'':<{width}}  worst change of a class: {name}, {change:+.2f} points")
    lines += ["", *_cost_lines(found["costs"])]
    lines.append(f"Gate {'passed' if found['passed'] else 'FAILED'}: {' '.join(found['reasons'])}")
    lines += [f"Note: {note}" for note in found["notes"]]
    output = found["output"].rstrip("/")
    lines += [
        "",
        f"  every run    {output}/comparison.json",
        f"  report       {output}/report.html",
    ]
    return "\n".join(lines)


def _points(mean: float | None, std: float | None) -> str:
    if mean is None or std is None:
        return f"{'diverged':>15}"
    return f"{mean:>8.2f} ± {std:>4.2f}"


def _interval(value: dict[str, Any] | None) -> str:
    if value is None or value["mean"] is None:
        return ""
    if value["low"] is None:
        return f"{value['mean']:+.2f} [one pair]"
    return f"{value['mean']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]"


def _cost_lines(costs: dict[str, Any] | None) -> list[str]:
    if costs is None:
        return []
    spent = sum(seconds for _, seconds in costs["prune_seconds"])
    how = "measured" if costs["measured"] else "at equal epochs, from the time per update"
    line = f"Pruning took {spent:.1f} s; a training saves {costs['saved_seconds']:.1f} s ({how})"
    if costs["break_even"] is None:
        return [line + ": it does not pay in time."]
    return [line + f": it has paid after {costs['break_even']:.1f} trainings."]


def comparison_for_scheduler(found: dict[str, Any]) -> dict[str, Any]:
    """What the last line of ``--json`` holds of a comparison."""
    names = ("arm", "budget", "rows", "keep", "mean", "std", "to_full", "to_random")
    return {
        "passed": found["passed"],
        "reasons": found["reasons"],
        "arms": [{name: arm[name] for name in names} for arm in found["arms"]],
        "output": found["output"],
    }


#: What the last line of ``--json`` holds of a search.
TUNED = ("chosen", "strategy", "beta", "keep", "noise_share", "reason", "confirmed", "output")


def tuned_text(found: dict[str, Any]) -> str:
    """The search and the choice that the tune job prints."""
    width = max(len(step["candidate"]) for step in found["steps"])
    lines = [f"Judged on {found['validation_rows']:,} rows held out."]
    if found["noise_share"] is not None:
        lines.append(f"Estimated share of wrong labels: {100 * found['noise_share']:.1f} %.")
    lines += ["", f"  round  keep    {'candidate':<{width}}  {'updates':>9}  {'points':>15}"]
    for step in found["steps"]:
        lines.append(
            f"  {step['round']:>5}  {100 * step['keep']:>5.4g}%  {step['candidate']:<{width}}  "
            f"{step['updates']:>9,}  {_points(step['mean'], step['std'])}"
            f"{'' if step['survived'] else '   dropped'}"
        )
    output = found["output"].rstrip("/")
    lines += ["", found["reason"], f"Chosen: {found['chosen']} at keep {found['keep']:g}."]
    lines += ["", f"  next         python jobs/prune.py --config {output}/best.yaml"]
    return "\n".join([*lines, f"  every trial  {output}/tune.json"])
