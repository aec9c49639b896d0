"""The first signal is noted, a second one stops at once."""

import os
import signal
import threading

import pytest

from echox.engine import interruption


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with interruption.listening() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_echo_of_the_first_signal_is_not_a_second(monkeypatch):
    with interruption.listening() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signum == signal.SIGINT
        monkeypatch.setattr(interruption, "ECHO_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_listen_to_nothing():
    heard = []

    def listen():
        with interruption.listening() as request:
            heard.append(request.signum)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [None]
