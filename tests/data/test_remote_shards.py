import http.server
import io
import json
import logging
import os
import sys
import tarfile
import time
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from webserver import WebServer

from vpt_vision.data.loader import Loader
from vpt_vision.data.shard_index import index_path, index_shard, parse_index, write_index
from vpt_vision.data.shards import Shards, ShardsConfig
from vpt_vision.data.source import UnreadableSample
from vpt_vision.errors import UserError


def png(number):
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    pixels[0, 0] = number
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_shard(path, numbers, indexed=True):
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            for suffix, data in (("png", png(number)), ("cls", str(number % 3).encode())):
                info = tarfile.TarInfo(f"{number:03d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    if indexed:
        with path.open("rb") as file:
            write_index(index_path(path), index_shard(file, str(path)))


@pytest.fixture
def web(tmp_path):
    (tmp_path / "web").mkdir()
    for shard in range(4):
        write_shard(tmp_path / "web" / f"{shard}.tar", range(10 * shard, 10 * shard + 10))
    with WebServer(tmp_path / "web") as server:
        yield server


@pytest.fixture
def opened(tmp_path):
    """Open shards with a cache of this test's own and short patience."""

    def opened(path, **remote):
        settings = {"cache": tmp_path / "cache", "backoff": 0.01, "retries": 2, "timeout": 5, **remote}
        return Shards(ShardsConfig(kind="shards", path=path, remote=settings), 8)

    return opened


def numbers(source):
    return [int(source[i].image[0, 0, 0]) for i in range(len(source))]


def take(loader, count):
    with closing(iter(loader)) as batches:
        return list(islice(batches, count))


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").glob("*.tar"))


class TestHttp:
    def test_reads_what_lies_there_and_fetches_each_shard_once(self, web, opened):
        source = opened(f"{web.url}/{{0..3}}.tar")
        assert web.gets["0.tar"] == 0 and len(source) == 40  # the indexes tell
        assert numbers(source) == numbers(source) == list(range(40))
        assert [source[i].label for i in range(40)] == [number % 3 for number in range(40)]
        assert source.classes == ["0", "1", "2"]
        again = opened(f"{web.url}/{{0..3}}.tar")
        assert numbers(again) == list(range(40))
        assert [web.gets[f"{shard}.tar"] for shard in range(4)] == [1] * 4
        assert [web.gets[f"{shard}.tar.index"] for shard in range(4)] == [1] * 4

    def test_processes_share_a_fetch(self, web, opened):
        source = opened(f"{web.url}/{{0..3}}.tar", shuffle_shards=2)
        batches = take(Loader(source, batch_size=5, seed=0, workers=2), 8)
        seen = [int(image[0, 0, 0]) for batch in batches for image in batch.images]
        assert sorted(seen) == list(range(40))
        assert {seen[i] // 10 for i in range(20)}.isdisjoint({seen[i] // 10 for i in range(20, 40)})
        assert [web.gets[f"{shard}.tar"] for shard in range(4)] == [1] * 4

    def test_without_an_index_a_shard_is_read_through_once(self, web, opened, tmp_path, caplog):
        write_shard(tmp_path / "web" / "plain.tar", range(50, 55), indexed=False)
        with caplog.at_level(logging.WARNING):
            assert numbers(opened(f"{web.url}/plain.tar")) == list(range(50, 55))
            assert numbers(opened(f"{web.url}/plain.tar")) == list(range(50, 55))
        assert web.gets["plain.tar"] == 1
        assert caplog.text.count("has no index beside it") == 1

    def test_a_shard_written_anew_is_fetched_anew(self, web, opened, tmp_path):
        assert numbers(opened(f"{web.url}/0.tar"))[0] == 0
        write_shard(tmp_path / "web" / "0.tar", range(60, 71))
        assert numbers(opened(f"{web.url}/0.tar")) == list(range(60, 71))

    @pytest.mark.parametrize("fault", [503, 429, "short", "slow"])
    def test_what_may_pass_is_tried_again(self, web, opened, fault, caplog):
        web.faults = {"1.tar": [fault], "0.tar.index": [fault]}
        with caplog.at_level(logging.WARNING):
            source = opened(f"{web.url}/{{0..1}}.tar", timeout=0.5)
            assert numbers(source) == list(range(20))
        assert web.gets["1.tar"] == web.gets["0.tar.index"] == 2
        assert caplog.text.count("trying again") == 2

    @pytest.mark.parametrize(("fault", "tries"), [(503, 3), ("short", 3), (403, 1), (404, 1)])
    def test_a_lost_shard_is_skipped_and_not_asked_for_again(self, web, opened, fault, tries):
        source = opened(f"{web.url}/{{0..3}}.tar")
        web.faults = {"2.tar": [fault] * 100}
        for index in (20, 21, 29):
            with pytest.raises(UnreadableSample) as caught:
                source[index]
            assert caught.value.name == f"{web.url}/2.tar: {index:03d}"
            assert caught.value.shard == f"{web.url}/2.tar"
        assert web.gets["2.tar"] == tries
        loader = Loader(source, batch_size=8, seed=0, max_unreadable=1)
        batches = take(loader, 5)
        assert web.gets["2.tar"] == tries
        state = loader.state_dict()
        assert set(state["unreadable_by_shard"]) == {f"{web.url}/2.tar"}
        assert state["unreadable_by_shard"][f"{web.url}/2.tar"] == state["unreadable"] >= 10
        named = {item.name for batch in batches for item in batch.unreadable}
        assert named == {f"{web.url}/2.tar: {index:03d}" for index in range(20, 30)}

    def test_a_lost_shard_is_asked_for_again_by_the_next_run(self, web, opened):
        web.faults = {"0.tar": [404]}
        with pytest.raises(UnreadableSample):
            opened(f"{web.url}/0.tar")[0]
        assert numbers(opened(f"{web.url}/0.tar")) == list(range(10))

    def test_too_much_lost_is_an_error_that_names_shards(self, web, opened):
        source = opened(f"{web.url}/{{0..3}}.tar")
        web.faults = {"2.tar": [404] * 100}
        with pytest.raises(UserError, match=rf"by shard \d+ in {web.url}/2\.tar, the last .*HTTP 404"):
            take(Loader(source, batch_size=10, seed=0, max_unreadable=0.001), 4)

    def test_shards_missing_from_the_start_are_an_error(self, web, opened):
        with pytest.raises(UserError, match=r"/7\.tar cannot be had \(HTTP 404 .*\): correct the path"):
            opened(f"{web.url}/{{0,7}}.tar")
        with pytest.raises(UserError, match=r"cannot be had \(.*refused"):
            opened("http://127.0.0.1:9/0.tar")

    def test_a_foreign_index_is_named(self, web, opened, tmp_path):
        (tmp_path / "web" / "0.tar.index").write_text("<html>sign in</html>")
        with pytest.raises(UserError, match=r"0\.tar\.index is no index of a shard"):
            opened(f"{web.url}/0.tar")

    def test_a_server_that_does_not_answer_head(self, web, opened, monkeypatch):
        monkeypatch.setattr(
            http.server.SimpleHTTPRequestHandler, "do_HEAD", lambda handler: handler.send_error(501)
        )
        assert numbers(opened(f"{web.url}/0.tar")) == list(range(10))


class TestCache:
    def gigabytes(self, tmp_path, shards):
        return shards * (tmp_path / "web" / "0.tar").stat().st_size / 1e9

    def test_the_least_recently_used_shard_makes_room(self, web, opened, tmp_path):
        source = opened(f"{web.url}/{{0..3}}.tar", shuffle_shards=1, cache_gb=self.gigabytes(tmp_path, 2.5))
        for index in (0, 10, 0, 20, 0):  # shard 1 is the one to go
            source[index]
            time.sleep(0.02)  # file times are the record of use
        assert len(cached(tmp_path)) == 2
        source[0], source[20]
        assert web.gets["0.tar"] == web.gets["2.tar"] == 1
        source[10]
        assert web.gets["1.tar"] == 2 and len(cached(tmp_path)) == 2

    def test_whole_epochs_pass_through_a_small_cache(self, web, opened, tmp_path):
        source = opened(f"{web.url}/{{0..3}}.tar", shuffle_shards=1, cache_gb=self.gigabytes(tmp_path, 2.1))
        batches = take(Loader(source, batch_size=8, seed=1, workers=1), 15)
        seen = [int(number) for batch in batches for number in batch.index]
        assert all(sorted(seen[40 * epoch : 40 * epoch + 40]) == list(range(40)) for epoch in range(3))
        assert len(cached(tmp_path)) <= 2

    def test_a_cache_that_cannot_hold_a_window_is_refused(self, web, opened, tmp_path):
        with pytest.raises(UserError, match=r"remote\.cache_gb = .* cannot hold"):
            opened(f"{web.url}/{{0..3}}.tar", shuffle_shards=2, cache_gb=self.gigabytes(tmp_path, 3.9))
        opened(f"{web.url}/{{0..3}}.tar", shuffle_shards=2, cache_gb=self.gigabytes(tmp_path, 4.1))

    def test_a_dropped_shard_is_fetched_again(self, web, opened, tmp_path):
        source = opened(f"{web.url}/0.tar")
        source[0]
        for name in cached(tmp_path):
            (tmp_path / "cache" / name).unlink()
        assert numbers(source) == list(range(10)) and web.gets["0.tar"] == 2

    def test_a_shard_dropped_while_it_is_opened_leaves_nothing_behind(
        self, web, opened, tmp_path, monkeypatch
    ):
        source = opened(f"{web.url}/0.tar")
        source[0]
        real = Path.open

        def dropped(path, *args, **kwargs):
            file = real(path, *args, **kwargs)
            if path.suffix == ".tar":
                path.unlink()  # by another process that makes room
            return file

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", dropped)
            assert source[3].label is not None  # what is open stays readable
        assert cached(tmp_path) == []
        assert numbers(source) == list(range(10)) and web.gets["0.tar"] == 2

    def test_a_folder_that_cannot_be_made(self, web, opened, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot keep shards"):
            opened(f"{web.url}/0.tar", cache=tmp_path / "file" / "cache")


class TestPipe:
    def test_the_output_of_a_command(self, web, opened, tmp_path):
        source = opened(f"pipe:cat {tmp_path}/web/{{0..1}}.tar")
        assert numbers(source) == list(range(20))

    def test_it_is_run_once_a_shard(self, web, opened, tmp_path):
        command = f"pipe:echo once >> {tmp_path}/log; cat {tmp_path}/web/0.tar"
        numbers(opened(command))
        numbers(opened(command))
        assert (tmp_path / "log").read_text().count("once") == 1

    def test_a_failing_command_is_told_with_what_it_said(self, opened, tmp_path):
        with pytest.raises(UserError, match=r"ended with code 3: not today\)"):
            opened(f"pipe:echo run >> {tmp_path}/log; echo not today >&2; exit 3")
        assert (tmp_path / "log").read_text().count("run") == 3
        with pytest.raises(UserError):
            opened(f"pipe:echo run >> {tmp_path}/log; echo not today >&2; exit 3")
        assert (tmp_path / "log").read_text().count("run") == 6  # the next run asks again

    @pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
    def test_a_command_that_hangs_is_ended_with_what_it_started(self, opened, tmp_path):
        with pytest.raises(UserError, match=r"gave nothing for 0\.2 s"):
            opened(f"pipe:sleep 987 & echo $! > {tmp_path}/pid; wait", timeout=0.2, retries=0)
        sleeper = int((tmp_path / "pid").read_text())
        deadline = time.monotonic() + 30
        while os.path.exists(f"/proc/{sleeper}") and "Z" not in _state(sleeper):  # noqa: PTH110
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _state(process):
    try:
        with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


class Hanging(MemoryFileSystem):
    """A storage service whose next calls hang, for a second; as many of each kind as `hang` says."""

    protocol = "hanging"
    cachable = True
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]
    hang: ClassVar = {}
    refuse: ClassVar = None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("hanging://", "memory://"))

    @classmethod
    def wait(cls, stage):
        if cls.refuse is not None:
            raise cls.refuse
        if cls.hang.get(stage):
            cls.hang[stage] -= 1
            time.sleep(1)

    def ukey(self, path):
        self.wait("ukey")
        return super().ukey(path)

    def open(self, path, mode="rb", **options):
        file = super().open(path, mode, **options)
        if mode == "rb":
            self.wait("open")
            file.read = lambda length: self.wait("read") or bytes(file.getbuffer()[_step(file, length)])
        return file


def _step(file, length):
    """The next `length` bytes, which then lie behind."""
    start = file.tell()
    return slice(start, file.seek(min(start + length, file.size)))


@pytest.fixture
def hanging():
    fsspec.register_implementation("hanging", Hanging, clobber=True)
    Hanging.hang, Hanging.refuse = {}, None
    system = fsspec.filesystem("hanging")
    yield system
    Hanging.store.clear()
    Hanging.hang, Hanging.refuse = {}, None


class TestFsspec:
    def test_any_file_system_it_knows(self, web, opened, tmp_path):
        memory = fsspec.filesystem("memory")
        for name in ("0.tar", "0.tar.index", "1.tar"):
            memory.pipe(f"/shards/{name}", (tmp_path / "web" / name).read_bytes())
        try:
            assert numbers(opened("memory://shards/{0..1}.tar")) == list(range(20))
            with pytest.raises(UserError, match=r"2\.tar cannot be had \(no such file\)"):
                opened("memory://shards/2.tar")
        finally:
            memory.rm("/shards", recursive=True)

    @pytest.mark.parametrize("stage", ["ukey", "open", "read"])
    def test_a_slow_one_is_tried_again_and_then_given_up(self, web, opened, tmp_path, stage, caplog, hanging):
        hanging.pipe("/slow/0.tar", (tmp_path / "web" / "0.tar").read_bytes())
        hanging.pipe("/slow/0.tar.index", (tmp_path / "web" / "0.tar.index").read_bytes())
        hanging.hang[stage] = 1
        with caplog.at_level(logging.WARNING):
            source = opened("hanging://slow/0.tar", timeout=0.2)
            assert numbers(source) == list(range(10))
        assert caplog.text.count("nothing came for 0.2 s; trying again") == 1
        for kept in (tmp_path / "cache").iterdir():
            kept.unlink()
        source = opened("hanging://slow/0.tar", timeout=0.2)
        hanging.hang[stage] = 100
        if stage == "ukey":
            with pytest.raises(UserError, match=r"0\.tar cannot be had \(nothing came for 0\.2 s\)"):
                opened("hanging://slow/0.tar", timeout=0.2)
        else:
            with pytest.raises(UnreadableSample, match=r"nothing came for 0\.2 s"):
                source[0]
        assert hanging.hang[stage] == 97  # as many tries as were asked for

    def test_a_service_that_refuses_is_not_asked_again(self, web, opened, hanging):
        hanging.pipe("/slow/0.tar", b"")
        Hanging.refuse = PermissionError("no rights here")
        with pytest.raises(UserError, match=r"0\.tar cannot be had \(no rights here\)"):
            opened("hanging://slow/0.tar")

    def test_a_package_that_is_missing(self, opened, monkeypatch):
        monkeypatch.setitem(sys.modules, "s3fs", None)
        with pytest.raises(
            UserError, match=r"s3://bucket/0\.tar cannot be read with what is installed: .*s3fs"
        ):
            opened("s3://bucket/0.tar")
        monkeypatch.setitem(sys.modules, "fsspec", None)
        with pytest.raises(UserError, match="takes fsspec, which is not installed: pip install fsspec"):
            opened("s3://bucket/0.tar")

    def test_an_unknown_kind(self, opened):
        with pytest.raises(UserError, match=r"xyz://bucket/0\.tar is of no kind that can be read"):
            opened("xyz://bucket/0.tar")


class TestLocalIndex:
    def test_is_read_in_place_of_the_headers(self, tmp_path):
        write_shard(tmp_path / "0.tar", range(3))
        path = index_path(tmp_path / "0.tar")
        found = parse_index(path.read_bytes(), "")
        write_index(path, found._replace(entries=found.entries[1:], classes=["a", "b", "c"]))
        source = Shards(ShardsConfig(kind="shards", path=str(tmp_path / "0.tar")), 8)
        assert numbers(source) == [1, 2] and source.classes == ["a", "b", "c"]

    @pytest.mark.parametrize("change", ["length", "time"])
    def test_one_that_does_not_fit_is_named_and_not_used(self, tmp_path, caplog, change):
        write_shard(tmp_path / "0.tar", range(3))
        shard = tmp_path / "0.tar"
        if change == "length":
            write_shard(shard, range(9, 60), indexed=False)
            os.utime(shard, (0, 0))
        else:
            write_shard(shard, range(9, 12), indexed=False)
            os.utime(shard, (2**31, 2**31))
        with caplog.at_level(logging.WARNING):
            source = Shards(ShardsConfig(kind="shards", path=str(shard)), 8)
        assert numbers(source)[0] == 9 and "0.tar.index does not fit its shard" in caplog.text

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda lines: [],
            lambda lines: lines[:-1],
            lambda lines: [lines[0].replace("vpt-shard-index", "other"), *lines[1:]],
            lambda lines: [lines[0].replace('"version":1', '"version":2'), *lines[1:]],
            lambda lines: [lines[0], *lines[2:], json.dumps(["a", 0, [-5, 3], None, None])],
            lambda lines: [lines[0], *lines[2:], json.dumps(["a", 0, None, None, None])],
            lambda lines: [lines[0], *lines[2:], json.dumps(["a", 10**7, [0, 3], None, None])],
        ],
    )
    def test_a_broken_one_is_an_error(self, tmp_path, spoil):
        write_shard(tmp_path / "0.tar", range(3))
        path = index_path(tmp_path / "0.tar")
        path.write_text("\n".join(spoil(path.read_text().splitlines())))
        with pytest.raises(UserError, match=r"0\.tar\.index is no index of a shard"):
            Shards(ShardsConfig(kind="shards", path=str(tmp_path / "0.tar")), 8)

    def test_round_trip(self, tmp_path):
        write_shard(tmp_path / "0.tar", range(3))
        with (tmp_path / "0.tar").open("rb") as file:
            found = index_shard(file, "")
        assert parse_index(index_path(tmp_path / "0.tar").read_bytes(), "") == found
        assert len(found.entries) == 3 and found.bytes == (tmp_path / "0.tar").stat().st_size
