"""What pairs of states have shown (tests/states): each by its own name."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from snapfs.cli.main import main
from snapfs.collect.meta_packs import compare_packs
from snapfs.errors import Corrupt, Refused, Unavailable
from tests.mutants.setting import small
from tests.states.evidence import present
from tests.states.making import STATES, _victims, flip, full
from tools.breakit import break_it


@pytest.fixture
def store(cut_store: Path) -> Path:
    return cut_store


@pytest.fixture
def run(store: Path, capsysbinary: Any) -> Any:
    """Run a command on the store; return its exit code, what it printed and what it complained."""

    def command(*words: str) -> tuple[int, str, str]:
        with small():
            code = main([*words, '--store', str(store)])
        out, error = capsysbinary.readouterr()
        return code, out.decode(), error.decode()

    return command


@pytest.mark.parametrize('damage', ['meta-pack-gone', 'leaf-flip', 'top-flip'])
def test_an_export_takes_nodes_from_their_second_copies_as_every_reader_does(store, run, damage):
    wanted = run('export', 'home@monday')
    assert wanted[0] == 0
    break_it(store, damage, seed=1)
    assert run('export', 'home@monday') == wanted
    code, out, _ = run('verify', 'home@monday')
    assert code == 0, out


def test_without_a_second_copy_it_says_what_the_pack_has(store, run):
    shutil.rmtree(store / 'mirror')
    break_it(store, 'leaf-flip', seed=1)
    code, _, error = run('export', 'home@monday')
    assert code == 13 and 'at offset' in error and 'snapfs recover home@monday' in error


def test_a_page_of_the_index_leads_to_a_new_catalog_and_not_to_a_recovery(store, run):
    STATES['page of the index'].make(store)
    for words in (('export', 'home@monday'), ('verify', 'home@monday')):
        code, _, error = run(*words)
        assert code in (4, 13) and f'snapfs rebuild {store}' in error, error


def test_a_full_disk_is_12_and_says_what_to_do(store, run):
    (store / 'reserve').unlink()  # it has been given up already
    with pytest.MonkeyPatch.context() as patch:
        full(store, patch)
        code, _, error = run('snapshot', 'delete', 'home@tuesday')
    assert code == Unavailable.exit_code and 'no space left' in error and 'Make room' in error
    assert Refused(errno.ENOSPC).exit_code == 12 and Refused(errno.ENOENT).exit_code == 3


def test_a_collector_that_waits_says_where_to_look(store, run):
    STATES['volume top gone'].make(store)
    code, _, error = run('collect')
    assert code == 11 and 'snapfs damage' in error, error


@pytest.mark.parametrize('bit', [1, 2])
def test_after_a_power_cut_the_last_sound_copy_of_a_node_is_not_written_over(store, run, bit):
    """An open pack's copy was made anew after each unclean stop, from bytes that nobody had verified."""
    top = _victims(store).top
    wanted = (store / 'mirror' / top[0].relative_to('packs/meta')).read_bytes()
    flip(store, top, bit)
    rotten = set(present(store))
    for _ in range(2):
        assert run('snapshot', 'list')[0] == 0
    after = (store / 'mirror' / top[0].relative_to('packs/meta')).read_bytes()
    assert after[: len(wanted)] == wanted
    assert rotten <= set(present(store))


def test_and_what_it_tore_of_a_copy_is_copied_again(store, run):
    top = _victims(store).top
    path, copy = store / top[0], store / 'mirror' / top[0].relative_to('packs/meta')
    data = bytearray(copy.read_bytes())
    data[top[1] :] = bytes(len(data) - top[1])
    copy.write_bytes(data)
    assert run('snapshot', 'list')[0] == 0
    size = copy.stat().st_size
    assert size > top[1] and copy.read_bytes() == path.read_bytes()[:size]


@pytest.mark.parametrize('where', ['packs/data/.DS_Store', 'packs/meta/00/notes.txt'])
def test_what_does_not_belong_among_the_packs_is_named_with_what_to_do(store, where):
    """It ends a recount, as it must; `.DS_Store is not a directory` helped nobody."""
    (store / where).parent.mkdir(exist_ok=True)
    (store / where).write_text('mine')
    with pytest.raises(Corrupt) as caught:
        compare_packs(store, [])
    assert str(store / where) in caught.value.line() and 'out of the store' in caught.value.line()
