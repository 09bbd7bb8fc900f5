"""Where a file lies: on a disk of this machine, or behind a network or a program, where maps are slow or dangerous."""

import os
import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
# The kernel's own names. What a program serves is "fuse", "fuse.sshfs", ...; "fuseblk" is a disk of this machine.
_NETWORK = re.compile(
    "9p|afs|beegfs|ceph|cifs|coda|fhgfs|gfs2?|glusterfs|gpfs|lustre|ncpfs|nfs4?|ocfs2|orangefs|panfs|pvfs2|smb[23]|smbfs"
    r"|vboxsf|virtiofs|wekafs|fuse(\..*)?"
)


def is_remote(kind: str) -> bool:
    """Whether files of a file system with this name are read through a network or a program (FUSE)."""
    return _NETWORK.fullmatch(kind) is not None


def file_system_of(path: str | os.PathLike[str], mounts: str | None = None) -> str:
    """The name of the file system that a path lies on, such as "ext4"; empty where the system does not tell.

    Args:
        mounts: the text of /proc/self/mountinfo, by default this process's.
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(errors="surrogateescape")
        except OSError:
            return ""
    real = Path(os.path.realpath(path))
    found, depth = "", -1
    for line in mounts.splitlines():
        # 36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw
        mount, dash, source = line.partition(" - ")
        fields = mount.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = Path(_unescaped(fields[4]))
        # the last of those mounted over each other is the one that is seen
        if (real == point or point in real.parents) and len(point.parts) >= depth:
            found, depth = source.split(" ")[0], len(point.parts)
    return found


def _unescaped(name: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), name)
