"""The text of a corpus as a TFDS data set in ArrayRecord format, readable without TensorFlow.

    builder = tfds.builder_from_directory("CORPUS/blocks")
    source = builder.as_data_source(split="train")      # random access; record i is document i
    source[7]["text"].decode()

The data set is described by a TFDS builder; the records are written here, in order and once: TFDS's own writer puts
every record through a temporary file and takes four times as long.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from realm_jax.corpus.blocks import Block

NAME = "realm_blocks"
SPLIT = "train"
# A shard is closed at this size, so that a large corpus can be copied and read in parts.
SHARD_BYTES = 256 << 20


class RealmBlocks(tfds.core.GeneratorBasedBuilder):
    """Blocks of a corpus: sentences kept whole, the title beside, sentence and salient span offsets in characters."""

    name = NAME
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, blocks: Iterable[Block] = (), **kwargs: Any):
        self._blocks = blocks
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        pairs = tfds.features.Tensor(shape=(None, 2), dtype=np.int32)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(doc="source id, '#', number of the block in its source"),
                    "source_id": tfds.features.Text(),
                    "title": tfds.features.Text(),
                    "text": tfds.features.Text(),
                    "sentence_spans": pairs,
                    "salient_spans": pairs,
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable[tuple[int, dict]]]:
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterable[tuple[int, dict]]:
        for number, block in enumerate(self._blocks):
            yield number, block._asdict()


class BlockWriter:
    """Writes blocks in order into the files of the data set; `finish` describes them.

    Args:
      directory: of the data set; files of an unfinished build there are replaced.
    """

    def __init__(self, directory: str | Path, shard_bytes: int = SHARD_BYTES):
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        for stale in self._directory.iterdir():
            stale.unlink()
        self._shard_bytes = shard_bytes
        self._lengths: list[int] = []
        self._bytes = 0
        self._writer: Any = None
        self._shard_size = 0

    def add(self, records: Iterable[bytes]) -> None:
        """Appends blocks as `serialize` made them."""
        for record in records:
            if self._writer is None or self._shard_size >= self._shard_bytes:
                self._next_shard()
            self._writer.write(record)
            self._lengths[-1] += 1
            self._shard_size += len(record)
            self._bytes += len(record)

    def finish(self) -> None:
        if self._writer is None:
            self._next_shard()
        self._writer.close()
        # The builder's data directory is ours, without the name/version folders below it.
        builder = RealmBlocks(data_dir=str(self._directory))
        template = tfds.core.ShardedFileTemplate(
            dataset_name=NAME,
            split=SPLIT,
            filetype_suffix="array_record",
            data_dir=epath.Path(self._directory),
        )
        for shard in range(len(self._lengths)):
            final = template.sharded_filepath(shard_index=shard, num_shards=len(self._lengths))
            self._part(shard).rename(self._directory / final.name)
        split = tfds.core.SplitInfo(
            name=SPLIT, shard_lengths=self._lengths, num_bytes=self._bytes, filename_template=template
        )
        builder.info.set_splits(tfds.core.splits.SplitDict([split]))
        builder.info.write_to_directory(str(self._directory))

    def __enter__(self) -> "BlockWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None and self._writer.is_open():
            self._writer.close()

    def _next_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = array_record_module.ArrayRecordWriter(str(self._part(len(self._lengths))), "group_size:1")
        self._lengths.append(0)
        self._shard_size = 0

    def _part(self, shard: int) -> Path:
        return self._directory / f"unfinished-{shard:05d}"


def write_blocks(directory: str | Path, blocks: Iterable[Block]) -> None:
    """Writes all blocks as a data set."""
    with BlockWriter(directory) as writer:
        writer.add(map(serialize, blocks))
        writer.finish()


def open_blocks(directory: str | Path) -> Sequence[Mapping[str, Any]]:
    """The records of a data set that `BlockWriter` wrote, by number.

    Raises:
      ValueError: no data set there.
    """
    try:
        return tfds.builder_from_directory(str(directory)).as_data_source(split=SPLIT)
    except Exception as error:  # TFDS raises many kinds, its own among them
        raise ValueError(f"no readable block data set at {directory} ({error}); build the corpus again") from error


def block_of(record: Mapping[str, Any]) -> Block:
    """A record as a block."""
    return Block(
        *(record[name].decode() for name in ("id", "source_id", "title", "text")),
        *(np.asarray(record[name], np.int32) for name in ("sentence_spans", "salient_spans")),
    )


def serialize(block: Block) -> bytes:
    """A block as a record of the data set: a tf.train.Example."""
    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["id"].bytes_list.value.append(block.id.encode())
    feature["source_id"].bytes_list.value.append(block.source_id.encode())
    feature["title"].bytes_list.value.append(block.title.encode())
    feature["text"].bytes_list.value.append(block.text.encode())
    feature["sentence_spans"].int64_list.value.extend(block.sentence_spans.ravel().tolist())
    feature["salient_spans"].int64_list.value.extend(block.salient_spans.ravel().tolist())
    return example.SerializeToString(deterministic=True)
