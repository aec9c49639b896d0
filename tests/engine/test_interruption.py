"""The first signal is recorded, a second one stops at once."""

import os
import signal
import threading

import pytest

from echox.engine import interruption


def test_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with interruption.listening() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_repetition_of_the_first_signal_is_not_a_second(monkeypatch):
    with interruption.listening() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signum == signal.SIGINT
        monkeypatch.setattr(interruption, "ECHO_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_catch_no_signal():
    signums = []

    def listen():
        with interruption.listening() as request:
            signums.append(request.signum)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert signums == [None]
