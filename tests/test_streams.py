"""Streams that cannot be written, in this process."""

import os

import pytest

from silotune import streams
from silotune.errors import OutputError


@pytest.fixture
def full():
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


def test_output_that_cannot_be_written_ends_the_command(full):
    output = streams.output(full)
    output.write("x")
    with pytest.raises(OutputError, match=r"standard output cannot be written \(No space left on device\)\."):
        output.flush()


def test_a_reader_that_has_gone_is_told_as_that():
    read, write = os.pipe()
    os.close(read)
    output = streams.output(write)
    with pytest.raises(OutputError, match="whoever read standard output has gone"):
        print("x" * 100_000, file=output)
    os.close(write)


def test_remarks_that_cannot_be_written_are_lost(full):
    remarks = streams.remarks(full)
    print("x" * 100_000, file=remarks)
    remarks.flush()
    assert OutputError.exit_code == 3
