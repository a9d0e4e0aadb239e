"Texts from everywhere: real files, a real web server, one that stands for Drive"
import gzip
import hashlib
import socket
import subprocess
import sys
import tempfile
import time
import types
import warnings
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pooch.core
import pytest
import requests
from faultfs import DriveMount

import charrnn_fa.text.corpus
import charrnn_fa.text.download
from charrnn_fa.errors import CharRNNError
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.text.download import download
from charrnn_fa.text.drawings import load_drawings
from charrnn_fa.text.read import CorpusError, TextWarning, read_text

BODY = ('To be, or not to be\n'*100).encode()
PACKED = gzip.compress(BODY)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    "The seconds that a download pauses between two tries; nobody waits for them"
    asked = []
    monkeypatch.setattr(pooch.core, 'time', types.SimpleNamespace(sleep=asked.append))
    return asked


def send(handler, status, body, **headers):
    "An answer with headers of its own"
    handler.send_response(status)
    for k,v in {'Content_Length': len(body), **headers}.items(): handler.send_header(k.replace('_', '-'), str(v))
    handler.end_headers()
    handler.wfile.write(body)


def load(url): return load_corpus(url, progress=False)


def test_download_is_kept_and_verified(server, home):
    server.answers['/a.txt'] = BODY
    for _ in range(2): assert load(f'{server.url}/a.txt') == BODY.decode()
    assert len(server.asked) == 1
    kept = next(home.glob('*.txt'))
    assert kept.stem == hashlib.sha256(BODY).hexdigest()
    kept.write_bytes(b'spoilt')                                   # a damaged copy is downloaded again
    assert load(f'{server.url}/a.txt') == BODY.decode() and len(server.asked) == 2


def test_file_put_there_by_hand(home, monkeypatch):
    home.mkdir()
    (home/'from my stick.txt').write_bytes(BODY)
    monkeypatch.setattr(charrnn_fa.text.corpus, 'shakespeare',
                        dict(url='http://127.0.0.1:9/x', size=len(BODY), sha256=hashlib.sha256(BODY).hexdigest()))
    assert load_corpus('shakespeare') == BODY.decode()


def test_progress_bar(server, home, capsys):
    "The bar is the default; pooch's own lines, which have the whole link, are not shown"
    server.answers['/a.txt'],server.answers['/no.txt'] = BODY,(404, b'')
    load_corpus(f'{server.url}/a.txt')
    with pytest.raises(CorpusError): load_corpus(f'{server.url}/no.txt?secret')
    said = capsys.readouterr().err
    assert 'a.txt' in said and 'ownload' not in said and 'secret' not in said


FAILURES = {
    '404': (lambda h: send(h, 404, b'no'), 'answered 404'), '206': (lambda h: send(h, 206, BODY[:500]), 'answered 206'),
    '203': (lambda h: send(h, 203, BODY), 'answered 203'), '304': (lambda h: send(h, 304, b''), 'answered 304'),
    'a broken connection': (lambda h: send(h, 200, BODY[:500], Content_Length=len(BODY)), 'before the file was whole'),
    'nothing': (lambda h: send(h, 200, b''), 'empty file'),
    'a page': (lambda h: send(h, 200, b'<?xml version="1.0"?><!-- x --><!DOCTYPE html><p>'), 'web page'),
    'a cut stream': (lambda h: send(h, 200, PACKED[:-8], Content_Encoding='gzip'), 'cut short or damaged'),
    'a damaged stream': (lambda h: send(h, 200, PACKED[:20] + b'?' + PACKED[21:], Content_Encoding='gzip'), 'damaged'),
    'packed otherwise': (lambda h: send(h, 200, BODY, Content_Encoding='gzip, gzip'), 'packed as gzip, gzip')}


@pytest.mark.parametrize('name', FAILURES)
def test_what_is_not_the_whole_file(server, home, pauses, name):
    "Three tries, one sentence with a remedy, and nothing is left in the folder"
    server.answers['/a.txt'],said = FAILURES[name]
    with pytest.raises(CorpusError, match=f'/a.txt: .*{said}.*browser'): load(f'{server.url}/a.txt')
    assert len(server.asked) == 3 and pauses == [1, 2] and list(home.iterdir()) == []
    tried = FAILURES[name][0]
    server.answers['/a.txt'] = lambda h: tried(h) if len(server.asked) == 4 else send(h, 200, PACKED, Content_Encoding='X-GZIP')
    assert load(f'{server.url}/a.txt') == BODY.decode() and len(server.asked) == 5


def test_wrong_checksum(server, home):
    server.answers['/a.txt'] = BODY
    with pytest.raises(CorpusError, match='expected SHA-256'): download(f'{server.url}/a.txt', sha256='0'*64, progress=False)
    assert list(home.iterdir()) == []


ID = '1A2b3C4d5E6f7G8h9I0jKlMnOpQrStUvW'


def redirected(monkeypatch, to):
    "Every request to a host of Drive goes to another server"
    real = requests.adapters.HTTPAdapter.send
    def send_there(self, request, **kwargs):
        assert urlsplit(request.url).hostname in ('drive.google.com', 'docs.google.com', 'drive.usercontent.google.com')
        asked,request.url = request.url,to + urlsplit(request.url)._replace(scheme='', netloc='').geturl()
        try: return real(self, request, **kwargs)
        finally: request.url = asked                                  # whose cookies these are
    monkeypatch.setattr(requests.adapters.HTTPAdapter, 'send', send_there)


@pytest.fixture
def drive(server, monkeypatch):
    redirected(monkeypatch, server.url)
    return server


@pytest.fixture
def closed_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.mark.parametrize('where', ['web', 'drive'])
def test_refused_connection(home, monkeypatch, closed_port, where):
    if where == 'drive': redirected(monkeypatch, f'http://127.0.0.1:{closed_port}')
    t = time.perf_counter()
    with pytest.raises(CorpusError, match='no connection.*browser'):
        load(f'drive:{ID}' if where == 'drive' else f'http://127.0.0.1:{closed_port}/a.txt')
    assert time.perf_counter() - t < 15


FILE = dict(Content_Type='text/plain', Content_Disposition='attachment; filename="a.txt"')
FORM = ('<!DOCTYPE html><html><body>\n'
        '<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
        f'<input type="hidden" name="id" value="{ID}"><input type="hidden" name="export" value="download">'
        '<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="12-34"></form></body></html>')


def page(text, **headers):
    return lambda h: send(h, 200, gzip.compress(text.encode()), Content_Type='text/html; charset=utf-8',
                          Content_Encoding='gzip', **headers)


@pytest.mark.parametrize('link', [f'https://drive.google.com/file/d/{ID}/view?usp=sharing', f'drive:{ID}'])
def test_drive(drive, home, link):
    drive.answers['/uc'] = lambda h: send(h, 200, PACKED, Content_Encoding='gzip', **FILE)
    for _ in range(2): assert load(link) == BODY.decode()
    assert drive.asked == [f'/uc?id={ID}']


def test_drive_asks_for_a_confirmation(drive, home):
    "A large file: a page with a form, which leads to the file"
    drive.answers['/uc'] = page(FORM)
    drive.answers['/download'] = lambda h: send(h, 200, BODY, **FILE)
    assert load(f'drive:{ID}') == BODY.decode()
    assert drive.asked == [f'/uc?id={ID}', f'/download?id={ID}&export=download&confirm=t&uuid=12-34']


@pytest.mark.parametrize('answer,said', [
    (page('<p class="uc-error-subcaption">Too many users have viewed this file</p>'), 'Drive did not give the file'),
    (page('<html>Sign in</html>'), 'Drive did not give the file'), (page(''), 'Drive did not give the file'),
    (lambda h: send(h, 404, BODY, **FILE), 'answered 404'),
    (lambda h: send(h, 200, BODY[:500], **{**FILE, 'Content_Length': len(BODY)}), 'before the file was whole')])
def test_drive_refuses(drive, home, answer, said):
    drive.answers['/uc'] = answer
    with pytest.raises(CorpusError, match=f'{said}.*browser'): load(f'drive:{ID}')
    assert list(home.iterdir()) == []


def silent(handler): handler.server.over.wait(60)


def stall(handler):
    "Half of the answer, then silence"
    send(handler, 200, BODY[:500], **{**FILE, 'Content_Length': len(BODY)})
    handler.wfile.flush()
    silent(handler)


@pytest.mark.parametrize('answer', [stall, silent])
@pytest.mark.parametrize('where', ['web', 'drive', 'drive, confirmed'])
def test_stalled_download(request, home, monkeypatch, answer, where):
    "In the file or before any answer: each of three tries ends with the patience, whatever gdown is installed"
    monkeypatch.setattr(charrnn_fa.text.download, '_patience', (4, 0.2))
    server = request.getfixturevalue('drive' if 'drive' in where else 'server')
    server.answers.update({'/a.txt':answer, '/uc':page(FORM) if 'confirmed' in where else answer, '/download':answer})
    t = time.perf_counter()
    with pytest.raises(CorpusError, match='not answer in time.*browser'):
        load(f'drive:{ID}' if 'drive' in where else f'{server.url}/a.txt')
    assert time.perf_counter() - t < 40                    # a minute if the server's own end were waited for once
    assert list(home.iterdir()) == []


DOC = f'https://docs.google.com/document/d/{ID}'


@pytest.mark.parametrize('link,remedy', [
    (f'{DOC}/edit?usp=sharing', 'a Google Doc.*File > Download > Plain text'),
    (DOC.replace('document', 'spreadsheets/u/0'), 'a Google Sheet.*File > Download'),
    ('https://drive.google.com/drive/u/1/folders/1A2b3C4d5E6f7G8h9I0jKlMnOp', 'a folder.*mount_drive')])
def test_what_is_not_a_file_of_drive_is_refused_unasked(drive, home, link, remedy):
    with pytest.raises(CorpusError, match=remedy): load(link)
    assert not drive.asked


# Files

@pytest.mark.parametrize('sample, encoding, at', [
    ("Le café naïve était déjà fermé, disait-on à l'hôtel. "*5, 'cp1252', 6),
    ('Привет мир, это текст на русском языке. '*5, 'cp1251', 0), ('日本語のテキストです。これは長い文章です。'*10, 'cp932', 0),
    ('这是一个中文文本。'*20, 'gb18030', 0), ('plain text in wide characters', 'utf_16', 0),
    ('plain text in very wide characters', 'utf_32', 0)])
def test_wrong_encoding_names_offset_and_remedy(tmp_path, sample, encoding, at):
    p = tmp_path/'x.txt'
    p.write_bytes(sample.encode(encoding))
    with pytest.raises(CorpusError, match=f"at byte {at} .*encoding='{encoding}'"): read_text(p)
    assert read_text(p, encoding) == sample


ZIP = b'PK\3\4' + bytes(26)


@pytest.mark.parametrize('b,said', [
    (ZIP + b'[Content_Types].xml<?xml?>', 'word processor'), (ZIP + b'mimetypeapplication/epub+zip', 'word processor'),
    (b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1' + b'Wort '*100, 'word processor'), (ZIP + b'letters.txthello', 'unzip'),
    (bytes(range(32))*100, 'binary')])
def test_what_is_not_a_plain_text(tmp_path, b, said):
    (tmp_path/'letters').write_bytes(b)
    with pytest.raises(CorpusError, match=f'letters is .*{said}'): load_corpus(tmp_path/'letters')


@pytest.mark.parametrize('shut,says', [('.', 'TOP cannot be read'), ('b', 'Passed over in TOP: TOP/b'),
                                       ('b/t.txt', 'TOP/b/t.txt cannot be read')])
def test_what_may_not_be_read(shut, says):
    with tempfile.TemporaryDirectory() as d: # root may read anything, and the folders of pytest are for root alone
        for o in 'ab':
            Path(d, o).mkdir()
            Path(d, o, 't.txt').write_text('text'*20)
        Path(d).chmod(0o755)
        Path(d, shut).chmod(0)
        code = ("import os\nfrom charrnn_fa.text.corpus import *\nos.geteuid() or os.setresuid(65534, 65534, 65534)\n"
                f"try: print(len(load_corpus({d!r})))\nexcept ValueError as e: print(e)")
        r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    said = r.stdout + r.stderr
    assert says.replace('TOP', d) in said and 'Permission denied' in said and ('80' in r.stdout) == (shut == 'b'), said


@pytest.mark.parametrize('what,remedy', [
    ('To be, or not to be\n'*30, 'from_text'), ('To be, or not to be. '*30, 'from_text'),
    ('faces', 'from_drawings'), ('quickdraw:cat', 'from_drawings'),
    ('www.gutenberg.org/files/100/100-0.txt', 'https://'), ('drive.google.com/file/d/abc/view', 'https://'),
    ('shakespere', 'check the spelling'), ('letters.txt', 'check the spelling'), ('books/*.txt', r'\*\* looks into'),
    (('a.txt', 'b.txt'), 'from_files takes several')])
def test_what_does_not_name_a_text_has_a_way_out(what, remedy):
    with pytest.raises(CharRNNError, match=remedy): load_corpus(what)


def test_a_mount_that_has_gone_away_is_named(tmp_path, fuse):
    "Name and permissions are as they were"
    with DriveMount(tmp_path) as drive:
        for o in 'a.txt', 'b.svg', 'c.ndjson': (drive.mountpoint/o).write_bytes(BODY)
        drive.kill()
        at = drive.mountpoint
        tries = [partial(load_corpus, o) for o in (at/'a.txt', at, at/'*.txt')]
        tries += [partial(f, at/o) for o in ('a.txt', 'b.svg', 'c.ndjson') for f in (read_text, load_drawings)]
        tries += [lambda: CharDataLoaders.from_files([at/'a.txt', at/'b.txt']), lambda: CharDataLoaders.from_corpus(at/'a.txt')]
        for f in tries:
            with pytest.raises(CharRNNError, match='its mount does not answer, so mount it again'): f()


def test_drawings_that_are_read_as_text_are_said_to_be_drawings(tmp_path):
    for i in range(3): (tmp_path/f'{i}.svg').write_text('<svg><path d="M0 0L9 9"/></svg>')
    with pytest.warns(TextWarning, match='0.svg is a drawing') as said: load_corpus(tmp_path)
    assert len(said) == 1
    (tmp_path/'a.txt').write_text('Three drawings.')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_corpus(tmp_path)
