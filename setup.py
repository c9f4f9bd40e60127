"""Packaging. ``properties/`` lies at the top for people and inside the package for installs."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
PROPERTIES = HERE / "properties"
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1,<2"]

setup(
    name="recbole-llara",
    version="0.1.0",
    description="Large language models as sequential recommenders (LLaRA), as a RecBole plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").is_file() else "",
    long_description_content_type="text/markdown",
    author="the recbole-llara authors",
    license="MIT",
    license_files=["LICENSE"],
    # RecBole 1.2.1 requires ray <= 2.6.3, whose last wheels are for 3.11; current transformers and scipy need 3.11.
    python_requires=">=3.11,<3.12",
    packages=[*find_packages(include=["recbole_llara", "recbole_llara.*"]), "recbole_llara.properties"],
    package_dir={"recbole_llara.properties": "properties"},
    package_data={
        "recbole_llara": ["tiny_llama/weights/*", "experiments/report.html", "demo/static/*"],
        "recbole_llara.properties": [
            str(path.relative_to(PROPERTIES))
            for ending in ("yaml", "hyper")
            for path in sorted(PROPERTIES.rglob(f"*.{ending}"))
        ],
    },
    include_package_data=False,
    install_requires=[
        "recbole==1.2.1",
        # RecBole reads np.unicode_ and ray np.bool8, both gone in numpy 2; under pandas 3 it loads no dataset.
        "numpy>=1.26,<2",
        "pandas>=2.2,<3",
        # RecBole's own quick_start imports ray, and ray 2.6.3 pkg_resources, gone in setuptools 82.
        "ray<=2.6.3",
        "setuptools<81",
        # transformers 5 takes no older torch; torch.load(weights_only=True) of older ones can be made to run code
        # (CVE-2025-32434); torch.compiler.set_stance is of 2.6. The key fsdp needs 2.7.
        "torch>=2.6",
        "transformers>=5,<6",
        "peft>=0.17",
        "accelerate>=1.10",
        "tokenizers>=0.22",
        "safetensors>=0.5",
        "scipy>=1.11",
        "filelock>=3.12",
        "pydantic>=2.11,<3",
        "PyYAML>=6",
        "tqdm>=4.66",
        "plotly>=5.20",
        "Jinja2>=3.1",
        "optuna>=5",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "sentencepiece>=0.2",
            "openai>=1.40",
            "transformers[serving]",
            "pyarrow>=15,<22",
            *DOCS,  # a test builds the pages
            "playwright>=1.45",  # drives the demo in a Chromium that is installed already
        ],
        "docs": DOCS,
        "quantization": ["bitsandbytes>=0.46"],  # the first that runs on CPUs too
        "parquet": ["pyarrow>=15,<22"],  # later ones ask for numpy 2
        "png": ["kaleido>=1"],
        "chat": ["openai>=1.40", "transformers[serving]"],
        "demo": ["fastapi>=0.115", "uvicorn>=0.30"],
    },
    entry_points={"console_scripts": ["recbole-llara = recbole_llara.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
