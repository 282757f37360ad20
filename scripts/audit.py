"""Looks up known holes in everything that prunefront needs: `make audit`.

Exit code 0: looked up, none known. 1: there are, and which. 3: the advisories could not be reached, so nothing was
looked up; that is no clean bill, and it says so.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

HOLES, UNKNOWN = 1, 3


def judged(found: dict[str, Any], needed: Iterable[str]) -> tuple[int, str]:
    """Exit code and text for what pip-audit reports as JSON. needed: packages that must have been looked up."""
    holes = [
        f"{package['name']} {package['version']}: {hole['id']}, mended in "
        f"{', '.join(hole['fix_versions']) or 'no version yet'}"
        for package in found["dependencies"]
        for hole in package.get("vulns", ())
    ]
    looked_up = {package["name"].lower() for package in found["dependencies"] if "vulns" in package}
    if holes:
        return HOLES, "known holes:\n  " + "\n  ".join(sorted(holes))
    if missing := sorted({name.lower() for name in needed} - looked_up):
        return UNKNOWN, f"NOT CHECKED: no advisories could be had for {', '.join(missing)}"
    return 0, f"no known holes in {len(looked_up)} packages"


def main() -> int:
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--timeout",
        "20",
    ]
    done = subprocess.run([*command, *sys.argv[1:]], capture_output=True, text=True, check=False)
    try:
        code, said = judged(
            json.loads(done.stdout), ("ray", "mlflow", "boto3", "pydantic", "pillow", "pyarrow")
        )
    except ValueError:
        reason = next(reversed(done.stderr.strip().splitlines()), "it said nothing")
        code, said = UNKNOWN, f"NOT CHECKED: pip-audit could not reach the advisories ({reason[:200]})"
    print(said, file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
