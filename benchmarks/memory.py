"""What memory a process takes."""

from pathlib import Path


def own_bytes(process: int) -> int:
    """That it has for itself, over it and its children; mapped files, which the system may drop, not counted."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0
    anonymous = sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss_Anon"))
    return anonymous * 1024 + sum(own_bytes(int(child)) for child in children)
