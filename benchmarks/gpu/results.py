"""The run's one JSON file, rewritten after every few rows: a run that is cut off keeps what it had."""

import json
import os
import time
from pathlib import Path
from typing import Any

from penstock.benchmarks.gpu.rows import label

FORMAT = 1
_SECONDS_BETWEEN_WRITES = 2.0


class Results:
    """`data` is what results.json holds:

    {"format": 1, "smoke": whether it is no measurement, "machine": names and versions, "started": local time,
     "parts": {name: {"status": "running" | "done" | "failed" | "cut off" | "wrong result" | "not run", "why": text,
                      "seconds": s, "rows": [...]}}}
    """

    def __init__(self, folder: Path, machine: dict[str, Any], smoke: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.json"
        self.data: dict[str, Any] = {"format": FORMAT, "smoke": smoke, "machine": machine, "parts": {}}
        self.data["started"] = time.strftime("%Y-%m-%d %H:%M:%S")
        earlier = json.loads(self.path.read_text()) if self.path.exists() else None
        if earlier is not None:
            same = all(earlier.get(key) == self.data[key] for key in ("format", "smoke", "machine"))
            if not same:
                raise ValueError(f"{self.path} is of another machine, commit or version; choose another --out")
            self.data["parts"] = earlier["parts"]
        self._written = 0.0
        self._earlier = 0

    def begin(self, part: str) -> None:
        self._earlier = 0
        self.data["parts"][part] = {"status": "running", "why": "", "seconds": 0.0, "rows": []}
        self.write()

    def begin_again(self, part: str) -> None:
        """What the part measures once more takes the place of what it had."""
        self._earlier = len(self.rows(part))

    def row(self, part: str, row: dict[str, Any]) -> None:
        rows = self.data["parts"][part]["rows"]
        earlier = (place for place in range(self._earlier) if label(rows[place]) == label(row) and "what" not in row)
        place = next(earlier, None)
        if place is None:
            rows.append(row)
        else:
            rows[place] = row
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self.write()

    def end(self, part: str, status: str, why: str, seconds: float) -> None:
        self.data["parts"][part] |= {"status": status, "why": why, "seconds": round(seconds, 1)}
        self.write()

    def rows(self, part: str) -> list[dict[str, Any]]:
        return self.data["parts"].get(part, {}).get("rows", [])

    def write(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.data, indent=1))
        os.replace(temporary, self.path)
        self._written = time.monotonic()
