"""The command line in this process, over the fakes of the service's tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / 'service'))

import service_fakes


@pytest.fixture
def cli(monkeypatch, tmp_path, capsysbinary):
    """Run a command line; returns (exit code, standard output, standard error)."""
    from snapfs.cli.main import main
    from snapfs.service import compose

    for name in ('open_engine', 'operations', 'collecting', 'serve', 'terminate'):
        monkeypatch.setattr(compose.RealParts, name, getattr(service_fakes.FakeParts, name))
    monkeypatch.setattr(compose, 'create_store', service_fakes.make_store)
    monkeypatch.delenv('SNAPFS_STORE', raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main([str(word) for word in words])
        out, err = capsysbinary.readouterr()
        return code, out.decode(errors='surrogateescape'), err.decode(errors='surrogateescape')

    return run


@pytest.fixture
def store(cli, tmp_path, monkeypatch):
    """A store with the volume `home`, known by SNAPFS_STORE."""
    path = tmp_path / 'store'
    assert cli('init', path)[0] == 0
    monkeypatch.setenv('SNAPFS_STORE', str(path))
    assert cli('volume', 'create', 'home') == (0, '', '')
    return path
