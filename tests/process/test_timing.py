import time

from utils.process.timing import Stopwatch


def test_every_second_goes_to_one_part():
    begin = time.perf_counter()
    watch = Stopwatch()
    before = watch.take()["start"]
    assert 0 < before <= time.process_time()
    time.sleep(0.02)
    watch.lap("steps")
    time.sleep(0.03)
    watch.lap("pictures")
    watch.lap("steps")
    seconds = watch.take()
    assert seconds["steps"] >= 0.02 and seconds["pictures"] >= 0.03
    assert sum(seconds.values()) <= time.perf_counter() - begin
    assert watch.take() == {}
