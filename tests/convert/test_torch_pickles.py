"""Torch files are looked through before torch reads them."""

import pickle
import zipfile

import pytest

from realm_jax.convert.torch_pickles import LONGEST_TEXT, check_texts


def legacy(path, *last):
    """As torch wrote files before they were zip archives: pickles one after the other, then bytes of storages."""
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"a": 1})]
    path.write_bytes(b"".join([*parts[: 4 - len(last)], *last]) + b"\xff" * 100)
    return path


def archive(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as made:
        made.writestr("archive/data.pkl", content)
        made.writestr("archive/data/0", b"\xff" * 100)
    return path


@pytest.mark.parametrize("name_len", [LONGEST_TEXT, LONGEST_TEXT + 1])
def test_a_long_name_is_refused_and_others_are_not(tmp_path, name_len):
    of_a_global = b"\x80\x02c" + b"m" * (name_len - 2) + b"\nn\n."  # module and name together
    for path in (
        legacy(tmp_path / "legacy", of_a_global),
        archive(tmp_path / "zip", of_a_global),
        archive(tmp_path / "text", pickle.dumps({"w" * name_len: 1}, 2)),
    ):
        if name_len == LONGEST_TEXT:
            check_texts(path)
        else:
            with pytest.raises(
                ValueError, match=rf"a text of {name_len} characters at byte \d+, expected at most {LONGEST_TEXT}"
            ):
                check_texts(path)


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a pickle that cannot be read"):
        check_texts(legacy(tmp_path / "a", b"\x80\x02X\x05\x00\x00\x00hell"))
    with pytest.raises(ValueError, match="compressed, which torch never does"):
        check_texts(archive(tmp_path / "b", pickle.dumps({}), zipfile.ZIP_DEFLATED))
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ValueError):
        check_texts(tmp_path / "empty")
