"""Helpers of the data modules: packed names and checks in threads."""

import pickle
import threading

from trunkline.data.shared.common import PackedNames, in_threads


def test_names_come_back_as_they_were():
    names = ["a.jpg", "", "deep/é雪.png", b"old\xff.jpg".decode("utf-8", "surrogateescape"), "z"]
    packed = PackedNames.pack(iter(names))
    assert len(packed) == 5 and list(packed) == names and [packed[n] for n in range(5)] == names
    assert list(pickle.loads(pickle.dumps(packed))) == names
    assert list(PackedNames.pack([])) == []


def test_threads_keep_the_order_of_many_items(capsys):
    seen = set()

    def double(number):
        seen.add(threading.current_thread().name)
        return 2 * number

    assert in_threads(double, range(1000), "doubling") == [2 * number for number in range(1000)]
    assert "doubling" in capsys.readouterr().err and threading.main_thread().name not in seen
    assert in_threads(double, range(10), "doubling") == [2 * number for number in range(10)]
    assert in_threads(double, [], "doubling") == [] and capsys.readouterr().err == ""
