"""Environments of the packages that benchmarks compare with, apart from ours."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def environment(folder: Path, needs: Sequence[str], alone: Sequence[str]) -> Path:
    """The interpreter of the environment in ``folder``, made if it is not there.

    Args:
      folder: where; made with this Python.
      needs: what is installed with its dependencies, beside the torch that is installed here.
      alone: what is installed without.

    Raises:
      subprocess.CalledProcessError, OSError: it could not be made.
    """
    python = folder / "bin" / "python"
    if python.exists():
        return python
    print(f"making {folder}: {', '.join(alone)} and what they need", flush=True)
    done = subprocess.run([sys.executable, "-m", "pip", "freeze"], stdout=subprocess.PIPE, text=True, check=False)
    frozen = [line.split("+")[0] for line in done.stdout.splitlines()]
    torch = [line for line in frozen if line.startswith("torch==")]  # the same kernels on both sides
    try:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "-q"]
        subprocess.run([*install, "--no-deps", *alone], check=True)
        subprocess.run([*install, *needs, *torch], check=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return python
