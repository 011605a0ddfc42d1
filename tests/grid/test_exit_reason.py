import errno
import os
import resource
import signal

import pytest

from nangrid.grid.exit_reason import ExitReason

OUTSIDE = [
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.ENOTDIR,
    errno.ESTALE,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
]


@pytest.mark.parametrize("number", OUTSIDE, ids=errno.errorcode.get)
def test_a_fault_of_the_machine_is_not_the_cells(number: int) -> None:
    assert ExitReason.from_exception(OSError(number, os.strerror(number), "history.parquet")).status is None
    rust = RuntimeError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
    assert ExitReason.from_exception(rust).status is None
    wrapped = ValueError("the record cannot be written")
    wrapped.__cause__ = OSError(number, os.strerror(number))
    assert ExitReason.from_exception(wrapped).status is None


def test_a_full_temporary_directory_is_not_the_cells() -> None:
    error = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    assert ExitReason.from_exception(error).status is None


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "data.csv"), RuntimeError("shapes differ")])
def test_a_mistake_in_the_code_is_the_cells(error: Exception) -> None:
    assert ExitReason.from_exception(error).status == "error"


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGALRM", "SIGBUS", "SIGXCPU", "SIGXFSZ", "SIGPIPE", "SIGHUP"])
def test_a_signal_from_outside_is_not_the_cells(name: str) -> None:
    reason = ExitReason.from_exit_code(-getattr(signal, name), 0)
    assert reason.status is None and name in reason.message
    assert ExitReason.from_exit_code(-40, 0).status is None  # a real-time signal, which has no name


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL])
def test_a_signal_of_a_crash_is_the_cells(number: signal.Signals) -> None:
    assert ExitReason.from_exit_code(-number, 0).status == "error"


def test_memory_exhausted_under_a_limit_of_the_shell_is_not_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ExitReason.from_exception(MemoryError()).status == "error"
    monkeypatch.setattr(resource, "getrlimit", lambda what: (2**32, 2**32))
    reason = ExitReason.from_exception(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert reason.status is None and "4.0 GiB (ulimit -v)" in reason.message
