"""The store of the disk cache: values come back as they were or not at all, within the budget, whatever happens."""

from __future__ import annotations

import _thread
import contextlib
import multiprocessing
import os
import pickle
import random
import resource
import signal
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from wsiweb.sources import database
from wsiweb.sources.store import DiskStore, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOM = 64 << 20
PROC = Path("/proc/self/fd")
FORK = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else None
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
needs_fork = pytest.mark.skipif(FORK is None, reason="this system cannot fork")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def key(number: int) -> bytes:
    return random.Random(number).randbytes(16)


def value(number: int, size: int = 3000) -> bytes:
    return random.Random(-1 - number).randbytes(size)


def put(store: DiskStore, *numbers: int, size: int = 3000) -> None:
    store.put({key(number): Entry(value(number, size), f"label {number}") for number in numbers})


def there(store: DiskStore, *numbers: int, size: int = 3000) -> list[int]:
    """Return which of the values are there, and assert that they are what was put."""
    found = store.get([key(number) for number in numbers])
    have = [number for number in numbers if key(number) in found]
    for number in have:
        entry = found[key(number)]
        assert (entry.data, entry.label) == (value(number, size), f"label {number}")
    return have


def main_file(folder: Path) -> Path:
    (path,) = folder.glob("wsiweb-*.sqlite")
    return path


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def open_files(folder: Path) -> list[str]:
    """Return the files below a folder that this process has open."""
    names = []
    for link in PROC.iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself is gone
            names.append(str(link.readlink()))
    return [name for name in names if name.startswith(str(folder))]


needs_proc = pytest.mark.skipif(not PROC.is_dir(), reason="there is no /proc")


# Values -------------------------------------------------------------------------------------------


def test_values_survive_the_handle(folder: Path) -> None:
    first = DiskStore(str(folder), ROOM)
    put(first, *range(100))
    assert there(first, *range(200)) == list(range(100))
    first.close()
    assert first.get([key(1)]) == {}
    second = DiskStore(str(folder), ROOM)
    assert there(second, *range(200)) == list(range(100))
    clone = pickle.loads(pickle.dumps(second))
    second.close()
    assert there(clone, 7) == [7]
    clone.close()


def test_a_later_value_takes_the_place(folder: Path) -> None:
    store = DiskStore(str(folder), ROOM)
    put(store, 1)
    store.put({key(1): Entry(b"new", "other")})
    store.put({key(1): Entry(b"newer"), key(2): Entry(value(2), "label 2")}, overwrite=False)
    assert [(entry.data, entry.label) for entry in store.get([key(1)]).values()] == [(b"new", "other")]
    assert there(store, 2) == [2]
    store.close()


def test_only_this_user_may_read(folder: Path) -> None:
    store = DiskStore(str(folder), ROOM)
    put(store, 1)
    assert folder.stat().st_mode & 0o777 == 0o700
    files = list(folder.iterdir())
    assert len(files) == 3  # with journal and shared memory, while it is open
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    store.close()


@needs_proc
def test_handles_share_a_connection_that_ends_with_the_last(folder: Path) -> None:
    handles = [DiskStore(str(folder), ROOM) for _ in range(50)]
    for handle in handles:
        put(handle, 1)
    assert 0 < len(open_files(folder)) <= 3
    for handle in handles:
        assert open_files(folder)
        handle.close()
    assert open_files(folder) == []
    assert len(list(folder.iterdir())) == 1  # the journal is folded in


# Budget -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "size"), [(2 << 20, 2000), (4 << 20, 15_000), (4 << 20, 70_000)])
def test_the_budget_holds_on_disk(folder: Path, limit: int, size: int) -> None:
    store = DiskStore(str(folder), limit)
    largest = 0
    for start in range(0, 3 * limit // size, 16):
        put(store, *range(start, start + 16), size=size)
        largest = max(largest, bytes_in(folder))
    assert limit * 0.7 < largest < limit * 1.1
    assert len(there(store, *range(3 * limit // size), size=size)) * size > limit * 0.5
    store.close()


def test_what_was_not_used_for_longest_goes_first(folder: Path) -> None:
    limit, size = 4 << 20, 10_000
    store = DiskStore(str(folder), limit)
    old, used = range(0, 50, 2), range(1, 50, 2)
    for number in range(200):
        put(store, number, size=size)
    assert there(store, *used, size=size) == list(used)
    for number in range(200, 400):
        put(store, number, size=size)
    assert there(store, *old, size=size) == []
    assert there(store, *used, size=size) == list(used)
    survivors = there(store, *range(50, 400), size=size)
    assert survivors == list(range(survivors[0], 400))  # the others in order of age
    store.close()


def test_reading_alone_hardly_writes(folder: Path) -> None:
    store = DiskStore(str(folder), ROOM)
    put(store, *range(50))
    with sqlite3.connect(main_file(folder)) as other:
        (before,) = other.execute("PRAGMA data_version").fetchone()
        for _ in range(20):
            assert len(there(store, *range(50))) == 50
        assert other.execute("PRAGMA data_version").fetchone() == (before,)  # nobody else has committed
    other.close()
    store.close()


def test_a_smaller_budget_is_come_down_to(folder: Path) -> None:
    store = DiskStore(str(folder), 8 << 20)
    put(store, *range(600), size=10_000)
    store.close()
    assert bytes_in(folder) > 6 << 20
    smaller = DiskStore(str(folder), 2 << 20)
    for number in range(600, 620):
        put(smaller, number, size=10_000)
    assert bytes_in(folder) < 2.2 * (1 << 20)
    assert there(smaller, *range(600, 620), size=10_000) == list(range(600, 620))
    smaller.close()


@pytest.mark.parametrize("limit", [0, 1, 50_000, 500_000])
def test_budgets_too_small(folder: Path, limit: int, caplog: pytest.LogCaptureFixture) -> None:
    store = DiskStore(str(folder), limit)
    for number in range(30):
        put(store, number, size=60_000)
        assert there(store, number, size=60_000) == []
    assert len(caplog.records) == (limit > 0)
    assert all("budget" in message for message in caplog.messages)
    store.close()


# Damage -------------------------------------------------------------------------------------------


def test_a_flipped_byte_is_noticed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = DiskStore(str(folder), ROOM)
    put(store, 1, 2, 3)
    store.close()
    content = bytearray(main_file(folder).read_bytes())
    content[content.index(value(2)[1000:1050])] ^= 1
    main_file(folder).write_bytes(content)
    again = DiskStore(str(folder), ROOM)
    assert there(again, 1, 2, 3) == [1, 3]
    assert len(caplog.records) == 1
    put(again, 2)
    assert there(again, 1, 2, 3) == [1, 2, 3]
    again.close()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file that holds values 0 to 19."""
    folder = tmp_path_factory.mktemp("content")
    store = DiskStore(str(folder), ROOM)
    put(store, *range(20), size=700)
    store.close()
    return main_file(folder)


CHANGES = st.lists(
    # Structures are in the front of pages, values behind.
    st.tuples(st.integers(0, 40), st.one_of(st.integers(0, 200), st.integers(0, 4095)), st.binary(min_size=1)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(changes=[(0, 4091, b"\x80")], kept=1.0)  # in a name, which the error then quotes
@given(changes=CHANGES, kept=st.one_of(st.just(1.0), st.floats(0, 1)))
def test_any_damage_costs_values_and_nothing_else(
    tmp_path: Path, original: Path, changes: list[tuple[int, int, bytes]], kept: float
) -> None:
    """Whatever is damaged: a value is right, or it is not there."""
    content = original.read_bytes()
    damaged = bytearray(content)
    for page, offset, new in changes:
        start = (page * 4096 + offset) % len(content)
        damaged[start : start + len(new)] = new
    damaged = damaged[: round(len(content) * kept)]
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    (folder / "wsiweb-1-1.sqlite").write_bytes(damaged)
    (folder / "wsiweb-1-1.sqlite").chmod(0o600)
    store = DiskStore(str(folder), ROOM)
    there(store, *range(20), size=700)
    put(store, *range(20, 30), size=700)
    there(store, *range(30), size=700)
    store.close()


@pytest.mark.parametrize("content", [b"", b"no database at all" * 1000, b"SQLite format 3\0" + bytes(4080)])
def test_a_file_that_is_no_database_is_replaced(folder: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir()
    path = folder / "wsiweb-1-1.sqlite"
    path.write_bytes(content)
    path.chmod(0o600)
    store = DiskStore(str(folder), ROOM)
    assert there(store, 1) == []
    put(store, 1)
    assert there(store, 1) == [1]
    assert not path.exists()
    assert len(caplog.records) == 1
    assert "damaged" in caplog.messages[0]
    store.close()


def test_a_foreign_database_is_replaced(folder: Path) -> None:
    folder.mkdir(0o700)
    path = folder / "wsiweb-1-1.sqlite"
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE other (id)")
    foreign.close()
    path.chmod(0o600)
    store = DiskStore(str(folder), ROOM)
    put(store, 1)
    put(store, 1)
    assert there(store, 1) == [1]
    store.close()


def test_the_folder_may_be_deleted_at_any_time(folder: Path) -> None:
    store = DiskStore(str(folder), ROOM)
    put(store, 1)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    for number in range(2, 6):
        put(store, number)
        there(store, number)
    store.close()
    fresh = DiskStore(str(folder), ROOM)
    put(fresh, 9)
    assert there(fresh, 9) == [9]
    fresh.close()


# What does not let itself be written --------------------------------------------------------------


@pytest.mark.parametrize("place", ["file", "below a file"])
def test_a_folder_that_cannot_be(tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = DiskStore(str(tmp_path / "file" if place == "file" else tmp_path / "file" / "cache"), ROOM)
    for number in range(5):
        put(store, number)
        assert there(store, number) == []
    assert len(caplog.records) == 1
    store.close()


def in_a_child(work: Callable[[], None]) -> None:
    """Run in a forked process and assert that nothing was raised."""
    assert FORK is not None
    child = FORK.Process(target=work)
    child.start()
    child.join(30)
    try:
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()
        child.close()


@needs_fork
def test_a_folder_that_is_read_only(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o555)

    def work() -> None:
        if os.geteuid() == 0:
            os.setuid(65_534)  # root may write anywhere
        store = DiskStore(str(folder), ROOM)
        put(store, 1)
        assert there(store, 1) == []
        store.close()

    in_a_child(work)
    assert list(folder.iterdir()) == []
    folder.chmod(0o755)


@pytest.mark.parametrize("how", ["group may write", "somebody else's", "a link"])
def test_files_that_others_may_write_are_not_trusted(
    folder: Path, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = DiskStore(str(folder), ROOM)
    put(store, 1)
    store.close()
    path = main_file(folder)
    if how == "group may write":
        path.chmod(0o660)
    elif how == "a link":
        path.symlink_to(path.rename(tmp_path / "elsewhere"))
    elif os.geteuid() != 0:
        pytest.skip("only root can give files away")
    else:
        os.chown(path, 65_534, -1)
    before = path.read_bytes()
    again = DiskStore(str(folder), ROOM)
    put(again, 2)
    assert there(again, 1, 2) == []
    again.close()
    assert path.read_bytes() == before
    assert len(caplog.records) == 1


def test_a_locked_database_is_not_waited_for_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.01)
    monkeypatch.setattr(database, "_REST_SECONDS", 3600.0)
    store = DiskStore(str(folder), ROOM)
    put(store, 1)
    other = sqlite3.connect(main_file(folder), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for number in range(2, 20):
        put(store, number)
    assert there(store, *range(20)) == [1]
    other.execute("ROLLBACK")
    other.close()
    assert len(caplog.records) == 1
    assert "locked" in caplog.messages[0]
    store.close()
    again = DiskStore(str(folder), ROOM)
    put(again, 2)
    assert there(again, 1, 2) == [1, 2]
    again.close()


def test_a_ctrl_c_while_the_database_is_locked(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It comes through where the lock has been got at last, and must not leave it to nobody."""
    store = DiskStore(str(folder), ROOM)
    put(store, 1)
    database_ = store._database
    assert database_ is not None
    database_._connected().set_progress_handler(_thread.interrupt_main, 1)  # as who waits in there would meet it
    with pytest.raises(KeyboardInterrupt):
        put(store, 2)
    database_._connected().set_progress_handler(None, 1)
    with contextlib.closing(sqlite3.connect(main_file(folder), timeout=0)) as other:
        other.execute("BEGIN IMMEDIATE")
    put(store, 3)
    assert there(store, 1, 2, 3) == [1, 3]
    assert not caplog.records
    store.close()


@needs_fork
def test_a_full_disk(folder: Path) -> None:
    store = DiskStore(str(folder), ROOM)
    put(store, *range(100))
    store.close()
    size = main_file(folder).stat().st_size

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, size + 20_000))
        store = DiskStore(str(folder), ROOM)
        for number in range(100, 200):
            put(store, number)
            there(store, *range(200))
        store.close()

    in_a_child(work)
    again = DiskStore(str(folder), ROOM)
    assert there(again, *range(100)) == list(range(100))
    put(again, 300)
    assert there(again, 300) == [300]
    again.close()


# Threads and processes ----------------------------------------------------------------------------


def test_threads_share_a_handle(folder: Path) -> None:
    store = DiskStore(str(folder), 2 << 20)  # some of it is evicted meanwhile
    problems: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(40):
                put(store, *(chance.randrange(1000) for _ in range(5)))
                there(store, *(chance.randrange(1000) for _ in range(20)))
        except BaseException as error:  # noqa: BLE001 - asserted below
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert there(store, *range(1000))
    store.close()


def write_and_read(folder: str, seed: int, limit: int) -> None:
    """Run in a process of its own."""
    store = DiskStore(folder, limit)
    chance = random.Random(seed)
    for _ in range(40):
        put(store, *(chance.randrange(500) for _ in range(5)))
        there(store, *(chance.randrange(500) for _ in range(20)))
    assert there(store, *range(500))
    store.close()


@pytest.mark.parametrize("limit", [ROOM, 1 << 20])
def test_processes_share_a_folder_that_none_has_made(folder: Path, limit: int) -> None:
    context = FORK or multiprocessing.get_context("spawn")
    children = [context.Process(target=write_and_read, args=(str(folder), seed, limit)) for seed in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    store = DiskStore(str(folder), limit)
    assert there(store, *range(500))
    assert bytes_in(folder) < limit * 1.1
    store.close()


@pytest.fixture
def busy(folder: Path) -> Iterator[DiskStore]:
    """Give a store in which two threads read and write all the time."""
    store = DiskStore(str(folder), ROOM)
    stop = threading.Event()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            put(store, chance.randrange(100))
            there(store, *range(100))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    yield store
    stop.set()
    for thread in threads:
        thread.join()
    store.close()


@needs_fork
@needs_proc
def test_no_connection_crosses_a_fork(folder: Path, busy: DiskStore) -> None:
    def work() -> None:
        assert open_files(folder) == []
        put(busy, 1000)
        assert there(busy, 1000) == [1000]
        busy.close()

    for _ in range(10):
        put(busy, 2000)
        in_a_child(work)
        assert there(busy, 1000, 2000) == [1000, 2000]


@needs_fork
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ctrl_c_amid_a_fork(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork goes on, and leaves no other thread waiting."""
    disconnect = database.Database._disconnect
    stores = [DiskStore(str(folder / name), ROOM) for name in "ab"]
    for store in stores:
        put(store, 1)

    def interrupted(one: database.Database) -> None:
        monkeypatch.undo()
        disconnect(one)
        _thread.interrupt_main()

    def work() -> None:
        for store in [*stores, DiskStore(str(folder / "c"), ROOM)]:
            put(store, 2)
            assert 2 in there(store, 1, 2)

    monkeypatch.setattr(database.Database, "_disconnect", interrupted)
    in_a_child(work)
    other = threading.Thread(target=work, daemon=True)
    other.start()
    other.join(20)
    assert not other.is_alive()
    for store in stores:
        store.close()


def write_for_ever(folder: str, begun: Any) -> None:
    store = DiskStore(folder, ROOM)
    number = 0
    while True:
        put(store, *range(number, number + 20), size=20_000)
        begun.set()
        number += 20


@needs_fork
def test_a_writer_that_is_killed_leaves_whole_values(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert FORK is not None
    for _ in range(5):
        begun = FORK.Event()
        child = FORK.Process(target=write_for_ever, args=(str(folder), begun))
        child.start()
        assert begun.wait(30)
        child.kill()
        child.join()
        child.close()
        store = DiskStore(str(folder), ROOM)
        assert there(store, *range(20), size=20_000) == list(range(20))
        there(store, *range(20, 400), size=20_000)
        put(store, 10_000)
        assert there(store, 10_000) == [10_000]
        store.close()
    assert caplog.messages == []
