"""The documents of a run, as the form of the notebook names them."""

import importlib
import json
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from colab.runtime import Stop
from realm_jax.corpus.sources import read_articles

EMBEDDED, UPLOAD, PLACE, WIKIPEDIA = CHOICES = ("embedded corpus", "upload", "folder or file", "Wikipedia")
DUMP = "https://dumps.wikimedia.org/{0}/latest/{0}-latest-pages-articles.xml.bz2"
CHUNK_BYTES = 1 << 20


def mount_drive() -> Path:
    """The user's Drive.

    Raises:
      Stop: elsewhere than in Colab.
    """
    _colab("drive", "SAVE_TO_DRIVE needs Colab; untick it and give RUN_DIR a folder").mount("/content/drive")
    return Path("/content/drive/MyDrive")


def choose(choice: str, documents: str, wikipedia: str, max_documents: int, folder: Path) -> list[str]:
    """The corpus flags of `launch/local.py`; none for the embedded corpus.

    Args:
      choice: one of `CHOICES`.
      documents: of "folder or file": where, or `tfds:NAME?split=…`.
      wikipedia: of "Wikipedia": a name such as `simplewiki`, the address of a dump (….xml.bz2), or `tfds:NAME?split=…`.
      max_documents: only the first so many articles are used; 0 for all.
      folder: for what is fetched and cut; what lies there already is not fetched again.

    Raises:
      Stop: no such choice, nothing there, or no document in it.
    """
    if choice not in CHOICES:
        raise Stop(f"CORPUS: expected one of {', '.join(CHOICES)}, got {choice!r}")
    if max_documents < 0:
        raise Stop(f"MAX_DOCUMENTS: expected a number of documents, or 0 for all, got {max_documents}")
    if choice == EMBEDDED:
        return []
    if choice == UPLOAD:
        source = str(upload(folder / "uploaded"))
    elif choice == PLACE:
        source = documents.strip()
        if not source or not (source.startswith("tfds:") or Path(source).exists()):
            raise Stop(
                f"DOCUMENTS: expected a folder or file of documents, or tfds:NAME, got {source!r}, which is not there; "
                "of Drive, mount it first (SAVE_TO_DRIVE) and begin with /content/drive/MyDrive/"
            )
    else:
        if re.fullmatch(r"\w+", wikipedia):
            wikipedia = DUMP.format(wikipedia)
        elif not (wikipedia.startswith("tfds:") or "://" in wikipedia):
            raise Stop(
                f"WIKIPEDIA: expected a name such as simplewiki, the address of a dump (https://…), or tfds:NAME, got {wikipedia!r}"
            )
        source = wikipedia if wikipedia.startswith("tfds:") else str(download(wikipedia, folder))
    return [f"--corpus={first_articles(source, max_documents, folder) if max_documents else source}"]


def upload(folder: Path) -> Path:
    """Asks the user for files, once, and unpacks zip archives among them."""
    if not folder.exists() or not any(folder.iterdir()):
        files = _colab("files", f"CORPUS: {UPLOAD!r} needs Colab; choose {PLACE!r} and name the place").upload()
        if not files:
            raise Stop("nothing was uploaded; run the cell again")
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
            Path(name).unlink(missing_ok=True)  # Colab leaves a copy in the working directory
            if name.endswith(".zip"):
                shutil.unpack_archive(folder / name, folder)
                (folder / name).unlink()
    print(f"documents in {folder}; remove that folder to upload others")
    return folder


def download(address: str, folder: Path) -> Path:
    """A file from the web, whole or not at all.

    Raises:
      Stop: when it does not come.
    """
    place = folder / (Path(urlsplit(address).path).name or "download")
    if place.exists():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(place.name + ".part")
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "realm_jax notebook"})
        with urllib.request.urlopen(request, timeout=60) as answer, partial.open("wb") as file:
            total, done = int(answer.headers.get("Content-Length") or 0), 0
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                print(f"\r{place.name}: {done >> 20} of {total >> 20} MiB", end="", flush=True)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise Stop(f"{address} did not come: {error}; run the cell again, or name another address") from error
    print()
    if done < total:
        raise Stop(f"{address}: {done} of {total} bytes came; run the cell again")
    partial.replace(place)
    return place


def first_articles(source: str, limit: int, folder: Path) -> Path:
    """The first articles of a source of any format of the corpus job, as JSON lines.

    Raises:
      Stop: a source that cannot be read, or holds nothing.
    """
    name = re.sub(r"[^\w.]+", "-", source.removeprefix(str(folder)).split("/")[-1]).strip("-")
    place = folder / f"{name}-first-{limit}.jsonl"
    if place.exists():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    left_out: Counter[str] = Counter()
    count, partial = 0, place.with_name(place.name + ".part")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for article in islice(read_articles(source, on_drop=lambda cause: left_out.update([cause])), limit):
                record = {"id": article.id, "title": article.title, "text": article.text}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
    except (ValueError, OSError) as error:
        raise Stop(str(error)) from error
    if not count:
        raise Stop(f"{source} holds no document that can be used ({dict(left_out) or 'it is empty'})")
    partial.replace(place)
    causes = "".join(f", {number} × {cause}" for cause, number in left_out.most_common())
    print(f"{count} documents in {place}" + (f"; left out on the way{causes.replace(',', ':', 1)}" if causes else ""))
    return place


def _colab(module: str, otherwise: str) -> Any:
    if "google.colab" not in sys.modules:
        raise Stop(otherwise)
    return importlib.import_module(f"google.colab.{module}")
