# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import signal

import pytest

from aapt_fast.cli.stop_signals import NAMES, StopSignals

KINDS = pytest.mark.parametrize("kind", [getattr(signal, name) for name in NAMES])


@pytest.fixture(autouse=True)
def harmless() -> object:
    """Default handlers, none of which may end the tests if something here fails."""
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in NAMES}
    for kind in before:
        signal.signal(kind, lambda *_: pytest.fail("a signal reached the handler of before"))
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@KINDS
def test_a_signal_is_a_keyboard_interrupt(kind: signal.Signals) -> None:
    before = signal.getsignal(kind)
    with pytest.raises(KeyboardInterrupt), StopSignals():
        signal.raise_signal(kind)
    assert signal.getsignal(kind) == before


@KINDS
def test_an_ignored_signal_stays_ignored(kind: signal.Signals) -> None:
    signal.signal(kind, signal.SIG_IGN)
    with StopSignals():
        signal.raise_signal(kind)
        assert signal.getsignal(kind) == signal.SIG_IGN
    assert signal.getsignal(kind) == signal.SIG_IGN


@KINDS
def test_a_first_signal_can_be_put_off_and_a_second_cannot(
    kind: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals, signals.put_off() as stopped:
        assert not stopped()
        signal.raise_signal(kind)
        assert stopped() and "stopping after this step" in capfd.readouterr().err
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal was put off")


def test_nothing_is_put_off_after_the_block() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        with signals.put_off():
            pass
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the signal was put off")
