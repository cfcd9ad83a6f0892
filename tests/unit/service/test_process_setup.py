"""What a process sets up once: refusals, notification, logs, and the way into the background."""

import logging
import os
import socket
import subprocess
import sys

import pytest

from snapfs import limits
from snapfs.errors import Invalid, Unavailable
from snapfs.service import background, logs, notify, process, wire


def test_python_without_asserts_is_refused():
    process.check_interpreter(0)
    with pytest.raises(Invalid, match='-O'):
        process.check_interpreter(1)
    program = 'from snapfs.service import process; process.check_interpreter()'
    done = subprocess.run([sys.executable, '-O', '-c', program], capture_output=True, text=True)
    assert done.returncode == 1 and 'PYTHONOPTIMIZE' in done.stderr


def test_the_slow_chunker_is_refused(monkeypatch):
    process.check_chunker()
    import pyfastcdc
    from pyfastcdc.py import FastCDC

    monkeypatch.setattr(pyfastcdc, 'FastCDC', FastCDC)
    with pytest.raises(Unavailable, match='too slow'):
        process.check_chunker()


def test_tuning_takes_effect():
    program = (
        'import gc, resource, sys; from snapfs import limits; from snapfs.service import process;'
        'process.tune(); process.freeze_garbage();'
        'assert abs(sys.getswitchinterval() - limits.SWITCH_INTERVAL_SECONDS) < 1e-9;'
        'assert gc.get_freeze_count() > 1000; assert gc.get_threshold() == limits.GARBAGE_THRESHOLDS;'
        'soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE); assert soft == hard'
    )
    subprocess.run([sys.executable, '-c', program], check=True)


@pytest.mark.parametrize('abstract', [False, True])
def test_the_supervisor_is_told(tmp_path, monkeypatch, abstract):
    name = f'\0snapfs-test-{os.getpid()}' if abstract else str(tmp_path / 'notify')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        receiver.settimeout(5)
        monkeypatch.setenv('NOTIFY_SOCKET', name.replace('\0', '@'))
        assert notify.notify('READY=1', 'MAINPID=5')
        assert receiver.recv(100) == b'READY=1\nMAINPID=5'


def test_no_supervisor_is_no_trouble(monkeypatch, tmp_path):
    monkeypatch.delenv('NOTIFY_SOCKET', raising=False)
    assert not notify.notify('READY=1')
    monkeypatch.setenv('NOTIFY_SOCKET', str(tmp_path / 'none'))
    assert not notify.notify('READY=1')
    monkeypatch.setenv('NOTIFY_SOCKET', 'vsock:2:1')
    assert not notify.notify('READY=1')


@pytest.fixture
def quiet_logging():
    import faulthandler

    root = logging.getLogger()
    before, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    yield
    for handler in list(root.handlers):
        root.removeHandler(handler)
        if handler not in before:
            handler.close()
    for handler in before:
        root.addHandler(handler)
    root.setLevel(level)
    logging.raiseExceptions = raising
    logging.captureWarnings(False)
    faulthandler.disable()


def test_the_log_is_bounded(tmp_path, quiet_logging, monkeypatch):
    monkeypatch.setattr(limits, 'LOG_BYTES_MAX', 2000)
    path = tmp_path / 'daemon.log'
    logs.log_to_file(path)
    for number in range(200):
        logging.getLogger('test').info('line %d', number)
    names = sorted(one.name for one in tmp_path.iterdir())
    assert names == ['daemon.log', 'daemon.log.1']
    assert sum(one.stat().st_size for one in tmp_path.iterdir()) <= 4000
    assert 'line 199' in path.read_text()


def test_a_name_that_is_no_utf8_is_logged_all_the_same(tmp_path, quiet_logging):
    logs.log_to_file(tmp_path / 'log')
    logging.getLogger('snapfs').error('damaged: %s', os.fsdecode(b'caf\xe9'))
    assert 'damaged: caf\\udce9' in (tmp_path / 'log').read_text()


def test_a_log_that_cannot_be_written_is_an_error(tmp_path, quiet_logging):
    with pytest.raises(Unavailable, match='cannot be written'):
        logs.log_to_file(tmp_path / 'none' / 'log')


BACKGROUND = """
import os, sys
from snapfs.errors import Unavailable
from snapfs.service import background, wire
held = open('/etc/passwd')
def target(report):
    {target}
try:
    print(background.launch(target, None))
except Unavailable as error:
    print('UNAVAILABLE', error)
"""


def launch(target):
    program = BACKGROUND.format(target=target)
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done


def test_a_daemon_outlives_its_command_and_holds_nothing_of_it(tmp_path):
    # subprocess.run returns only when every copy of its pipes is closed: the daemon has let go of them.
    gate = tmp_path / 'gate'
    os.mkfifo(gate)
    done = launch(
        f'report(wire.encode_result([os.getpid(), os.getppid(), os.getsid(0), os.getcwd()]));'
        f'open({str(gate)!r}).read()'
    )
    pid, _parent, session, directory = eval(done.stdout)
    assert directory == '/'
    assert session != pid != os.getpid()
    assert os.path.exists(f'/proc/{pid}')
    assert sorted(os.listdir(f'/proc/{pid}/fd'))[:3] == ['0', '1', '2']
    assert {os.readlink(f'/proc/{pid}/fd/{fd}') for fd in (0, 1, 2)} == {'/dev/null'}
    assert '/etc/passwd' not in {os.readlink(entry.path) for entry in os.scandir(f'/proc/{pid}/fd')}
    watch = os.pidfd_open(pid)
    gate.write_text('go')
    import select

    assert select.select([watch], [], [], 20)[0]
    os.close(watch)


def test_what_goes_wrong_is_reported_in_one_line():
    assert launch("raise Unavailable('no luck')").stdout == 'UNAVAILABLE no luck\n'
    assert 'ZeroDivisionError' in launch('1 / 0').stdout
    assert 'ended before anything was mounted' in launch('os._exit(3)').stdout


def test_a_foreground_daemon_reports_the_same(caplog):
    said = []

    def target(report):
        raise Unavailable('no luck')

    assert background.guarded(target, said.append) == Unavailable.exit_code
    with pytest.raises(Unavailable, match='no luck'):
        wire.decode_answer(said[0])
    assert background.guarded(lambda report: None, said.append) == 0


@pytest.mark.parametrize('grouped', [False, True])
def test_an_interrupted_start_is_one_line_and_no_traceback(caplog, grouped):
    """Ctrl-C before trio watches signals."""

    def target(report):
        error = KeyboardInterrupt()
        raise BaseExceptionGroup('nursery', [BaseExceptionGroup('inner', [error])]) if grouped else error

    said = []
    assert background.guarded(target, said.append) == 130
    with pytest.raises(Unavailable, match='interrupted'):
        wire.decode_answer(said[0])
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [('ERROR', None)]


def test_an_interrupt_beside_a_bug_does_not_hide_it(caplog):
    def target(report):
        raise BaseExceptionGroup('nursery', [KeyboardInterrupt(), ZeroDivisionError()])

    assert background.guarded(target, [].append) == 1
    assert caplog.records[0].exc_info
