"""Ctrl-C at any line of this package, also while the model is being edited or put back."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from faults import Boom, Crash, check_as_found, features, mutual, optimizer_is_whole, pact
from toy import TinyNet, fingerprint, fit, hapi_model

import paddlelite_callbacks
from paddlelite_callbacks.utils.signals import uninterrupted

HOME = str(Path(paddlelite_callbacks.__file__).parent)
EDITING = ("hapi", "surgery", "session", "base", "distill_state", "prepare", "switch")


class CtrlCAtALine:
    """Sends SIGINT before a line of this package runs for the n-th time; counts the lines otherwise."""

    def __init__(self, place=None, at: int = 1):
        self.place, self.left, self.seen = place, at, {}

    def __enter__(self):
        gc.collect()  # else what older fits leave may be freed, and our lines run, inside
        sys.settrace(self._calls)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def _calls(self, frame, event, argument):
        name = frame.f_code.co_filename
        return self._lines if name.startswith(HOME) and any(part in name for part in EDITING) else None

    def _lines(self, frame, event, argument):
        if event == "line":
            here = frame.f_code.co_filename, frame.f_lineno
            self.seen[here] = self.seen.get(here, 0) + 1
            if here == self.place:
                self.left -= 1
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGINT)
        return self._lines


def interrupted_at(place, at, make) -> bool:
    model, teacher = hapi_model(), TinyNet(width=8)
    found = fingerprint(model, teacher)
    try:
        with CtrlCAtALine(place, at):
            fit(model, make(None, teacher), evaluate=False)
    except KeyboardInterrupt:
        pass
    else:
        return False
    now = fingerprint(model, teacher)
    trained = len(now["state keys"][0]) > len(found["state keys"][0])
    check_as_found(pact if make is pact else features, found, now, trained=trained)
    optimizer_is_whole(model)
    return True


@pytest.mark.parametrize("make", [features, pact])
def test_ctrl_c_at_lines_of_our_own(make):
    """While edits are made and undone as well: every 20th line of those modules that make them, first and last time."""
    with CtrlCAtALine() as lines:
        fit(hapi_model(), make(None, TinyNet(width=8)), evaluate=False)
    places = sorted(lines.seen)[::20]
    assert len(places) > 8
    assert all(interrupted_at(place, at, make) for place in places for at in {1, lines.seen[place]})


@pytest.mark.parametrize("make", [features, mutual])
def test_a_second_ctrl_c_does_not_cut_the_clean_up_short(make):
    model, teacher = hapi_model(), TinyNet(width=8)
    found = fingerprint(model, teacher)
    callbacks, undone = make(None, teacher), []

    class Impatient(Crash):
        def on_train_batch_begin(self, step, logs=None):
            scope = callbacks[0].session._scope
            scope.callback(undone.append, "behind")
            scope.callback(os.kill, os.getpid(), signal.SIGINT)
            scope.callback(undone.append, "before")

    with pytest.raises(KeyboardInterrupt) as interrupt:
        fit(model, [*callbacks, Impatient("on_train_batch_end")])
    assert isinstance(interrupt.value.__context__, Boom)
    assert undone == ["before", "behind"]
    assert fingerprint(model, teacher) == found


def test_ctrl_c_comes_at_the_end_of_the_block_and_the_handler_is_the_users():
    heard, before = [], signal.signal(signal.SIGINT, lambda *arguments: heard.append(arguments))
    try:
        handler = signal.getsignal(signal.SIGINT)
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            assert heard == []
        assert [number for number, _ in heard] == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with uninterrupted():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    entered = []

    def elsewhere():
        with uninterrupted():
            entered.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert entered == [before]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGALRM", "SIGCHLD", "SIGUSR1"])
def test_other_signals_that_raise_wait_too(name):
    """A cluster ends a job with SIGTERM, a time limit comes by SIGALRM, Paddle raises on SIGCHLD."""
    model, teacher = hapi_model(), TinyNet(width=8)
    found, number = fingerprint(model, teacher), getattr(signal, name)
    callbacks, undone = features(None, teacher), []

    class Elsewhere(Exception):
        pass

    def handler(*_):
        raise Elsewhere

    class Signalled(Crash):
        def on_train_batch_begin(self, step, logs=None):
            scope = callbacks[0].session._scope
            scope.callback(undone.append, "behind")
            scope.callback(os.kill, os.getpid(), number)
            scope.callback(undone.append, "before")

    before = signal.signal(number, handler)
    try:
        with pytest.raises(Elsewhere):
            fit(model, [*callbacks, Signalled("on_train_batch_end")])
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert undone == ["before", "behind"]
    assert fingerprint(model, teacher) == found


def raise_both_inside():
    with uninterrupted():
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGUSR1)


def test_every_signal_that_was_held_is_heard_and_a_handler_that_the_block_sets_stays():
    heard, number = [], signal.SIGUSR1

    def first(*_):
        heard.append("first")
        raise Boom

    def second(*_):
        heard.append("second")
        raise KeyError

    before = signal.signal(signal.SIGUSR1, first), signal.signal(signal.SIGUSR2, second)
    try:
        with pytest.raises(KeyError):
            raise_both_inside()
        assert sorted(heard) == ["first", "second"]
        with uninterrupted():
            held = signal.getsignal(number)
            signal.signal(number, chained := lambda *arguments: held(*arguments))
        assert signal.getsignal(number) is chained
        with pytest.raises(Boom):
            os.kill(os.getpid(), number)
        assert heard.count("first") == 2
    finally:
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGUSR2, before[1])
