"""What the repository says of itself holds: the README, the changelog, what is tracked."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dataprune_ray import __version__, cli
from dataprune_ray.config import CompareConfig, PruneConfig, stages
from dataprune_ray.corpora.config import MakeCorpusConfig
from dataprune_ray.io.output import FOLDERS, MANIFEST, REPORT, RUN_FILE
from dataprune_ray.metrics import METRICS
from dataprune_ray.strategies import STRATEGIES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
JOBS = {
    "prune.py": PruneConfig,
    "corpus.py": MakeCorpusConfig,
    "compare.py": CompareConfig,
    "tune.py": PruneConfig,
}
FLAGS_OF_OTHER_TOOLS = {"--working-dir", "--generate"}
TOP_LEVEL = {
    ".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "cluster.yaml", "dataprune_ray",
    "jobs", "pyproject.toml", "tests",
}  # fmt: skip
#: Folders of one machine, and hosts that an installer is told elsewhere.
FOREIGN = re.compile(
    r"(?<![\w.~$}])/(?:home|root|work|Users|opt|mnt|srv)/\w"
    r"|pypi\.org|pythonhosted\.org|download\.pytorch\.org|--(?:extra-)?index-url|--find[-]links"
)


def table(title):
    """Rows of the first table of a README section, as lists of cells."""
    section = README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands():
    """Every call of a job in the README: the job's file name and its arguments."""
    for line in "".join(blocks("bash")).splitlines():
        for call in re.findall(r"python jobs/(.*)", line):
            name, *arguments = shlex.split(call)
            yield name, arguments


def tracked():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize(("title", "registry"), [("Metrics", METRICS), ("Strategies", STRATEGIES)])
def test_tables_list_exactly_what_is_registered(title, registry):
    names = [row[0].strip("`") for row in table(title)]
    assert sorted(names) == sorted(registry)
    assert all(len(row) == len(table(title)[0]) and all(row) for row in table(title))


def test_the_tables_name_the_kept_end():
    for name, _, end, *_ in table("Metrics"):
        metric = METRICS[name.strip("`")]
        assert end == ("as that metric" if metric.learns else metric.polarity)
    for name, _, end, *_ in table("Strategies"):
        by_score = STRATEGIES[name.strip("`")].uses_score
        assert end == ("the metric's" if by_score else "none, by hash")


def test_every_command_of_a_job_is_understood():
    found = list(commands())
    assert {name for name, _ in found} == set(JOBS)
    for name, arguments in found:
        if "--config" in arguments:  # the file is the README's own
            position = arguments.index("--config")
            arguments[position : position + 2] = []
        cli.parse(JOBS[name], arguments, "", {})


def test_every_flag_that_is_named_exists():
    known = {"--config", "--json", "--version", "--help", *FLAGS_OF_OTHER_TOOLS}
    for job in JOBS.values():
        for stage in stages(job).values():
            for name, field in stage.model_fields.items():
                flag = name.replace("_", "-")
                known |= (
                    {f"--{flag}", f"--no-{flag}"} if field.annotation is bool else {f"--{flag}"}
                )
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README))
    assert named <= known, named - known
    assert len(named) > 20


def test_the_settings_file_is_understood():
    (text,) = blocks("yaml")
    config = PruneConfig.from_flat(yaml.safe_load(text))
    assert config.select.keep == 0.3


def test_the_output_tree_is_complete():
    (tree,) = blocks("text")
    for name in (*(f"{folder}/" for folder in FOLDERS), REPORT, MANIFEST, RUN_FILE):
        assert name in tree


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_the_picture_is_small():
    assert (ROOT / ".ci" / "report.png").stat().st_size < 150_000


def test_the_changelog_knows_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    assert versions[0] == __version__


def test_the_top_level_holds_only_what_belongs_there():
    assert {name.split("/")[0] for name in tracked()} <= TOP_LEVEL


def test_no_tracked_text_names_a_machine():
    found = []
    for name in tracked():
        path = ROOT / name
        if path.suffix == ".png" or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if FOREIGN.search(line):
                found.append(f"{name}:{number}: {line.strip()}")
    assert found == []


def test_the_search_for_machines_finds_them():
    for text in ("see /hom" + "e/me/x", "'/op" + "t/x'", "https://pypi" + ".org/simple"):
        assert FOREIGN.search(text)
    for text in ("a/work/b", "~/opt/x", "$HOME/home/x", "/dev/sda1", "tmp_path / 'root'"):
        assert not FOREIGN.search(text)


def test_the_check_is_a_program():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    for line in ("pip install -q -e '.[test]'", "ruff check", "mypy", "lint-imports", "pytest"):
        assert line in text
