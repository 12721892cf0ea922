"""The shared bytes: the header is what abi.py says, and the compiler agrees on every size and offset."""

import subprocess

import numpy as np
import pytest

from mpklab import abi, env


def test_header_is_current():
    assert abi.header_path().read_text() == abi.header(), "run `python -m mpklab.abi`"


def test_compiler_accepts_the_header(tmp_path):
    source = tmp_path / "abi.cpp"
    source.write_text('#include "mpklab/abi.h"\nint main() { return 0; }\n')
    line = [*env.cxx_command(), "-std=c++17", "-fsyntax-only", f"-I{env.csrc_folder() / 'include'}", str(source)]
    subprocess.run(line, check=True)


def test_a_wrong_size_is_refused(tmp_path):
    header = abi.header().replace("int tile[4];", "int tile[5];")
    (tmp_path / "mpklab").mkdir()
    (tmp_path / "mpklab" / "abi.h").write_text(header)
    source = tmp_path / "abi.cpp"
    source.write_text('#include "mpklab/abi.h"\nint main() { return 0; }\n')
    done = subprocess.run([*env.cxx_command(), "-fsyntax-only", f"-I{tmp_path}", str(source)], capture_output=True)
    assert done.returncode != 0


@pytest.mark.parametrize(("name", "size"), [("Task", 64), ("Slot", 64), ("Lane", 64), ("Step", 64), ("Record", 8)])
def test_sizes_that_hardware_cares_about(name, size):
    assert abi.STRUCTS[name].itemsize == size


def test_structs_have_no_hidden_padding():
    for name, dtype in abi.STRUCTS.items():
        assert dtype.fields is not None
        used = sum(field[0].itemsize for field in dtype.fields.values())
        assert used == dtype.itemsize, name


def test_record_tag_fields_do_not_overlap():
    assert max(abi.Kind) < 1 << 2
    assert max(abi.Phase) < 1 << 6
    assert 2 + 6 + abi.ARG_BITS == 32
    assert np.dtype(abi.RECORD).itemsize == 8
