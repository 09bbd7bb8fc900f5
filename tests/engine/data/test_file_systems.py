"""How a store is read follows from where it lies, unless somebody says so."""

import pickle

import pytest
from subtested import as_subtests

from penstock.engine.data import store as store_module
from penstock.engine.data.file_systems import file_system_of, is_remote
from penstock.engine.data.store import Store

LOCAL = ("ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "apfs", "f2fs", "fuseblk", "ntfs3", "squashfs", "erofs", "")
REMOTE = ("nfs", "nfs4", "cifs", "smb3", "9p", "lustre", "ceph", "glusterfs", "gpfs", "beegfs", "virtiofs", "fuse")


@as_subtests("kind", LOCAL)
def test_local(kind):
    assert not is_remote(kind)


@as_subtests("kind", [*REMOTE, "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.juicefs"])
def test_remote(kind):
    assert is_remote(kind)


def mounts(*points: tuple[str, str]) -> str:
    lines = [
        f"{number} 1 0:{number} / {point} rw,relatime shared:{number} master:2 - {kind} source rw"
        for number, (point, kind) in enumerate(points)
    ]
    return "\n".join([*lines, "a line of a kind that nobody knows", ""])


@as_subtests(
    "path, kind",
    [
        ("/nowhere", "ext4"),
        ("/nowhere/net", "nfs4"),
        ("/nowhere/net/a/b", "nfs4"),
        ("/nowhere/network", "ext4"),  # a name that only begins alike
        ("/nowhere/net/disk/a", "xfs"),  # a mount inside of another
        ("/nowhere/twice/a", "fuse.sshfs"),  # the later of two is seen
        ("/nowhere/two words/a", "9p"),
        ("/nowhere/net/../plain", "ext4"),
    ],
)
def test_the_innermost_mount_counts(path, kind):
    text = mounts(
        ("/nowhere/net/disk", "xfs"),
        ("/", "ext4"),
        ("/nowhere/net", "nfs4"),
        ("/nowhere/twice", "ext4"),
        ("/nowhere/twice", "fuse.sshfs"),
        (r"/nowhere/two\040words", "9p"),
    )
    assert file_system_of(path, text) == kind


def test_a_link_is_where_it_leads(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    assert (
        file_system_of(tmp_path / "here", mounts(("/", "ext4"), (str((tmp_path / "there").resolve()), "nfs"))) == "nfs"
    )
    assert file_system_of(tmp_path, "") == ""


def test_this_machine_tells():
    assert file_system_of("/proc") == "proc"


@pytest.fixture
def store(tmp_path) -> Store:
    from penstock.engine.data.prepare import prepare

    rows = [("a lovely film", "good"), ("a dreadful film", "bad")] * 20
    return prepare(rows, tmp_path / "store", tokenizer="train:bpe:300", progress=False)


@as_subtests(
    "asked, kind, reader",
    [
        ("auto", "ext4", "mmap"),
        ("auto", "", "mmap"),
        ("auto", "nfs", "pread"),
        ("auto", "fuse.sshfs", "pread"),
        ("mmap", "nfs", "mmap"),
        ("pread", "ext4", "pread"),
    ],
)
def test_a_stores_reader(store, monkeypatch, asked, kind, reader):
    monkeypatch.setattr(store_module, "file_system_of", lambda path: kind)
    opened = Store.open(store.path, asked)
    assert opened.reader == reader
    assert pickle.loads(pickle.dumps(opened)).reader == reader
    assert opened.read_with("auto") is opened
    for other in ("mmap", "pread"):
        again = opened.cut_to(4).read_with(other)
        assert (again.reader, again.max_length) == (other, 4)
        for row in range(3):
            assert again.tokens(row).tolist() == store.cut_to(4).tokens(row).tolist()
