# SPDX-License-Identifier: Apache-2.0
"""Signals wait until nothing can be lost."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from aapt_fast.cli.signals import SIGNALS, HeldSignals, Stopped, handlers_restored

KINDS = pytest.mark.parametrize("kind", SIGNALS)


@pytest.fixture(autouse=True)
def restored():
    with handlers_restored():
        yield


def send(kind: int) -> None:
    os.kill(os.getpid(), kind)


@KINDS
def test_a_signal_waits_for_the_next_place_that_lets_it_in(kind):
    done = []
    with pytest.raises(Stopped, match=f"stopped by {kind.name}"), HeldSignals() as signals:
        for part in range(3):
            with signals.let_in():
                done.append(f"compute {part}")
            if part == 1:
                send(kind)
            done.append(f"write {part}")
    assert done == ["compute 0", "write 0", "compute 1", "write 1"]


@KINDS
def test_a_signal_is_obeyed_at_once_where_it_is_let_in(kind):
    with pytest.raises(Stopped, match=kind.name), HeldSignals() as signals, signals.let_in():
        send(kind)
        raise AssertionError("too late")


def test_more_signals_do_not_disturb_the_end():
    ended = []
    with pytest.raises(Stopped, match="SIGTERM"), HeldSignals() as signals:
        try:
            with signals.let_in():
                send(signal.SIGTERM)
        finally:
            send(signal.SIGINT)
            send(signal.SIGHUP)
            ended.append("written")
    assert ended == ["written"]


def test_after_a_stop_signals_are_ignored_until_the_handlers_are_restored():
    before = [signal.getsignal(kind) for kind in SIGNALS]
    with handlers_restored():
        outer, inner = HeldSignals(), HeldSignals()
        with pytest.raises(Stopped, match="SIGTERM"), outer, outer.let_in(), inner, inner.let_in():
            send(signal.SIGTERM)
        assert all(signal.getsignal(kind) == signal.SIG_IGN for kind in SIGNALS)
        with pytest.raises(OSError, match="full"), HeldSignals() as outer, outer.let_in():
            raise OSError("full")
    assert [signal.getsignal(kind) for kind in SIGNALS] == before


def test_a_signal_that_waits_at_the_end_is_raised_there():
    with pytest.raises(Stopped, match="SIGINT"), HeldSignals():
        send(signal.SIGINT)


def test_an_error_comes_first():
    with pytest.raises(OSError, match="full"), HeldSignals():
        send(signal.SIGINT)
        raise OSError("full")


@KINDS
def test_the_handlers_before_return(kind):
    before = signal.getsignal(kind)
    with HeldSignals():
        assert signal.getsignal(kind) != before
    assert signal.getsignal(kind) is before


@KINDS
def test_an_ignored_signal_stays_ignored(kind):
    before = signal.signal(kind, signal.SIG_IGN)
    try:
        with HeldSignals() as signals, signals.let_in():
            send(kind)
            assert signal.getsignal(kind) == signal.SIG_IGN
    finally:
        signal.signal(kind, before)


def test_a_thread_has_no_signals():
    def work():
        with HeldSignals() as signals, signals.let_in():
            done.append(True)

    done = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


@KINDS
def test_a_first_signal_is_held_where_work_asks_for_it_and_a_second_is_not(kind, capfd):
    with pytest.raises(Stopped, match="SIGTERM"), HeldSignals() as signals, signals.let_in(), signals.hold() as stopped:
        assert not stopped()
        send(kind)
        assert stopped() and "stopping after this step" in capfd.readouterr().err
        send(signal.SIGTERM)
        raise AssertionError("too late")


def test_a_held_signal_is_raised_where_the_hold_ends():
    with pytest.raises(Stopped, match="SIGHUP"), HeldSignals() as signals, signals.let_in():
        with signals.hold():
            send(signal.SIGHUP)
        raise AssertionError("too late")


def test_signals_are_let_in_again_after_a_hold():
    with pytest.raises(Stopped, match="SIGINT"), HeldSignals() as signals, signals.let_in():
        with signals.hold():
            pass
        send(signal.SIGINT)
        raise AssertionError("too late")
