"""What follows -o: splitting, meaning, contradictions, and what libfuse is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.errors import Invalid
from snapfs.service.options import FLAGS, MountOptions, escape, fuse_arguments, parse_options, split_options


def test_defaults_are_those_of_other_fuse_mounts():
    options = parse_options([])
    assert options == MountOptions()
    assert options.nosuid and options.nodev and not options.ro
    arguments = fuse_arguments(options, 'token')
    assert arguments == {'default_permissions', 'subtype=snapfs', 'fsname=token', 'rw'}


def test_every_flag_and_its_opposite():
    for name, (field, setting) in FLAGS.items():
        options = parse_options([name])
        assert getattr(options, field) is setting, name
        assert options.given == {field}


def test_the_later_one_wins():
    assert not parse_options(['ro,rw']).ro
    assert parse_options(['rw', 'ro']).ro
    assert not parse_options(['nosuid,suid']).nosuid


def test_suid_and_dev_are_said_only_when_wanted():
    arguments = fuse_arguments(parse_options(['suid,dev,noexec,sync,noatime,allow_other,ro']), 's')
    assert {'suid', 'dev', 'noexec', 'sync', 'noatime', 'allow_other', 'ro'} <= arguments
    assert 'rw' not in arguments and 'nosuid' not in arguments


def test_what_others_need_is_silently_taken():
    text = '_netdev,nofail,noauto,user,user=ada,x-systemd.automount,x-gvfs-show,X-mount.mkdir,user_id=0'
    options = parse_options([text + ',comment=a,default_permissions,lazytime'])
    assert options == MountOptions(nofail=True, given=frozenset({'nofail'}))


def test_values():
    options = parse_options(['source=/srv/a\\,b,volume="x,y",uid=5,gid=6,log=/l,fsname=f'])
    assert (options.source, options.volume, options.uid, options.gid) == ('/srv/a,b', 'x,y', 5, 6)
    assert (options.log, options.fsname) == ('/l', 'f')


@pytest.mark.parametrize(
    ('text', 'word'),
    [
        ('frobnicate', "'frobnicate'"),
        ('ro=1', 'takes no value'),
        ('source', 'needs a value'),
        ('source=', 'no usable value'),
        ('uid=ada', 'wants a number'),
        ('uid=-1', 'wants a number'),
        ('uid=4294967295', 'wants a number'),
        ('volume=a\nb', 'no usable value'),
        ('volume="a', 'quotation'),
        ('ro,\\', 'backslash'),
        ('max_read', 'unknown'),
    ],
)
def test_mistakes_are_named(text, word):
    with pytest.raises(Invalid, match=word):
        parse_options([text])


def test_sloppy_passes_over_the_unknown_only():
    assert parse_options(['frobnicate,ro'], sloppy=True).ro
    with pytest.raises(Invalid):
        parse_options(['uid=ada,frobnicate'], sloppy=True)


@given(st.lists(st.text(st.characters(exclude_characters='"\0\n', exclude_categories=['Cs']), min_size=1)))
def test_what_is_escaped_comes_back(words):
    assert split_options(','.join(escape(word) for word in words)) == words
