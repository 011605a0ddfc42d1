"""The dashboard that would be saved equals the reviewed one."""

import json
import re
import subprocess
import sys
from pathlib import Path

from fake_server import FakeServer

from nangrid.cell.config import CONF_DIR

GOLDEN = Path(__file__).parent / "golden" / "dashboard.json"
COMMAND = [sys.executable, str(CONF_DIR.parent / "sweeps" / "dashboard.py"), "--entity", "me", "--project", "nangrid"]


def test_dashboard_matches_the_golden_file() -> None:
    """To accept a change: python sweeps/dashboard.py --entity me --print, with the values of __id__ masked."""
    printed = subprocess.run([*COMMAND, "--print"], capture_output=True, text=True, check=True).stdout
    masked = re.sub(r'"__id__": "\w+"', '"__id__": "masked"', printed)
    assert json.loads(masked) == json.loads(GOLDEN.read_text())


def test_the_dashboard_is_saved(server: FakeServer, key: str) -> None:
    printed = subprocess.run(COMMAND, capture_output=True, text=True, check=True).stdout
    (view,) = server.views
    assert (view["entityName"], view["projectName"]) == ("me", "nangrid")
    assert "Onset by factor" in view["spec"]
    assert printed.startswith(f"{server.url}/me/nangrid?nw=")
