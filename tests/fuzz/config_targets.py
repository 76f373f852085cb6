"""gin: values given on the command line, which import nothing, and gin files, which are code and may only not crash."""

from pathlib import Path

from realm_jax import config
from realm_jax.jobs import Job
from tests.fuzz.target import Target

_TABLE = {"train": Job("tests.sample_jobs:teach", ""), "embed": Job("tests.sample_jobs:watch", "")}
_HEAD = "from __gin__ import dynamic_registration\nfrom tests import sample_jobs\n"
_FILE = (
    _HEAD
    + 'NUM_STEPS = 20\nCORPUS = "wiki"\nsample_jobs.teach.corpus = %CORPUS\nsample_jobs.teach.num_steps = %NUM_STEPS\n'
    "sample_jobs.teach.encoder = @sample_jobs.Encoder()\nsample_jobs.teach.buckets = (3, 4)\nsample_jobs.Encoder.num_layers = 3\n"
    "a/sample_jobs.Encoder:\n  num_layers = 4\n  norm = 'pre'\nsample_jobs.teach.pair = @sample_jobs.Pair()\n"
    "sample_jobs.Pair.query = @a/sample_jobs.Encoder()\n"
)
_BINDINGS = (
    b"train.num_steps=30", b"NUM_STEPS=7", b"CORPUS=a/path", b"sample_jobs.teach.buckets=(1, 2)", b"a/sample_jobs.Encoder.dropout=0.2",
    b"train.encoder=@sample_jobs.Encoder()", b"sample_jobs.Encoder.name='x'", b"train.mode='frozen'", b"train.schedule=@sample_jobs.constant()",
)  # fmt: skip
_WORDS = (
    b"\nimport antigravity", b"\nfrom turtledemo import clock\n", b"\ninclude '/etc/passwd'", b"@os.system()", b"@os.system", b"%x", b"@",
    b"%gin.REQUIRED", b"@gin.singleton()", b"__import__('this')", b"(", b")", b"{", b"'''", b"\n", b"\\\n", b"#", b"=", b"/", b".", b":",
    b"lambda: 0", b"1e999", b"[x for x in ()]", b"\x0c", b"\rimport this\r", b"/../../out", b"@this.s()", b"@sample_jobs.",
)  # fmt: skip
_FILE_WORDS = tuple(word for word in _WORDS if b"import" not in word and b"include" not in word)


def _files(folder: Path) -> tuple[bytes, ...]:
    (folder / "run.gin").write_text(_FILE)
    return _BINDINGS


def _bind(data: bytes, folder: Path) -> None:
    """Several values, a line apart by NUL: a value itself may hold line breaks."""
    bindings = [part.decode("utf-8", "replace") for part in data.split(b"\x00")]
    config.bind("train", [str(folder / "run.gin")], bindings, _TABLE)
    config.operative_config()


def _read(data: bytes, folder: Path) -> None:
    if b"import" in data.replace(_HEAD.encode(), b""):  # what a gin file imports is run: no input for this
        return
    (folder / "input.gin").write_bytes(data)
    config.bind("train", [str(folder / "input.gin")], [], _TABLE)
    text = config.operative_config()
    (folder / "again.gin").write_text(text)
    config.bind("train", [str(folder / "again.gin")], [], _TABLE)


TARGETS = [
    Target("gin_bindings", _files, _bind, words=_WORDS),
    Target("gin_files", (_FILE.encode(),), _read, words=_FILE_WORDS),
]
