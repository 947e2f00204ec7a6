"""Signals that end a run in good order."""

import os
import signal

import pytest

from train.preempt import INTERRUPTED, PREEMPTED, Preemption


def test_signals_are_noticed_and_handlers_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for number, code in ((signal.SIGTERM, PREEMPTED), (signal.SIGINT, INTERRUPTED)):
        with Preemption() as preemption:
            assert preemption.check(1) is None
            os.kill(os.getpid(), number)
            stop = preemption.check(2)
            assert stop is not None and stop.code == code
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)  # somebody is in a hurry
                preemption.check(3)
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
