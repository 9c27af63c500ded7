"""Package metadata. `kernels/` is installed as `vpt_kernels`: plain `kernels` is taken on PyPI."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="vpt-vision",
    version="0.1.0",
    description="Value-based pretraining for vision: a designer network makes the self-supervised task",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["vpt_vision", "vpt_vision.*"]), "vpt_kernels", "vpt_kernels.triton"],
    package_dir={"vpt_kernels": "kernels"},
    package_data={
        "vpt_vision": ["assets/*", "evaluation/templates/*", "py.typed"],
        "vpt_kernels": ["py.typed"],
    },
    install_requires=[
        "torch>=2.11",
        "triton>=3.6; sys_platform == 'linux'",
        "torchvision",
        "timm>=1.0.20",
        "webdataset",
        "filelock",
        "fsspec",
        "einops",
        "numpy",
        "scipy",
        "pillow",
        "simplejpeg",
        "pydantic>=2",
        "pyyaml",
        "safetensors",
        "scikit-learn",
        "tensorboard",
        "matplotlib",
        "jinja2",
        "rich",
    ],
    extras_require={
        "dev": [
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "types-PyYAML",
            "mkdocs-material",
        ],
        "huggingface": ["datasets>=3.0"],
        "bench": ["kornia", "liger-kernel", "cut-cross-entropy"],  # peers that benchmarks/kernels.py times
        "wandb": ["wandb"],
    },
    entry_points={"console_scripts": ["vpt=vpt_vision.cli:main"]},
)
