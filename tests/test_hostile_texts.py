"Texts from strangers: servers that send bombs, links in circles, names that wait for ever, secrets in URLs"
import json
import os
import shutil
import socket
import stat
import threading
import time
import tracemalloc
import warnings
import zlib

import pytest
from test_corpus import BODY, ID, drive, send    # noqa: F401 (a fixture)

from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.text.corpus import corpus_files, load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.text.read import CorpusError, TextWarning, read_text

# seconds for what takes less than one, or would never end
LIMIT = 60


@pytest.fixture(autouse=True)
def at_once(monkeypatch): monkeypatch.setattr(time, 'sleep', lambda s: None)    # between tries


def ends(f):
    "Call `f`, which may hang, in a thread; what it gave or raised"
    got = []
    def call():
        try: got.append(f())
        except Exception as e: got.append(e)
    t = threading.Thread(target=call, daemon=True)
    t.start()
    t.join(LIMIT)
    assert got, 'it hangs'
    return got[0]


def load(url, **kwargs): return load_corpus(url, progress=False, **kwargs)


def said(f):
    "The warnings of a call as one text"
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        f()
    return '\n'.join(str(o.message) for o in w if o.category is TextWarning)


# What a server sends

@pytest.fixture(scope='module')
def bomb():
    "300 MB of zeros, packed"
    z = zlib.compressobj(9, wbits=31)
    return b''.join([*(z.compress(bytes(10**6)) for _ in range(300)), z.flush()])


@pytest.fixture
def peak():
    "The most memory that Python has taken since, in bytes"
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_gzip_bomb(server, home, bomb, peak):
    server.answers['/a.txt'] = lambda h: send(h, 200, bomb, Content_Encoding='gzip')
    with pytest.raises(CorpusError, match='unpack to more than 67 MB.*browser'): load(f'{server.url}/a.txt')
    assert peak() < 2e7 and list(home.iterdir()) == []


def test_redirect_without_an_end(server, home):
    def endless(h):
        h.send_response(302)
        h.send_header('Location', '/b.txt')
        h.end_headers()
        try:
            while not done.is_set(): h.wfile.write(bytes(1000))
        except OSError: pass                                       # the reader has gone, as it should
    done = threading.Event()
    server.answers['/a.txt'],server.answers['/b.txt'] = endless,BODY
    try: assert ends(lambda: load(f'{server.url}/a.txt')) == BODY.decode()
    finally: done.set()


@pytest.mark.parametrize('url', ['http://127.0.0.1:9/\ud800', 'http://жжж.invalid/ж', 'http://é..com/',
                                 'http://\x1b]0;x\x07/', 'http://[', 'http://[::1', 'http://a b', 'http://' + 'a'*300,
                                 'http://127.0.0.1:99999/', 'http://127.0.0.1:x/', 'http://ﬁ⑂/', 'http://',
                                 'http://127.0.0.1:9/' + 'é'*5000])
def test_odd_urls(home, url):
    with pytest.raises(CorpusError, match='browser') as e: load(url)
    assert '\n' not in str(e.value) and '\x1b' not in str(e.value) and 'codec' not in str(e.value)


# Secrets in URLs

def with_secrets(server, path): return server.url.replace('//', '//eve:pa55word@') + path + '?X-Signature=5ecre7&id=7'


def test_what_is_kept_has_no_secrets(server, home):
    "The whole URL, its letters of all kinds, finds the text again; another signature does not"
    server.answers['/%D0%B6.txt'] = BODY
    old = os.umask(0)
    try: assert load(with_secrets(server, '/ж.txt')) == BODY.decode()
    finally: os.umask(old)
    whole = b''.join(o.name.encode() + o.read_bytes() for o in home.iterdir())
    assert not any(o in whole for o in (b'pa55', b'5ecre7', b'eve'))
    assert json.loads(next(home.glob('link-*')).read_text())['url'] == f'{server.url}/ж.txt?id=7'
    assert {stat.S_IMODE(o.stat().st_mode) for o in home.iterdir()} == {0o600}
    assert load(with_secrets(server, '/ж.txt')) == BODY.decode() and len(server.asked) == 1
    assert load(with_secrets(server, '/ж.txt') + '1') == BODY.decode() and len(server.asked) == 2


@pytest.mark.parametrize('answer', [(404, b''), b'', b'<html>', b'\xef\xbb\xbf', 'http://eve:pa55word@[/',
                                    'file:///etc/passwd?X=5ecre7', 'short'])
def test_messages_without_secrets(server, home, capsys, answer):
    def odd(h): return send(h, 302, b'', Location=answer) if ':' in answer else send(h, 200, b'x', Content_Length=99)
    server.answers['/a.txt'] = odd if isinstance(answer, str) else answer
    with pytest.raises(CorpusError) as e: load_corpus(with_secrets(server, '/a.txt'), encoding='utf-8-sig')
    shown = str(e.value) + capsys.readouterr().err
    assert 'pa55' not in shown and '5ecre7' not in shown and '/a.txt' in shown


@pytest.mark.parametrize('url', ['s3://eve:pa55word@bucket/a.txt', 'ftp://eve:pa55word@x.org/a?sig=5ecre7',
                                 'http://eve:pa55word@[/a?sig=5ecre7', 's3://eve:pa55/word@bucket/a.txt',
                                 'ftp://eve:pa55#word@x.org/a#b?id=5ecre7'])
def test_refused_links_without_secrets(home, url):
    with pytest.raises(CorpusError) as e: load_corpus(url)
    assert 'pa55' not in str(e.value) and '5ecre7' not in str(e.value)


# Folders and globs

@pytest.fixture
def loops(tmp_path):
    "Two files, two links to a parent, a link to a file and a second name of one"
    d = tmp_path/'d'
    (d/'b').mkdir(parents=True)
    (d/'a.txt').write_text('a\n'*50)
    (d/'b/b.txt').write_text('b\n'*50)
    for o in 'up', 'on': (d/'b'/o).symlink_to(d)
    (d/'Z.txt').symlink_to(d/'a.txt')
    os.link(d/'b/b.txt', d/'c.txt')
    return d


@pytest.mark.parametrize('what', ['', '/**/*.txt', '/**', '/**/**/*', '/b/up/**', '/**/'*150 + '*.txt'])
def test_each_real_file_once(loops, what):
    "With two links to the parent the glob module would give 2**40 paths"
    files = ends(lambda: corpus_files(f'{loops}{what}'))
    assert [o.read_text()[0] for o in files] == ['a', 'b'] and files == sorted(files), files
    assert len(ends(lambda: load_corpus(f'{loops}{what}'))) == 200


@pytest.fixture
def odd(tmp_path):
    "A pipe, a socket and links to devices, beside a text"
    (tmp_path/'a.txt').write_text('text\n'*20)
    os.mkfifo(tmp_path/'pipe')
    for o in 'null', 'zero': (tmp_path/o).symlink_to(f'/dev/{o}')
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.path.relpath(tmp_path/'socket'))
        yield tmp_path


@pytest.mark.parametrize('name, kind', [('pipe', 'pipe'), ('socket', 'socket'), ('null', 'device'), ('zero', 'device')])
def test_what_is_not_a_file_is_refused(odd, name, kind):
    "At once, where it would be waited for or read without end"
    for f in (load_corpus, read_text, corpus_files, lambda o: CharDataLoaders.from_files([o]),
              lambda o: load_corpus(f'{o}*'), lambda o: load_corpus(str(o))):
        e = ends(lambda: f(odd/name))
        assert isinstance(e, CorpusError) and f'{name} is a {kind}, not a file' in str(e), e


def test_what_is_not_a_file_in_a_folder_is_passed_over(odd):
    (odd/'gone').symlink_to(odd/'nowhere')
    (odd/'there').symlink_to('/tmp')
    assert ends(lambda: load_corpus(odd)) == 'text\n'*20
    notes = said(lambda: load_corpus(odd))
    assert all(o in notes for o in (f'{odd}/gone (a link', f'{odd}/null (a device)', f'{odd}/pipe (a pipe)', '3 more')), notes


# Runs and names

def test_run_within_a_corpus(learn, tmp_path):
    "Training on `.` would read the records of the run that it writes"
    run,top = tmp_path/'top/runs/r',tmp_path/'top'
    learn.fit(1, cbs=Checkpoint(run))
    (top/'a.txt').write_text('text\n'*20)
    shutil.rmtree(top/'models', ignore_errors=True)
    assert load_corpus(top) == 'text\n'*20
    assert f'{run} (a run)' in said(lambda: load_corpus(top))
    for o in run, f'{run}/':
        with pytest.raises(CorpusError, match='is a run, not a text.*charrnn train --run'): load_corpus(o)


@pytest.mark.parametrize('what', [
    'count:' + '1'*5000, 'count:' + '9'*20, 'count:63', 'count:aa', 'count:²', 'a\ud800', '\ud800'*30, 'a\nb', '\x1b[31m', '*'*300,
    '**/'*300, '['*1000, '**x/***', 'ftp://x.org/y', 'nowhere.txt', 'no/*.txt', '', 'a'*300, '~nouser/x'])
def test_what_cannot_be_had(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    e = ends(lambda: load_corpus(what))
    assert isinstance(e, CorpusError) and '\n' not in str(e) and '\x1b' not in str(e) and len(str(e)) < 500, e
