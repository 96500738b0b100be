"""The mistakes and mishaps a user can meet, one class an exit code.

Each is raised where it is noticed, with a message of one line that names the file or field and the
remedy, and shown once, by the command line.  Anything else that reaches the user is a bug.
"""

import errno
import re


class NeuroKubeError(Exception):
    """Base of all errors that are shown as one line; exit code 1."""

    exit_code = 1


class UsageError(NeuroKubeError):
    """The command line asks for something that cannot be; exit code 64."""

    exit_code = 64


class DataError(NeuroKubeError):
    """An input file is missing, damaged or not what it should be; exit code 65."""

    exit_code = 65


class TryAgainError(NeuroKubeError):
    """The surroundings failed (disk full, folder busy); nothing was lost, run again; exit code 75."""

    exit_code = 75


class ConfigurationError(NeuroKubeError):
    """A workflow or a run folder does not fit; exit code 78."""

    exit_code = 78


class Drained(NeuroKubeError):
    """Asked to stop (Ctrl-C, SIGTERM) and stopped with everything recorded; exit code 85."""

    exit_code = 85


class Starved(NeuroKubeError):
    """A pod was held back by its limit of processor time, and stopped with everything recorded; exit code 86."""

    exit_code = 86


_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space and run again (nothing that was recorded is lost)",
    errno.EDQUOT: "the disk quota is used up: free some space and run again (nothing that was recorded is lost)",
    errno.EROFS: "the folder is read-only: choose another, or make it writable",
    errno.ENOTDIR: "a file is where a folder is needed: choose another place",
    errno.EACCES: "permission denied: choose another folder, or make it writable",
    errno.EPERM: "permission denied: choose another folder, or make it writable",
}


def surroundings(error: BaseException, where: str) -> TryAgainError | None:
    """Return the error to show if `error` is the storage's fault and not the block's, else None.

    Understands `OSError`, and the `ValueError` by which tensorstore reports an errno or what an object store says.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (match := re.search(r"os_error_code='(\d+)'", str(error))):
        code = int(match.group(1))
    remedy = _REMEDIES.get(code) if code is not None else None
    if code is None and isinstance(error, ValueError):
        remedy = _store_fault(str(error))
    return TryAgainError(f"{where}: {remedy}") if remedy else None


def _store_fault(message: str) -> str:
    """Return what ails an object store, and the remedy, by what tensorstore says; "" where it is none."""
    # what follows in brackets may be long, or tell what it should not
    said = re.split(r" \[\w+='", message)[0]
    if re.match(r"PERMISSION_DENIED|UNAUTHENTICATED", said):
        return (
            f"access denied ({said.rpartition(': ')[2]}): check the keys, or the rights of the account, for this store"
        )
    if "was ignored by server" in said:
        return "the web server gives whole files only, and no ranges of them: use another web server, or copy the files"
    if "NoSuchBucket" in said:
        return "there is no such bucket: create it, or correct the name"
    if re.match(r"ABORTED: All \d+ retry|UNAVAILABLE|DEADLINE_EXCEEDED", said):
        return f"the store does not answer ({said.rpartition(': ')[2]}): check its endpoint and the network, run again"
    return ""
