"""The page in a real browser: no errors, tables that sort, a picture that is not empty."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from readings_factory import write_run

from genmeasure.report import write_report

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = [pytest.mark.browser,
              pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is on the PATH")]

PROBE = """<script>
const problems = [];
addEventListener("error", event => problems.push(event.message));
addEventListener("securitypolicyviolation", event => problems.push("blocked " + event.blockedURI));
addEventListener("load", () => {
  const table = document.querySelector("#table-checkpoints + p + .scroll table");
  const heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex(head => head.textContent === "trace");
  const keys = () => [...table.tBodies[0].rows].map(row => row.cells[column].dataset.key);
  const button = heads[column].querySelector("button");
  button.focus();
  const focused = document.activeElement === button;
  const states = [];
  for (let turn = 0; turn < 2; turn++) {
    button.click();
    states.push([heads[column].getAttribute("aria-sort"), keys()]);
  }
  const pictures = [...document.images].map(image => image.naturalWidth);
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify({problems, focused, states, pictures, wide});
  document.body.append(result);
});
</script>"""


def browse(page: Path, *options: str) -> str:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
               "--disable-background-networking", f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=90).stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize("size", ["1280,900", "500,900"])
def test_tables_sort_and_nothing_breaks(report, size):
    probe = report.with_name("probe.html")
    probe.write_text(report.read_text(encoding="utf-8").replace("</title>", f"</title>{PROBE}"), encoding="utf-8")
    dom = browse(probe, "--dump-dom", f"--window-size={size}", "--virtual-time-budget=3000")
    found = json.loads(re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)[1])
    assert found["problems"] == []
    assert found["focused"]
    assert min(found["pictures"]) > 100
    assert found["wide"] == 0
    (up, rising), (down, falling) = found["states"]
    assert (up, down) == ("ascending", "descending")
    assert rising[-1] == falling[-1] == "", "what is missing stays last"
    numbers = [float(key) for key in rising[:-1]]
    assert numbers == sorted(numbers)
    assert [float(key) for key in falling[:-1]] == numbers[::-1]


def test_a_screenshot_has_content(report):
    picture = report.with_name("report.png")
    browse(report, f"--screenshot={picture}", "--window-size=1280,1600", "--hide-scrollbars")
    assert picture.stat().st_size > 50_000
