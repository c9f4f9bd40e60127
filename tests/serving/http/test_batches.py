"""The queue: what waits together is answered together, by one thread, and only so much may wait."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.exceptions import HTTPException

from recbole_llara.demo.questions import BatchQueue


class Slow:
    """Doubles numbers once it may; keeps what it was asked, and how many threads were inside at once."""

    def __init__(self):
        self.may_go, self.is_inside = threading.Event(), threading.Event()
        self.batches, self.threads = [], set()

    def __call__(self, questions):
        self.threads.add(threading.get_ident())
        self.is_inside.set()
        assert self.may_go.wait(30)
        self.batches.append(list(questions))
        return [2 * question for question in questions]


@pytest.fixture
def slow():
    return Slow()


@pytest.fixture
def make_queue():
    queues = []

    def make(*args, **options):
        queues.append(BatchQueue(*args, **options))
        return queues[-1]

    yield make
    for queue in queues:
        queue.close()


def _answer(submitted):
    answers, place = submitted
    return answers.result(30)[place]


def test_what_waits_is_answered_at_once_and_in_its_place(slow, make_queue):
    queue = make_queue(slow)
    first = queue.submit(0)
    assert slow.is_inside.wait(30)
    with ThreadPoolExecutor(8) as visitors:
        others = list(visitors.map(queue.submit, range(1, 13)))
    slow.may_go.set()
    assert [_answer(one) for one in (first, *others)] == [2 * number for number in range(13)]
    assert [len(batch) for batch in slow.batches] == [1, 12]
    assert len(slow.threads) == 1


def test_a_batch_waits_a_moment_for_company(slow, make_queue):
    queue = make_queue(slow, gather=0.5)
    slow.may_go.set()
    submitted = [queue.submit(number) for number in range(3)]
    assert [_answer(one) for one in submitted] == [0, 2, 4]
    assert slow.batches == [[0, 1, 2]]


def test_a_batch_holds_only_so_many(slow, make_queue):
    queue = make_queue(slow, most=4)
    first = queue.submit(0)
    assert slow.is_inside.wait(30)
    others = [queue.submit(number) for number in range(1, 10)]
    slow.may_go.set()
    assert [_answer(one) for one in (first, *others)] == [2 * number for number in range(10)]
    assert [len(batch) for batch in slow.batches] == [1, 4, 4, 1]


def test_a_full_queue_refuses_and_takes_questions_again(slow, make_queue):
    queue = make_queue(slow, capacity=3)
    waiting = [queue.submit(number) for number in range(3)]
    with pytest.raises(HTTPException) as refused:
        queue.submit(3)
    assert refused.value.status_code == 429 and int(refused.value.headers["Retry-After"]) >= 1
    slow.may_go.set()
    assert [_answer(one) for one in waiting] == [0, 2, 4]
    assert _answer(queue.submit(3)) == 6


def test_a_failure_is_its_batchs_alone(make_queue):
    def answer(questions):
        if 0 in questions:
            raise ZeroDivisionError
        return [1 / question for question in questions]

    queue = make_queue(answer, capacity=1)
    with pytest.raises(ZeroDivisionError):
        _answer(queue.submit(0))
    assert _answer(queue.submit(2)) == 0.5
