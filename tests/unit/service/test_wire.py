"""Requests and answers: what goes in comes out, and hostile lines get one clear error."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs import errors, limits
from snapfs.service import wire


def test_requests_come_back():
    request = wire.Request('snapshot.create', {'snapshot': 'a@\udcff', 'n': 1, 'x': None}, '0:5')
    assert wire.decode_request(wire.encode_request(request)) == request


def test_answers_come_back():
    assert wire.decode_answer(wire.encode_result({'a': [1, None, 'x\udce9']})) == {'a': [1, None, 'x\udce9']}


@pytest.mark.parametrize('kind', [*wire.KINDS.values()])
def test_errors_come_back(kind):
    with pytest.raises(kind) as caught:
        wire.decode_answer(wire.encode_error(kind('what', advice='do this')))
    assert type(caught.value) is kind
    assert caught.value.line() == 'what. do this'


def test_a_refusal_keeps_its_errno():
    with pytest.raises(errors.Refused) as caught:
        wire.decode_answer(wire.encode_error(errors.Refused(errno.ENOSPC)))
    assert caught.value.errno == errno.ENOSPC


HOSTILE = (
    *(b'', b'\n', b'{', b'[]', b'7', b'null', b'\xff\xfe', b'[' * 60_000, b'{"a":' * 5000),
    *(b'{"command": 1}', b'{"command": "a", "arguments": []}', b'{"command": "a", "device": 5}'),
)


@pytest.mark.parametrize('line', HOSTILE)
def test_hostile_requests(line):
    with pytest.raises(errors.Invalid):
        wire.decode_request(line)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_invalid(data):
    try:
        wire.decode_request(data)
    except errors.Invalid:
        pass


@pytest.mark.parametrize('line', [b'', b'x', b'{}', b'{"error": 5}', b'{"error": {"kind": "Refused"}}'])
def test_broken_answers_are_unavailable(line):
    with pytest.raises(errors.Unavailable):
        wire.decode_answer(line)


def test_too_long_a_request_is_not_sent():
    with pytest.raises(errors.Invalid, match='too long'):
        wire.encode_request(wire.Request('x', {'a': 'b' * limits.CONTROL_REQUEST_BYTES_MAX}))
