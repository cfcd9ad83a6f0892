"""What a person reads of the collector: a real store without a daemon, and the bar for what a daemon does."""

import io
import json
import re
import socket
import threading

import pytest

from snapfs.cli import collect, progress
from snapfs.service import client, wire
from snapfs.world import World
from tests.support.collecting import noise


@pytest.fixture
def cli(monkeypatch, tmp_path, capsysbinary):
    """Run a command line; returns (exit code, standard output, standard error)."""
    from snapfs.cli.main import main

    monkeypatch.delenv('SNAPFS_STORE', raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main([str(word) for word in words])
        out, err = capsysbinary.readouterr()
        return code, out.decode(errors='surrogateescape'), err.decode(errors='surrogateescape')

    return run


@pytest.fixture
def store(cli, tmp_path, monkeypatch):
    """A real store with the volume `home`: some files, of which the snapshot home@s alone holds one."""
    import trio

    from snapfs.store.durable import Disk
    from snapfs.store.store import Store
    from snapfs.volume.engine import Engine
    from tests.support.collecting import remove_file, write_file

    path = tmp_path / 'store'
    Store.create(path, Disk(), World()).close(clean=True)
    monkeypatch.setenv('SNAPFS_STORE', str(path))

    async def fill():
        engine = await Engine.open(path, Disk(), World())
        await engine.volume_create('home', 0, 0)
        for n in range(40):
            await write_file(engine, f'keep{n}', noise(100 + n))
        await write_file(engine, 'old', noise(1))
        await engine.snapshot_create('home', 's', 'ann')
        await remove_file(engine, 'old')
        await engine.close()

    trio.run(fill)
    return path


def good(result):
    code, out, err = result
    assert (code, err) == (0, '')
    return out


@pytest.mark.slow
def test_a_deletion_as_a_person_reads_it(cli, store):
    assert 'Nothing is in quarantine.' in good(cli('quarantine'))
    assert re.search(r'it alone holds +\d+\.\d KiB', good(cli('snapshot', 'show', 'home@s')))
    assert 'it alone holds' not in good(cli('snapshot', 'show', 'home@s', '--quick'))
    assert re.match(
        r'home@s: \d+\.\d KiB in \d+ chunks would come back\n', good(cli('snapshot', 'space', 'home@s'))
    )
    good(cli('snapshot', 'delete', 'home@s'))
    out = good(cli('collect', '--dry-run'))
    assert 'would come back, after 7 days in quarantine' in out
    assert re.search(r'snapshot home@s +\w+', out)
    assert re.search(r'what stays is kept by.*\nhome ', out)
    assert 'would come back, after 1 hour in quarantine\nand what 2 commits overwrote or removed\n' in out
    out = good(cli('collect'))
    assert re.fullmatch(
        r'(batch \d+: .* in \d+ chunks? in quarantine, freed at the earliest [-\d: ]+\n){2}', out
    )
    assert good(cli('collect')) == 'Nothing is due.\n'
    out = good(cli('quarantine'))
    assert 'in quarantine' in out and 'snapshot home@s' in out
    assert 'in quarantine:\nbatch' in good(cli('collect', '--dry-run'))
    assert re.search(r'quarantined +[\d.]+ KiB in 2 batches, the first can be freed at', good(cli('status')))
    batches = json.loads(good(cli('quarantine', '--json')))
    kept = next(one for one in batches if one['class'] == 'kept')
    assert f' {kept["batch"]}\n' in good(cli('snapshot', 'list', '--deleted'))
    out = good(cli('collect', 'approve', kept['digest']))
    assert re.fullmatch(rf'batch {kept["batch"]} may be freed before its grace is over, says \w+\n', out)
    assert f'batch {kept["batch"]} is due: ' in good(cli('collect', '--dry-run'))
    assert f'batch {kept["batch"]}: freed ' in good(cli('collect'))
    out = good(cli('audit', '--batch', kept['batch']))
    assert 'batch-confirmed' in out and 'snapshot home@s' in out and 'checks={' in out
    assert good(cli('audit', '--verify')).startswith('the chain is whole: lines 1 to ')
    out = good(cli('status', '--space'))
    assert re.search(r'pending +0 requests in no batch, 0 B would come back', out)
    assert re.search(r'leaked +0 B, 0 chunks', out)
    assert good(cli('collect', 'leaks')) == 'Nothing has leaked.\n'
    code, _, err = cli('snapshot', 'undelete', 'home@s')
    assert code == 2 and err.startswith("snapfs: nothing that was deleted is 'home@s'")


@pytest.mark.slow
def test_a_plan_that_waits_without_a_daemon(cli, store):
    assert good(cli('config', 'limit-share', '0%')) == '0%\n'
    good(cli('snapshot', 'delete', 'home@s'))
    assert 'it would wait for an approval:\n  L19: ' in good(cli('collect', '--dry-run'))
    out = good(cli('collect'))
    assert 'waits, with ' in out and 'only while the store is mounted' in out
    assert 'not 30%' in good(cli('config'))
    assert good(cli('config', 'limit-share')) == '0%\n'
    assert good(cli('config', 'limit-share', '--reset')) == '30%\n'
    assert 'in quarantine' in good(cli('collect'))


WRONG = (
    ['collect', 'approve'],
    ['collect', 'approve', 'xyz'],
    ['collect', 'frobnicate'],
    ['incident', 'ack', 'x'],
    ['config', 'nix'],
    ['config', '--reset'],
    ['config', 'rate', '1', '--reset'],
    ['audit', '--verify', '--batch', '1'],
    ['audit', '--last', '0'],
    ['audit', '--last', '9999'],
    ['snapshot', 'delete'],
    ['snapshot', 'space'],
    ['why', 'home:/nix'],
)


def test_why_and_incidents(cli, store):
    out = good(cli('why', 'home:/keep7'))
    assert out.startswith('chunks: 1: 1 in use\n')
    assert re.search(r'volume +home +1 +[\d.]+ KiB +/keep7\nsnapshot +home@s', out)
    assert 'nowhere in this store\nNobody needs them.\n' in good(cli('why', '0' * 64))
    code, _, err = cli('why', '/etc/passwd')
    assert (code, err) == (2, 'snapfs: /etc/passwd is not in a mount of snapfs\n')
    assert good(cli('incident', 'list')) == 'There are no incidents.\n'
    for words in (['show', '1'], ['ack', '1']):
        code, _, err = cli('incident', *words)
        assert code == 3 and err.count('\n') == 1
    for words in WRONG:
        code, out, err = cli(*words)
        assert (code, out, err.count('\n')) == (2, '', 1), words
    code, _, err = cli('audit', '--batch', '7')
    assert (code, err) == (3, 'snapfs: there is no batch 7\n')


def test_an_incident_as_a_person_reads_it(cli, store):
    from snapfs.collect.incidents import Incidents
    from snapfs.store.durable import Disk
    from snapfs.store.store import Store

    opened = Store.open(store, Disk(), World())
    Incidents(opened, list).open('a guard\x1b[31m fell', {'what.json': {'id': 'abc'}})
    opened.close(clean=True)
    out = good(cli('incident', 'list'))
    assert 'deletion' in out and 'a guard\\x1b[31m fell' in out
    assert 'stands still: incident 1: a guard' in good(cli('status'))
    assert good(cli('collect', '--dry-run')).startswith(
        'the collector stands still: incident 1: a guard\\x1b'
    )
    code, _, err = cli('collect')
    assert code == 14 and err.startswith('snapfs: the collector stands still: incident 1')
    out = good(cli('incident', 'show', '1'))
    assert '--- what.json' in out and '"id": "abc"' in out
    assert (
        good(cli('incident', 'ack', '1', '--note', 'seen'))
        == 'incident 1 is acknowledged; no other is in force\n'
    )
    assert good(cli('incident', 'list')) == 'There are no incidents.\n'
    assert 'a guard' in good(cli('incident', 'list', '--all'))
    assert 'note=seen' in good(cli('audit', '--last', '1'))


def test_several_snapshots_are_deleted_or_none(cli, store):
    good(cli('snapshot', 'create', 'home@a'))
    code, out, err = cli('snapshot', 'delete', 'home@a', 'home@nix')
    assert (code, out, err) == (3, '', 'snapfs: there is no snapshot home@nix\n')
    good(cli('hold', 'add', 'home@a', 'audit', '--why', 'tax'))
    code, _, err = cli('snapshot', 'delete', 'home@s', 'home@a')
    assert (
        code == 11 and err.startswith("snapfs: snapshot home@a is held: 'audit' of ") and err.count('\n') == 1
    )
    assert good(cli('snapshot', 'list')).count('home@') == 2
    good(cli('hold', 'release', 'home@a', 'audit'))
    out = good(cli('snapshot', 'delete', 'home@s', 'home@a'))
    assert re.fullmatch(r'(request \d+: home@[sa] is to be deleted; back with: .*\n){2}', out)
    code, _, err = cli('snapshot', 'delete', 'home@a')
    assert code == 3 and err.startswith('snapfs: snapshot home@a was deleted already, by request ')


def test_counting_words():
    assert [collect.counted(n, 'chunk') for n in (0, 1, 2)] == ['0 chunks', '1 chunk', '2 chunks']
    ns = 10**9
    assert [collect.span(n * ns) for n in (5, 60, 3600, 7200, 7 * 86_400)] == [
        '5 seconds', '1 minute', '1 hour', '2 hours', '7 days',
    ]  # fmt: skip


# --- the bar ---------------------------------------------------------------------------------------------
MOVING = {'what': 'free', 'stage': 'recount 2', 'batch': 7, 'requests': [], 'done': 30, 'total': 120}


def test_the_bar_shows_what_moves(monkeypatch):
    import rich.console

    shown = io.StringIO()
    real = rich.console.Console
    monkeypatch.setattr(rich.console, 'Console', lambda **_: real(file=shown, force_terminal=True, width=100))
    with progress.bar(True) as watch:
        watch(None)
        watch(MOVING)
        watch({**MOVING, 'batch': None, 'stage': 'what-if', 'total': 0})
        watch(MOVING)
    assert 'recount 2 (batch 7)' in shown.getvalue()
    assert '30/120' in shown.getvalue()
    with progress.bar(False) as watch:
        assert watch is None


def test_a_daemon_is_asked_over_a_second_connection_how_far_it_is(tmp_path):
    """Until it has answered; and whatever becomes of the second connection, the answer counts."""
    for answers in (3, 0):
        told, asked = [], []
        listener = socket.socket(socket.AF_UNIX)
        path = tmp_path / f'{answers}'
        path.mkdir()
        listener.bind(str(path / 'control.sock'))
        listener.listen()

        def serve(listener=listener, answers=answers, asked=asked):
            with listener:
                first = listener.accept()[0].makefile('rwb')
                assert json.loads(first.readline())['command'] == 'hello'
                first.write(wire.encode_result({'closing': False}))
                first.flush()
                assert json.loads(first.readline())['command'] == 'collect.run'
                side = listener.accept()[0].makefile('rwb')
                for n in range(answers):
                    asked.append(json.loads(side.readline())['command'])
                    side.write(wire.encode_result({'moving': {'done': n}}))
                    side.flush()
                if not answers:
                    side.close()
                first.write(wire.encode_result('the answer'))
                first.flush()
                first.close()
                side.close()

        server = threading.Thread(target=serve)
        server.start()
        result = client.call(client.Target(path), 'collect.run', {}, watch=told.append)
        server.join()
        assert result == 'the answer'
        assert asked == ['collect.progress'] * answers
        assert told[:answers] == [{'done': n} for n in range(answers)]
