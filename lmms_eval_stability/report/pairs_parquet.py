"""`pairs.parquet`: the rows of pairs.csv with their types, compressed, written as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


class PairsParquet:
    """Writes columns of pairs to a binary stream, one row group per call, so that none stay in memory.

    Texts are strings (`task`, `run` and `flip` with a dictionary), `doc_id` is an int64, scores are float64, verdicts
    and `changed` booleans.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        few = pa.dictionary(pa.int32(), pa.string())
        types = {"task": few, "doc_id": pa.int64(), "run": few}
        types |= {name: pa.string() for name in ("target", "prediction_baseline", "prediction_run")}
        types |= {name: pa.float64() for name in ("score_baseline", "score_run")}
        types |= {name: pa.bool_() for name in ("correct_baseline", "correct_run", "changed")}
        self._schema = pa.schema({**types, "flip": few})
        self._stream = stream
        self._writer = pq.ParquetWriter(stream, self._schema)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names in their order."""
        return tuple(self._schema.names)

    def write(self, columns: Sequence[list[Any]]) -> None:
        """Append rows, given as one list per column of the schema. Raises OSError when they cannot be written."""
        import pyarrow as pa

        arrays = [_array(values, kind) for values, kind in zip(columns, self._schema.types, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Write the end of the file, without which it cannot be read, and close the stream."""
        try:
            self._writer.close()
        finally:
            self._stream.close()


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # lone surrogates, of odd file names: as in the other files
        return pa.array([text.encode("utf-8", "replace").decode("utf-8") for text in values], kind)
