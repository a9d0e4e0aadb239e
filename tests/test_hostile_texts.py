"Texts from strangers: servers that send bombs, links in circles, names that wait for ever, secrets in URLs"
import gzip
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zlib

import pytest
from test_corpus import BODY, FILE, ID, drive, send    # noqa: F401 (a fixture)

from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.text.corpus import corpus_files, is_path, load_corpus, would_fetch
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.text.download import download
from charrnn_fa.text.read import CorpusError, TextWarning, read_text

# seconds for what takes less than one, or would never end
LIMIT = 60


@pytest.fixture
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


def said(f):
    "The warnings of a call as one text"
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        f()
    return '\n'.join(str(o.message) for o in w if o.category is TextWarning)


# What a server sends

@pytest.mark.parametrize('head', ['<!---->', '<?xml ?>', '<?xml ?><!-- -->', '<!-- -', '<!--', '<!-- > -->\n', '<?xml '])
def test_many_comments(tmp_path, head):
    "In a process of its own, as a regular expression cannot be interrupted"
    (tmp_path/'a').write_text(head*500)
    code = ("from pathlib import Path\nfrom charrnn_fa.text.download import _check_text\n"
            f"_check_text(Path({str(tmp_path/'a')!r}), 'http://x.org/a.txt')\nprint('text')")
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=LIMIT)
    assert r.stdout == 'text\n', r.stderr


def bomb(n=3*10**8):
    "`n` zeros, packed"
    z = zlib.compressobj(9, wbits=31)
    return b''.join([*(z.compress(bytes(10**6)) for _ in range(n//10**6)), z.flush()])


@pytest.fixture(scope='module')
def packed(): return bomb()


@pytest.fixture
def peak():
    "The most memory that Python has taken since, in bytes"
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_gzip_bomb(server, home, at_once, packed, peak):
    server.answers['/a.txt'] = lambda h: send(h, 200, packed, Content_Encoding='gzip')
    with pytest.raises(CorpusError, match='unpack to more than 67 MB.*browser'):
        load_corpus(f'{server.url}/a.txt', progress=False)
    assert peak() < 2e7
    assert list(home.iterdir()) == []


def test_bomb_beside_a_redirect(server, home, packed, peak):
    "Its body is for nobody, and must not be unpacked to be passed over"
    server.answers['/a.txt'] = lambda h: send(h, 302, packed, Content_Encoding='gzip', Location='/b.txt')
    server.answers['/b.txt'] = BODY
    assert load_corpus(f'{server.url}/a.txt', progress=False) == BODY.decode()
    assert peak() < 2e7


def test_redirect_without_an_end(server, home):
    def endless(h):
        h.send_response(302)
        h.send_header('Location', '/b.txt')
        h.end_headers()
        try:
            while not done.is_set(): h.wfile.write(bytes(1000))
        except OSError: closed.append(h)                           # the reader has gone, as it should
    done,closed = threading.Event(),[]
    server.answers['/a.txt'],server.answers['/b.txt'] = endless,BODY
    try: assert ends(lambda: load_corpus(f'{server.url}/a.txt', progress=False)) == BODY.decode()
    finally: done.set()


@pytest.mark.parametrize('encoding, body', [('deflate', zlib.compress(BODY)),
                                            ('br', b'x'*99), ('gzip, gzip', gzip.compress(gzip.compress(BODY)))],
                         ids=['deflate', 'br', 'gzip twice'])
def test_encodings_that_nobody_asked_for(server, home, at_once, encoding, body):
    server.answers['/a.txt'] = lambda h: send(h, 200, body, Content_Encoding=encoding)
    with pytest.raises(CorpusError, match=f'packed as {encoding}.*browser'):
        load_corpus(f'{server.url}/a.txt', progress=False)


@pytest.mark.parametrize('length', ['abc', '-5', '9'*5000, '１２'.encode().decode('latin-1')])
def test_lengths_that_are_none(server, home, at_once, length):
    "The text arrives, or one sentence does"
    server.answers['/a.txt'] = lambda h: send(h, 200, BODY, Content_Length=length)
    try: assert ends(lambda: load_corpus(f'{server.url}/a.txt', progress=False)) == BODY.decode()
    except AssertionError: raise
    except CorpusError as e: assert 'int()' not in str(e)


@pytest.mark.parametrize('url', ['http://127.0.0.1:9/\ud800', 'http://жжж.invalid/ж', 'http://é..com/',
                                 'http://\x1b]0;x\x07/', 'http://[', 'http://[::1', 'http://a b', 'http://' + 'a'*300,
                                 'http://127.0.0.1:99999/', 'http://127.0.0.1:x/', 'http://ﬁ⑂/', 'http://',
                                 'http://127.0.0.1:9/' + 'é'*5000])
def test_odd_urls(home, at_once, url):
    with pytest.raises(CorpusError, match='browser') as e: load_corpus(url, progress=False)
    assert '\n' not in str(e.value) and '\x1b' not in str(e.value) and 'codec' not in str(e.value)


def test_url_with_letters_of_all_kinds(server, home):
    server.answers['/%D0%B6.txt'] = BODY
    assert load_corpus(f'{server.url}/ж.txt', progress=False) == BODY.decode()
    assert load_corpus(f'{server.url}/ж.txt', progress=False) == BODY.decode() and len(server.asked) == 1


# Secrets in URLs

def with_secrets(server, path): return server.url.replace('//', '//eve:pa55word@') + path + '?X-Signature=5ecre7&id=7'


def all_bytes(folder): return b''.join(o.name.encode() + o.read_bytes() for o in folder.iterdir())


def test_index_without_secrets(server, home):
    "The whole URL finds the text again, another signature does not"
    server.answers['/a.txt'] = BODY
    old = os.umask(0)
    try: assert load_corpus(with_secrets(server, '/a.txt'), progress=False) == BODY.decode()
    finally: os.umask(old)
    assert b'pa55' not in all_bytes(home) and b'5ecre7' not in all_bytes(home) and b'eve' not in all_bytes(home)
    note = json.loads(next(home.glob('link-*')).read_text())
    assert note['url'] == f'{server.url}/a.txt?id=7'
    assert {stat.S_IMODE(o.stat().st_mode) for o in home.iterdir()} == {0o600}
    assert load_corpus(with_secrets(server, '/a.txt'), progress=False) == BODY.decode() and len(server.asked) == 1
    assert load_corpus(with_secrets(server, '/a.txt') + '1', progress=False) == BODY.decode() and len(server.asked) == 2


@pytest.mark.parametrize('answer', [(404, b''), b'', b'<html>', 'http://eve:pa55word@[/',
                                    'file:///etc/passwd?X=5ecre7', 'short'])
def test_messages_without_secrets(server, home, at_once, capsys, answer):
    def odd(h): return send(h, 302, b'', Location=answer) if ':' in answer else send(h, 200, b'x', Content_Length=99)
    server.answers['/a.txt'] = odd if isinstance(answer, str) else answer
    with pytest.raises(CorpusError) as e: load_corpus(with_secrets(server, '/a.txt'))
    shown = str(e.value) + capsys.readouterr().err
    assert 'pa55' not in shown and '5ecre7' not in shown and '/a.txt' in shown


@pytest.mark.parametrize('url', ['s3://eve:pa55word@bucket/a.txt', 'ftp://eve:pa55word@x.org/a?sig=5ecre7',
                                 'http://eve:pa55word@[/a?sig=5ecre7', 's3://eve:pa55/word@bucket/a.txt',
                                 'ftp://eve:pa55#word@x.org/a#b?id=5ecre7'])
def test_refused_links_without_secrets(home, at_once, url):
    with pytest.raises(CorpusError) as e: load_corpus(url)
    assert 'pa55' not in str(e.value) and '5ecre7' not in str(e.value)


def test_empty_text_of_a_url_without_secrets(server, home, at_once):
    server.answers['/a.txt'] = b'\xef\xbb\xbf'
    with pytest.raises(CorpusError) as e:
        load_corpus(with_secrets(server, '/a.txt'), progress=False, encoding='utf-8-sig')
    assert 'pa55' not in str(e.value)


# What would be asked of the network

@pytest.mark.parametrize('what', [ID, 'abcdefghijklmnopqrstuvwxy', 'a'*80])
def test_a_mistyped_name_is_asked_of_nobody(drive, home, what):    # noqa: F811
    with pytest.raises(CorpusError, match=f'drive:{what}'): load_corpus(what, progress=False)
    assert drive.asked == []


def test_a_drive_id_with_its_prefix(drive, home):                  # noqa: F811
    drive.answers['/uc'] = lambda h: send(h, 200, BODY, **FILE)
    assert load_corpus(f'drive:{ID}', progress=False) == BODY.decode()
    assert drive.asked == [f'/uc?id={ID}']


def test_would_fetch(server, home, tmp_path):
    "Nothing is asked, and what is kept needs no network"
    server.answers['/a.txt'] = BODY
    url = with_secrets(server, '/a.txt')
    assert would_fetch(url) == f'{server.url}/a.txt?id=7'
    assert would_fetch(f'drive:{ID}') == f'drive:{ID}' and would_fetch('shakespeare').startswith('https://')
    assert [would_fetch(o) for o in ('pydocs', 'count:5', '0121', 'no.txt', 'x/*.txt', tmp_path, tmp_path/'http://x')] == ['']*7
    assert server.asked == []
    load_corpus(url, progress=False)
    assert would_fetch(url) == ''


def test_is_path(tmp_path):
    "What lies on this disk and may have changed, rather than a name or a link"
    assert all(map(is_path, ('a.txt', './count', 'x/*.txt', tmp_path, 'shakespear', ID)))
    assert not any(map(is_path, ('pydocs', 'count:5', '0121', 'shakespeare', 'http://x.org/a', f'drive:{ID}')))


# Folders and globs

@pytest.fixture
def loops(tmp_path):
    "Two files, two links to a parent, a link to a file and a second name of one"
    d = tmp_path/'d'
    (d/'b').mkdir(parents=True)
    (d/'a.txt').write_text('a\n'*50)
    (d/'b/b.txt').write_text('b\n'*50)
    (d/'b/up').symlink_to(d)
    (d/'b/on').symlink_to(d)
    (d/'Z.txt').symlink_to(d/'a.txt')
    os.link(d/'b/b.txt', d/'c.txt')
    return d


@pytest.mark.parametrize('what', ['', '/**/*.txt', '/**', '/**/**/*', '/b/up/**'])
def test_each_real_file_once(loops, what):
    "With two links to the parent a glob of Python's would give 2**40 paths"
    files = ends(lambda: corpus_files(f'{loops}{what}'))
    assert [o.read_text()[0] for o in files] == ['a', 'b'], files
    assert files == sorted(files)
    assert len(ends(lambda: load_corpus(f'{loops}{what}'))) == 200


def test_linked_folders_of_a_glob(tmp_path):
    "A link leads to what is not elsewhere under the folder"
    for o in 'd', 'other/deep': (tmp_path/o).mkdir(parents=True)
    (tmp_path/'other/deep/x.txt').write_text('x')
    (tmp_path/'d/link').symlink_to(tmp_path/'other')
    assert corpus_files(f'{tmp_path}/d/**/*.txt') == [tmp_path/'d/link/deep/x.txt']
    assert corpus_files(f'{tmp_path}/d/l*/deep/*.txt') == [tmp_path/'d/link/deep/x.txt']


def test_globs_are_pythons(tmp_path, monkeypatch):
    "Where there are no links"
    import glob
    for o in 'a/b/c', 'a/.h', 'e[1]/b': (tmp_path/o).mkdir(parents=True)
    for o in 'a/1.txt', 'a/b/2.txt', 'a/b/c/3.txt', 'a/.h/4.txt', 'a/.5.txt', 'e[1]/b/6.txt', '7.txt', '**x':
        (tmp_path/o).write_text(o)
    monkeypatch.chdir(tmp_path)
    for o in ('**/*.txt', '**', 'a/**/*.txt', '*/b/*.txt', '**/b/**/*.txt', '**/b/*', 'a/**', '**/.5*', 'e[[]1]/**/*',
              '[ae]/**/?.txt', './**/*.txt', '**x', f'{tmp_path}/**/c/*'):
        expected = sorted(p for p in glob.glob(o, recursive=True) if os.path.isfile(p))
        if expected: assert [str(p) for p in corpus_files(o)] == [os.path.normpath(p) for p in expected], o
        else:
            with pytest.raises(CorpusError): corpus_files(o)


@pytest.fixture
def odd(tmp_path):
    "A pipe, a socket and links to devices, beside a text"
    (tmp_path/'a.txt').write_text('text\n'*20)
    os.mkfifo(tmp_path/'pipe')
    (tmp_path/'null').symlink_to('/dev/null')
    (tmp_path/'zero').symlink_to('/dev/zero')
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.path.relpath(tmp_path/'socket'))
        yield tmp_path


@pytest.mark.parametrize('name, kind', [('pipe', 'pipe'), ('socket', 'socket'), ('null', 'device'), ('zero', 'device')])
def test_what_is_no_file_is_refused(odd, name, kind):
    "At once, where it would be waited for or read without end"
    for f in (load_corpus, read_text, corpus_files, lambda o: CharDataLoaders.from_files([o]),
              lambda o: load_corpus(f'{o}*'), lambda o: load_corpus(str(o))):
        e = ends(lambda: f(odd/name))
        assert (isinstance(e, CorpusError)
                and f'{name} is a {kind}, not a file; put its text into a file and give that.' in str(e)), e


def test_what_is_no_file_in_a_folder(odd):
    (odd/'gone').symlink_to(odd/'nowhere')
    (odd/'there').symlink_to('/tmp')
    assert ends(lambda: load_corpus(odd)) == 'text\n'*20
    notes = said(lambda: load_corpus(odd))
    assert notes == f'Passed over in {odd}: {odd}/gone (a link to nothing), {odd}/null (a device), {odd}/pipe (a pipe) and 3 more.'


# Pipes that a process is given

def shell(line, **kwargs):
    return subprocess.run(['bash', '-c', line], capture_output=True, text=True, timeout=LIMIT, **kwargs)


READ = f"{sys.executable} -c 'import sys; from charrnn_fa.text.corpus import load_corpus; print(len(load_corpus(sys.argv[1])))'"


@pytest.mark.parametrize('line', [f'{READ} <(yes | head -n 500)', f'yes | head -n 500 | {READ} /dev/stdin',
                                  f'yes | head -n 500 | {READ} /dev/fd/0'])
def test_pipe_on_the_command_line(line):
    r = shell(line)
    assert r.stdout == '1000\n', r.stderr


def test_train_from_a_pipe(tmp_path):
    "The run keeps its text, so that it needs the pipe no more"
    tiny = '--steps 2 --n-hid 8 --emb-sz 8 --head-sz 0 --bs 2 --seq-len 8 --precision fp32 --seed 1 --quiet'
    r = shell(f'{sys.executable} -m charrnn_fa train <(yes | head -n 500) --run {tmp_path}/r {tiny}')
    assert r.returncode == 0 and '900 characters to train on' in r.stdout, r.stderr


def test_pipe_is_read_once():
    "A second reading would find nothing, and must not pass for a text"
    read,write = os.pipe()
    os.write(write, b'text')
    os.close(write)
    try:
        assert read_text(f'/dev/fd/{read}') == 'text'
        with pytest.raises(CorpusError, match='is a pipe.*holds nothing'): read_text(f'/dev/fd/{read}')
    finally: os.close(read)


# Runs

@pytest.fixture
def run(learn, tmp_path):
    learn.fit(1, cbs=Checkpoint(tmp_path/'runs/r'))
    return tmp_path/'runs/r'


def test_run_as_corpus(run):
    for o in run, str(run), f'{run}/':
        with pytest.raises(CorpusError, match='is a run, not a text.*charrnn train --run'): load_corpus(o)


def test_run_within_a_corpus(run):
    "Else training on `.` would read the records of the run that it writes"
    top = run.parents[1]
    (top/'a.txt').write_text('text\n'*20)
    shutil.rmtree(top/'models', ignore_errors=True)
    assert load_corpus(top) == 'text\n'*20
    assert f'{run} (a run)' in said(lambda: load_corpus(top))


def test_run_json_that_is_none(tmp_path):
    (tmp_path/'run.json').write_text('{"distance": 5}'*9)
    assert load_corpus(tmp_path) == '{"distance": 5}'*9


# Names

@pytest.mark.parametrize('what', ['count:' + '1'*5000, 'count:' + '9'*20, 'count:63', 'a\ud800', '\ud800'*30, 'a\nb',
                                  '\x1b[31m', '*'*300, '**/'*300, '['*1000])
def test_odd_names(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    e = ends(lambda: load_corpus(what))
    assert isinstance(e, CorpusError) and '\n' not in str(e) and '\x1b' not in str(e) and len(str(e)) < 500, e


def test_download_is_for_links_only(home, at_once):
    for o in 'a.txt', '', 'drive:', ID:
        with pytest.raises(CorpusError, match='is no link'): download(o, progress=False)
