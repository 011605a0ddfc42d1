"""A grid's answer as a W&B report: what it holds, and what it must not hold."""

import json
import subprocess
import sys
from pathlib import Path

from nangrid.cell.config import CONF_DIR

ROOT = CONF_DIR.parent


def printed(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "sweeps" / "grid_report.py"), *arguments, "--entity", "me", "--print"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_report_has_verdict_onset_map_and_links(default_grid: Path) -> None:
    made = json.loads(printed(str(default_grid)).stdout)
    texts = [block["content"] for block in made["spec"]["blocks"] if block["type"] == "markdown-block"]
    assert made["description"] == "8 of 14 runs failed, in 3 ways."
    assert "dtype=fp16 causes it, and dtype=bf16 cures it" in texts[0] and "<bos>" not in texts[0]
    (row,) = [line for line in texts[1].splitlines() if "2769c279" in line]
    run = "http://127.0.0.1:9/me/nangrid/runs/default-d2bbf41c-2769c279f826"
    assert row.startswith("| fp16 | zero | paged_adamw_8bit | none | step 0 (loss) | fp16-activation-overflow |")
    assert run in row and len(texts[1].splitlines()) == 2 + 14
    assert texts[2].endswith("http://127.0.0.1:9/me/nangrid/groups/default-d2bbf41c)")


def test_a_directory_without_a_grid_is_refused(tmp_path: Path) -> None:
    refused = printed(str(tmp_path / "none"))
    assert refused.returncode == 2 and "Traceback" not in refused.stderr and str(tmp_path / "none") in refused.stderr
