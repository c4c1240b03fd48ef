"""Everything that opens corpus and output files.

`READERS` maps a format's name to its reader; `open_corpus` finds a corpus's files and plans its
fragments.
"""

from __future__ import annotations

from dataprune_ray.config import CorpusConfig
from dataprune_ray.errors import ConfigError, UnknownNameError
from dataprune_ray.io import parquet, webdataset
from dataprune_ray.io.corpus import Corpus, Reader, fragment_target, plan_fragments
from dataprune_ray.io.filesystems import list_files, redact
from dataprune_ray.io.parquet import ParquetReader
from dataprune_ray.io.steady import SteadyReader
from dataprune_ray.io.webdataset import WebDatasetReader

#: What reading a broken file of any format raises.
READ_ERRORS = (*parquet.READ_ERRORS, *webdataset.READ_ERRORS)

READERS: dict[str, Reader] = {
    "parquet": SteadyReader(ParquetReader()),
    "webdataset": SteadyReader(WebDatasetReader()),
}


def get_reader(name: str) -> Reader:
    """The reader of a format.

    Raises:
        UnknownNameError: no format has that name.
    """
    if name not in READERS:
        raise UnknownNameError("format", name, READERS)
    return READERS[name]


def open_corpus(config: CorpusConfig) -> Corpus:
    """Find the corpus's files, read their footers and plan the fragments.

    Raises:
        ConfigError: nothing to read at ``config.input``.
        BadDataError: not one file can be read.
    """
    files = list_files(config.input)
    name: str = config.format
    if name == "auto":
        counts = {n: sum(f.path.endswith(r.suffixes) for f in files) for n, r in READERS.items()}
        present = [n for n, count in counts.items() if count]
        if len(present) > 1:
            raise ConfigError(
                "format",
                "auto",
                f"{redact(config.input)} holds several formats {counts}; choose one",
            )
        name = present[0] if present else "parquet"
    reader = get_reader(name)
    chosen = [file for file in files if file.path.endswith(reader.suffixes)]
    if not chosen:
        wanted = ", ".join(reader.suffixes)
        raise ConfigError("input", redact(config.input), f"no {name} files ({wanted}) there")
    schema, sources = reader.inspect(config.input, chosen)
    fragments = plan_fragments(sources, config.fragment_rows or fragment_target(sources))
    return Corpus(config.input, name, schema, tuple(sources), fragments)
