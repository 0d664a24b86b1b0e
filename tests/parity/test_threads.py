"""Threads of the kernels: a limit binds the thread that sets it, and work spread over threads keeps its order."""

from __future__ import annotations

import threading

import pytest

from detent.kernels.threads import limit_threads, map_in_threads, num_threads, set_num_threads


@pytest.fixture(autouse=True)
def four_threads():
    before = num_threads()
    set_num_threads(4)
    yield
    set_num_threads(before)


def test_a_limit_binds_only_the_thread_that_sets_it():
    seen = []

    def work():
        limit_threads(2)
        seen.append(num_threads())
        limit_threads(9)
        seen.append(num_threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [2, 4]
    assert num_threads() == 4


@pytest.mark.parametrize("count", [0, -1, 4097])
def test_counts_out_of_range(count):
    with pytest.raises(ValueError, match=r"1\.\.4096"):
        limit_threads(count)


@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_order_and_each_item_has_one_thread(threads):
    set_num_threads(threads)
    found = map_in_threads(lambda item: (item, num_threads()), range(50))
    assert found == [(item, 1) for item in range(50)]


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_failing_item_is_the_one_raised(threads):
    set_num_threads(threads)

    def work(item):
        if item in (7, 3, 30):
            raise KeyError(item)

    with pytest.raises(KeyError, match=r"3$"):
        map_in_threads(work, range(50))
