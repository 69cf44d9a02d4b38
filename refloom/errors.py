"""The errors a person can do something about, each with the exit status of the command line.

    RefloomError
    ├── InputError      2   a file, flag or directory that cannot be used as asked
    ├── JournalError    2   a journal that cannot be opened or written
    ├── TooManyFailed   3   more samples failed than the run was allowed
    ├── BudgetSpent     4   a cap leaves no room for a call
    ├── WorkersLost     4   no Ray worker is left
    ├── CheckUnusable   4   a check of the user's own is ended again and again
    └── HubRefused      4   the Hugging Face hub refused the upload, or not all

A message is one line: what is wrong, where, and how to mend it. Errors of the packages below
(`IndexUnusable`, `WeightsUnavailable`, `ProviderStopped`) are raised there and get their exit
status in `refloom.cli`.
"""

from __future__ import annotations


class RefloomError(Exception):
    """An error that the command line reports as one line before it exits with `exit_status`."""

    exit_status = 2


class InputError(RefloomError):
    """Input that cannot be used: which file, at which line, what is wrong, how to mend it."""


class JournalError(RefloomError):
    """A journal that cannot be opened or written; the message says what to do. Nothing is lost."""


class TooManyFailed(RefloomError):
    """More samples failed than the run was allowed; it was stopped before it cost more."""

    exit_status = 3


class BudgetSpent(RefloomError):
    """A cap leaves no room for a call; the message says which, and how the run can go on."""

    exit_status = 4


class WorkersLost(RefloomError):
    """No worker is left; finished work is in the journal, and the same command resumes the run."""

    exit_status = 4


class CheckUnusable(RefloomError):
    """A check that decides a criterion cannot be used; the message names it and says why."""

    exit_status = 4


class HubRefused(RefloomError):
    """The hub refused the upload, or not all; the message says why, and never holds a token."""

    exit_status = 4
