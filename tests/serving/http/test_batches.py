"""The queue: what waits together is answered together, by one thread, and only so much may wait."""

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
from starlette.exceptions import HTTPException

from recbole_llara.serving.http.batches import BatchQueue


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
    return submitted.result(30)


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


def test_a_question_that_is_cancelled_is_not_asked_and_gives_its_place_back(slow, make_queue):
    lengths = []
    queue = make_queue(slow, capacity=2, gather=0, tell_length=lengths.append)
    first = queue.submit(0)
    assert slow.is_inside.wait(30)
    second = queue.submit(1)
    assert second.cancel() and lengths[-1] == 1
    third = queue.submit(2)
    assert not first.cancel()  # it has begun
    slow.may_go.set()
    assert (_answer(first), _answer(third)) == (0, 4)
    assert slow.batches == [[0], [2]]
    assert lengths[-1] == 0


def test_a_full_batch_does_not_wait(slow, make_queue):
    queue = make_queue(slow, most=2, gather=10**6)
    slow.may_go.set()
    assert [_answer(one) for one in [queue.submit(1), queue.submit(2)]] == [2, 4]


def test_a_queue_is_ready_unless_it_is_closed_or_stuck(slow, make_queue):
    queue = make_queue(slow, gather=0)
    assert queue.is_ready(0)
    first = queue.submit(0)
    assert slow.is_inside.wait(30)
    assert queue.is_ready(3600) and not queue.is_ready(0)
    slow.may_go.set()
    assert _answer(first) == 0 and queue.is_ready(0)
    queue.close()
    assert not queue.is_ready(3600)


def test_a_closed_queue_ends_its_batch_and_gives_up_the_rest(slow, make_queue):
    queue = make_queue(slow, gather=0)
    first = queue.submit(0)
    assert slow.is_inside.wait(30)
    second = queue.submit(1)
    with ThreadPoolExecutor(1) as closing:
        closed = closing.submit(queue.close)
        with pytest.raises(CancelledError):
            _answer(second)
        slow.may_go.set()
        closed.result(30)
    assert _answer(first) == 0
    with pytest.raises(HTTPException) as refused:
        queue.submit(2)
    assert refused.value.status_code == 503


def test_too_few_answers_fail_their_batch_and_no_other(make_queue):
    queue = make_queue(lambda questions: [one for one in questions if one])
    with pytest.raises(RuntimeError, match="1 questions got 0 answers"):
        _answer(queue.submit(0))
    assert _answer(queue.submit(1)) == 1
