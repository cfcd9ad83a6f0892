"""tools bench: what is written: a tar file of a real tree, and bytes that do not compress. Blocking."""

from __future__ import annotations

import os
import sysconfig
import tarfile
from dataclasses import dataclass
from pathlib import Path

import blake3

SOURCES = (
    sysconfig.get_path('stdlib'),
    sysconfig.get_path('purelib'),
    '/usr/lib/python3',
    '/usr/include',
    '/usr/share',
)
LEFT_OUT = ('site-packages', 'dist-packages')
FILE_BYTES_MAX = 64 << 20
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """A tar file, what it holds, and a file of bytes that do not compress."""

    tar: Path
    files: int
    bytes: int
    noise: Path


def find_sources(files_min: int) -> list[tuple[Path, list[Path]]]:
    """Return whole directory trees of this machine, with their files, until there are enough."""
    found: list[tuple[Path, list[Path]]] = []
    count = 0
    for source in SOURCES:
        files: list[Path] = []
        for directory, directories, names in os.walk(source):
            directories[:] = sorted(name for name in directories if name not in LEFT_OUT)
            paths = (Path(directory, name) for name in sorted(names))
            files += [
                path for path in paths if not path.is_symlink() and path.stat().st_size <= FILE_BYTES_MAX
            ]
            if count + len(files) >= files_min * 2:
                break  # /usr/share alone may have hundreds of thousands
        found.append((Path(source), files))
        count += len(files)
        if count >= files_min:
            return found
    raise FileNotFoundError(f'only {count} files found in {", ".join(SOURCES)}; {files_min} are needed')


def make_sample(directory: Path, files_min: int, noise_bytes: int) -> Sample:
    """Write both files."""
    tar = directory / 'tree.tar'
    files = total = 0
    with tarfile.open(tar, 'w') as archive:
        for number, (source, paths) in enumerate(find_sources(files_min)):
            for path in paths:
                archive.add(path, f'tree/{number}/{path.relative_to(source)}', recursive=False)
                files += 1
                total += path.stat().st_size
    noise = directory / 'noise'
    hasher = blake3.blake3(b'snapfs bench')
    with noise.open('wb') as out:
        for offset in range(0, noise_bytes, BLOCK_BYTES):
            out.write(hasher.digest(length=min(BLOCK_BYTES, noise_bytes - offset), seek=offset))
    return Sample(tar, files, total, noise)
