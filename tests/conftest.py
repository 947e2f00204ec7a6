"""Test session set-up: eight fake CPU devices and one compile cache shared by all workers and sessions.

Set before JAX is imported anywhere, since XLA reads its flags once.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = "--xla_force_host_platform_device_count=8"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's CPU collectives block a thread each, and independent ones run side by side: with a pool as small as the eight
# fake devices the steps in flight can take all threads and wait for each other for ever.
os.environ.setdefault("PJRT_NPROC", "32")
# Decoded speech is kept here and not in the user's cache.
os.environ.setdefault("MURMURATION_CACHE", str(ROOT / ".cache" / "murmuration-tests"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
