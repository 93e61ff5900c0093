"""A command whose output is cut, closed or interrupted ends quietly and stops what it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

PREAMBLE = """
import contextlib, logging, os, signal, socket, subprocess, sys, threading
from common.streams import ends_quietly

@contextlib.contextmanager
def server():
    try:
        yield
    finally:
        os.write(int(os.environ["STOPPED"]), b"stopped")

@ends_quietly
def main():
{body}
sys.exit(main())
"""


class Ended:
    """A command that has ended: its status, what it said on stderr, and whether its server was stopped."""

    def __init__(self, body, *, stdout=None, stderr=subprocess.PIPE, closed="", interrupt=False, **variables):
        code = PREAMBLE.format(body=textwrap.indent(textwrap.dedent(body), "    "))
        argv = [sys.executable, "-c", code]
        reader, writer = os.pipe()
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" {closed}', *argv] if closed else argv,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=stderr,
            pass_fds=[writer],
            env={**environment(), "STOPPED": str(writer), **variables},
        )
        os.close(writer)
        if interrupt:
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        self.status = process.returncode
        self.out, self.err = ((text or b"").decode() for text in (out, err))
        with os.fdopen(reader, "rb") as pipe:
            self.stopped = pipe.read() == b"stopped"


def environment():
    """This process's, without the variable under which Python writes without a buffer."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.fixture
def cut():
    """The end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.fixture(params=["buffered", "unbuffered"])
def buffer(request):
    """Variables under which Python's streams have a buffer, or none."""
    return {} if request.param == "buffered" else {"PYTHONUNBUFFERED": "1"}


def test_output_that_is_cut_ends_a_command_and_stops_what_it_started(cut, buffer):
    ended = Ended("with server():\n    while True: print('x' * 9999)", stdout=cut, **buffer)
    assert (ended.status, ended.err, ended.stopped) == (141, "", True)


def test_a_cut_that_the_last_flush_finds_counts_as_well(cut, buffer):
    ended = Ended("print('x'); return 3", stdout=cut, **buffer)
    assert (ended.status, ended.err) == (141, "")


def test_help_that_is_cut_ends_so_too(cut, buffer):
    ended = Ended("import argparse; argparse.ArgumentParser().parse_args(['--help'])", stdout=cut, **buffer)
    assert (ended.status, ended.err) == (141, "")


def test_no_handler_of_errors_takes_the_cut_for_one(cut):
    body = """
    with server():
        try:
            print("x", flush=True)
        except Exception as error:
            sys.stderr.write(repr(error))
    """
    ended = Ended(body, stdout=cut)
    assert (ended.status, ended.err, ended.stopped) == (141, "", True)


def test_standard_error_that_is_cut_ends_a_command(cut):
    ended = Ended("with server():\n    while True: logging.warning('x')", stderr=cut)
    assert (ended.status, ended.stopped) == (141, True)


def test_a_cut_that_another_thread_finds_wakes_the_main_thread(cut):
    body = """
    with server():
        threading.Thread(target=lambda: print("x", flush=True)).start()
        threading.Event().wait()
    """
    ended = Ended(body, stdout=cut)
    assert (ended.status, ended.err, ended.stopped) == (141, "", True)


def test_the_thread_that_finds_a_cut_goes_on(cut):
    body = """
    def work():
        print("x", flush=True)
        os.write(int(os.environ["STOPPED"]), b"stopped")
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    """
    assert Ended(body, stdout=cut).stopped


def test_two_streams_that_are_cut_do_not_break_into_the_clearing_up(cut):
    body = """
    with server():
        try:
            print("x", flush=True)
        finally:
            print("clearing up", file=sys.stderr)
            thread = threading.Thread(target=lambda: print("as well", file=sys.stderr))
            thread.start()
            thread.join()
    """
    ended = Ended(body, stdout=cut, stderr=cut)
    assert (ended.status, ended.stopped) == (141, True)


SOCKETS = """
ours, theirs = socket.socketpair()
theirs.close()
"""


def test_a_connection_that_breaks_is_an_error_like_any_other():
    body = (
        SOCKETS
        + """
for _ in range(3):
    try:
        ours.send(b"x")
    except BrokenPipeError:
        print("closed")
return 4
"""
    )
    ended = Ended(body)
    assert (ended.status, ended.out, ended.err) == (4, "closed\n" * 3, "")


def test_a_broken_connection_that_nobody_handles_has_its_traceback():
    ended = Ended(SOCKETS + 'ours.send(b"x")')
    assert ended.status == 1
    assert ended.err.endswith("BrokenPipeError: [Errno 32] Broken pipe\n")


def test_a_broken_connection_does_not_interrupt_the_clearing_up_after_a_cut(cut):
    body = (
        SOCKETS
        + """
with server():
    try:
        threading.Thread(target=lambda: print("x", flush=True)).start()
        threading.Event().wait()
    finally:
        with contextlib.suppress(BrokenPipeError):
            ours.send(b"x")
"""
    )
    ended = Ended(body, stdout=cut)
    assert (ended.status, ended.err, ended.stopped) == (141, "", True)


def test_an_error_before_the_cut_is_shown(cut):
    ended = Ended("print('x'); raise RuntimeError('no model')", stdout=cut)
    assert ended.status == 1
    assert ended.err.endswith("RuntimeError: no model\n")


def test_an_error_after_the_cut_is_its_consequence(cut):
    body = """
    try:
        print("x", flush=True)
    finally:
        raise RuntimeError("no output")
    """
    ended = Ended(body, stdout=cut)
    assert (ended.status, ended.err) == (141, "")


def test_ctrl_c_ends_a_command_without_a_traceback():
    ended = Ended("with server():\n    print('ready', flush=True); threading.Event().wait()", interrupt=True)
    assert (ended.status, ended.err, ended.stopped) == (130, "", True)


CHILD = "import os, sys; os.stat('/dev/null').st_rdev == os.fstat(1).st_rdev and sys.exit(7)"


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_from_the_start_lead_nowhere(closed):
    body = f"""
    print("x")
    sys.stdout.write("x")
    with open("/dev/zero", "rb"):  # must not become the standard output of a child
        child = subprocess.run([sys.executable, "-c", {CHILD!r}], check=False)
    return child.returncode if "<" not in {closed!r} or sys.stdin.read() == "" else 1
    """
    ended = Ended(body, closed=closed)
    assert (ended.status, ended.err) == (7, "")


def test_a_command_that_runs_another_ends_once(cut):
    body = """
    @ends_quietly
    def inner():
        threading.Thread(target=lambda: print("x", flush=True)).start()
        threading.Event().wait()
    with server():
        inner()
    """
    ended = Ended(body, stdout=cut)
    assert (ended.status, ended.err, ended.stopped) == (141, "", True)


def test_the_streams_and_the_signal_are_as_before_in_the_end():
    body = """
    before = (sys.stdout, signal.getsignal(signal.SIGPIPE))
    @ends_quietly
    def inner(): print("x")
    """
    code = textwrap.dedent(body) + "inner(); assert (sys.stdout, signal.getsignal(signal.SIGPIPE)) == before"
    code = PREAMBLE.partition("@contextlib")[0] + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("x\n", "", 0)
