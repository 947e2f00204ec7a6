"""Murmuration: training and sampling generative models in JAX.

Supported install: ``pip install -e .`` from a checkout.  The six packages are flat and top level on purpose
(run from the checkout without installing); ``tests`` is never shipped.
"""

from pathlib import Path

from setuptools import find_namespace_packages, setup

PACKAGES = ("configs", "models", "train", "sampling", "data", "launch")

EXTRAS = {
    "gpu": ["jax[cuda12]>=0.10.2,<0.12"],
    "tpu": ["jax[tpu]>=0.10.2,<0.12"],
    # The independent recogniser of `make demo` and run_eval; its English model is inside the wheel.
    "speech": ["pocketsphinx>=5.1"],
    # Word and character error rates of run_eval --pairs.
    "evaluation": ["jiwer>=4.0"],
    # The digits that configs/digits_flow.py trains on are inside the package; so are the classifiers that judge them.
    "images": ["scikit-learn>=1.5"],
    # Decoding of images, and COCO's own judge of detections.
    "detection": ["pillow>=10.4", "pycocotools>=2.0.8"],
    # The reference's Chinese front end: word segmentation and tone-marked pinyin with sandhi.
    "pinyin": ["rjieba>=0.1.13", "pypinyin>=0.53"],
    "export": ["flatbuffers>=24.3"],
    "tensorboard": ["tensorboardX>=2.6"],
    # PyTorch is a yardstick of the benchmarks only; nothing in the packages imports it.
    "benchmark": ["torch>=2.6"],
    "dev": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.17,<0.18", "pyright[nodejs]>=1.1.400"],
}

setup(
    name="murmuration",
    version="0.1.0",
    description="Training and sampling generative models in JAX: speech, detection, autoregressive decoders",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_namespace_packages(include=[g for n in PACKAGES for g in (n, f"{n}.*")]),
    package_data={"data.corpus": ["*.csv", "*.txt", "wavs/*"]},
    install_requires=[
        "jax>=0.10.2,<0.12",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8,<0.13",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources",  # tfds needs it and does not ask for it
        "grain>=0.2.18",
        "array_record>=0.8.6",
        "einops>=0.8",
        "absl-py>=2.1",
        "ml_collections>=1.1",
        "numpy>=2.0",
        "safetensors>=0.5",
        "soundfile>=0.13",
        "soxr>=1.0",
        "matplotlib>=3.9",
    ],
    extras_require=EXTRAS,
)
