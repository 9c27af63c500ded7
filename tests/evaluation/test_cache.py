import os
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from vpt_vision.errors import UserError
from vpt_vision.evaluation.cache import CacheConfig, FeatureCache, digest_of, digest_of_module

KEY = {"encoder": "a", "view": {"size": 16}}


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(CacheConfig(folder=tmp_path / "features"))


@pytest.fixture
def tensors():
    return {"cls": torch.randn(5, 3).half(), "index": torch.arange(5), "none": torch.zeros(0, 2)}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_written_is_read_back(cache, tensors):
    assert cache.read(KEY) is None
    cache.write(KEY, tensors)
    assert same(cache.read(KEY), tensors)
    assert cache.read({**KEY, "view": {"size": 17}}) is None
    assert same(cache.read(dict(reversed(KEY.items()))), tensors)  # the order of a key's parts is nothing


def test_an_entry_that_is_cut_off_is_told_of_and_counts_as_absent(cache, tensors, caplog):
    cache.write(KEY, tensors)
    path = cache.path(KEY)
    path.write_bytes(path.read_bytes()[:-7])
    assert cache.read(KEY) is None
    assert "is damaged" in caplog.text
    path.write_bytes(b"")
    assert cache.read(KEY) is None


def test_a_single_altered_bit_is_noticed(cache, tensors, caplog):
    cache.write(KEY, tensors)
    path = cache.path(KEY)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert cache.read(KEY) is None
    assert "was altered after it was written" in caplog.text


def test_an_entry_of_another_key_or_hand_is_noticed(cache, tensors, caplog):
    other = {**KEY, "encoder": "b"}
    cache.write(other, tensors)
    cache.path(other).rename(cache.path(KEY))
    assert cache.read(KEY) is None
    assert "holds something else" in caplog.text
    save_file(tensors, cache.path(KEY))
    assert cache.read(KEY) is None


def test_the_least_recently_used_make_room(tmp_path, tensors):
    cache = FeatureCache(CacheConfig(folder=tmp_path, gb=1e-6))  # 1,000 bytes; an entry takes some 500
    for number in range(4):
        cache.write({"number": number}, tensors)
        long_ago = time.time() - 100 + number
        os.utime(cache.path({"number": number}), (long_ago, long_ago))
        if number == 1:
            assert cache.read({"number": 0}) is not None  # used again: number 1 is now the oldest
    assert [number for number in range(4) if cache.path({"number": number}).exists()] == [0, 3]


def test_an_entry_above_the_bound_is_kept_until_the_next(tmp_path, tensors):
    cache = FeatureCache(CacheConfig(folder=tmp_path, gb=1e-9))
    cache.write(KEY, tensors)
    assert cache.read(KEY) is not None


def test_a_cache_that_cannot_be_written_to_is_told_of(cache, tensors, caplog, monkeypatch):
    def full(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr("vpt_vision.evaluation.cache.save_file", full)
    cache.write(KEY, tensors)
    assert "no space left on device" in caplog.text
    assert not list(cache.folder.iterdir())
    (cache.folder / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep features"):
        FeatureCache(CacheConfig(folder=cache.folder / "file" / "below"))


def test_digests_tell_values_names_shapes_and_kinds_apart():
    tensor = torch.arange(6.0)
    others = [tensor + 1, tensor.view(2, 3), tensor.double(), tensor.view(torch.int32)]
    assert len({digest_of({"x": other}) for other in [tensor, *others]} | {digest_of({"y": tensor})}) == 6
    assert digest_of({"x": tensor.view(2, 3).T}) == digest_of({"x": tensor.view(2, 3).T.contiguous()})
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert digest_of_module(first) != digest_of_module(second)
    second.load_state_dict(first.state_dict())
    assert digest_of_module(first) == digest_of_module(second)


def test_entries_are_plain_safetensors(cache, tensors):
    cache.write(KEY, tensors)
    assert same(load_file(cache.path(KEY)), tensors)
