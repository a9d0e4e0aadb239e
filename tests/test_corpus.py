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

import pytest
import requests

import charrnn_fa.text.corpus
import charrnn_fa.text.download
from charrnn_fa.core import CharRNNError
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.text.read import CorpusError, TextWarning, decode_text, read_text
from charrnn_fa.text.download import download
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.drawings import load_drawings
from faultfs import DriveMount

BODY = ('To be, or not to be\n'*100).encode()


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    "The seconds that a download pauses between two tries; nobody waits for them"
    asked = []
    monkeypatch.setattr(charrnn_fa.text.download, 'time', types.SimpleNamespace(sleep=asked.append))
    return asked


def test_download_is_kept_and_verified(server, home):
    server.answers['/a.txt'] = BODY
    assert load_corpus(f'{server.url}/a.txt', progress=False) == BODY.decode()
    assert load_corpus(f'{server.url}/a.txt', progress=False) == BODY.decode()
    assert len(server.asked) == 1
    kept = next(home.glob('*.txt'))
    assert kept.stem == hashlib.sha256(BODY).hexdigest()
    kept.write_bytes(b'spoilt')                                   # a damaged copy is fetched again
    assert load_corpus(f'{server.url}/a.txt', progress=False) == BODY.decode()
    assert len(server.asked) == 2


def test_progress_bar(server, home, capsys):
    "The bar is the default"
    def slow(handler):
        handler.send_response(200)
        handler.send_header('Content-Length', str(len(BODY)))
        handler.end_headers()
        for i in range(0, len(BODY), 500):
            handler.wfile.write(BODY[i:i+500])
            time.sleep(0.4)
    server.answers['/a.txt'],server.answers['/slow.txt'] = BODY,slow
    assert load_corpus(f'{server.url}/a.txt') == BODY.decode()
    assert load_corpus(f'{server.url}/slow.txt') == BODY.decode()
    assert 'slow.txt' in capsys.readouterr().err


@pytest.mark.parametrize('bad', [b'', b'{', b'[]', b'null', b'\xff\xfe'])
def test_damaged_note_of_a_link(server, home, bad):
    server.answers['/a.txt'] = BODY
    load_corpus(f'{server.url}/a.txt')
    next(home.glob('link-*')).write_bytes(bad)
    assert load_corpus(f'{server.url}/a.txt') == BODY.decode()


def test_no_leftovers_after_failure(server, home):
    server.answers['/a.txt'] = (404, b'no')
    with pytest.raises(CorpusError, match='answered 404.*browser'): load_corpus(f'{server.url}/a.txt', progress=False)
    assert list(home.iterdir()) == []


def test_retries(server, home, pauses):
    tries = []
    def flaky(handler):
        tries.append(1)
        body = BODY if len(tries) == 3 else b''
        handler.send_response(200 if body else 503)
        handler.send_header('Content-Length', str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
    server.answers['/a.txt'] = flaky
    assert download(f'{server.url}/a.txt', progress=False).read_bytes() == BODY
    assert len(tries) == 3 and pauses == [1, 2]


def test_broken_connection_is_not_a_file(server, home):
    def short(handler):
        handler.send_response(200)
        handler.send_header('Content-Length', str(len(BODY)))
        handler.end_headers()
        handler.wfile.write(BODY[:500])
    server.answers['/a.txt'] = short
    with pytest.raises(CorpusError, match='before the file was whole'):
        load_corpus(f'{server.url}/a.txt', progress=False)


def send(handler, status, body, **headers):
    "An answer with headers of its own"
    handler.send_response(status)
    for k,v in {'Content_Length': len(body), **headers}.items(): handler.send_header(k.replace('_', '-'), str(v))
    handler.end_headers()
    handler.wfile.write(body)


def test_compressed_transfer(server, home):
    "Also through a redirect whose own body is compressed, and in several parts"
    packed = gzip.compress(BODY)
    server.answers['/a.txt'] = lambda h: send(h, 200, packed, Content_Encoding='gzip')
    server.answers['/from.txt'] = lambda h: send(h, 302, packed[:9], Content_Encoding='gzip', Location='/plain.txt')
    server.answers['/plain.txt'] = b'plain ' + BODY
    server.answers['/two.txt'] = lambda h: send(h, 200, packed + gzip.compress(b'more'), Content_Encoding='X-GZIP')
    assert download(f'{server.url}/a.txt', sha256=hashlib.sha256(BODY).hexdigest()).read_bytes() == BODY
    assert load_corpus(f'{server.url}/from.txt', progress=False) == 'plain ' + BODY.decode()
    assert load_corpus(f'{server.url}/two.txt', progress=False) == BODY.decode() + 'more'


@pytest.mark.parametrize('end', [0, 1, 5, 10, 25, -9, -8, -1])
def test_compressed_transfer_cut_short(server, home, end):
    "Content-Length is that of what was sent, so only the stream itself tells that its end is missing"
    server.answers['/a.txt'] = lambda h: send(h, 200, gzip.compress(BODY)[:end], Content_Encoding='gzip')
    with pytest.raises(CorpusError, match='empty file.*browser' if end == 0 else 'cut short or damaged.*browser'):
        load_corpus(f'{server.url}/a.txt', progress=False)
    assert len(server.asked) == 3 and list(home.iterdir()) == []


def test_damaged_compressed_transfer(server, home):
    packed = bytearray(gzip.compress(BODY))
    packed[20] ^= 255
    server.answers['/a.txt'] = lambda h: send(h, 200, bytes(packed), Content_Encoding='gzip')
    with pytest.raises(CorpusError, match='cut short or damaged.*browser'):
        load_corpus(f'{server.url}/a.txt', progress=False)


def test_cut_short_once(server, home):
    server.answers['/a.txt'] = lambda h: send(h, 200, gzip.compress(BODY)[:40 if len(server.asked) == 1 else None],
                                              Content_Encoding='gzip')
    assert load_corpus(f'{server.url}/a.txt', progress=False) == BODY.decode()
    assert len(server.asked) == 2


@pytest.mark.parametrize('status', [206, 201, 202, 203, 226, 300, 304])
def test_only_200_is_the_whole_file(server, home, status):
    server.answers['/a.txt'] = (status, BODY[:500])
    with pytest.raises(CorpusError, match=f'answered {status}.*browser'):
        load_corpus(f'{server.url}/a.txt', progress=False)
    assert len(server.asked) == 3 and list(home.iterdir()) == []


def test_part_of_a_file_once(server, home):
    server.answers['/a.txt'] = lambda h: send(h, *((206, BODY[:500]) if len(server.asked) == 1 else (200, BODY)))
    assert load_corpus(f'{server.url}/a.txt', progress=False) == BODY.decode()


def stall(handler, body=BODY, **headers):
    "Half of the answer, then silence"
    handler.send_response(200)
    for k,v in {'Content_Length': len(body), **headers}.items(): handler.send_header(k.replace('_', '-'), str(v))
    handler.end_headers()
    handler.wfile.write(body[:500])
    handler.wfile.flush()
    silent(handler)


def silent(handler): handler.server.over.wait(60)


def test_stalled_download(server, home, monkeypatch):
    monkeypatch.setattr(charrnn_fa.text.download, '_patience', (4, 0.2))
    server.answers['/a.txt'] = stall
    with pytest.raises(CorpusError, match='not answer in time.*browser'):
        load_corpus(f'{server.url}/a.txt', progress=False)
    assert len(server.asked) == 3


@pytest.mark.parametrize('page', [b'<!DOCTYPE html><title>Log in</title>', b'\n <html><body>quota</body></html>',
                                  b'<?xml version="1.0"?><!-- x --><!DOCTYPE html><p>',
                                  b'<head><title>x</title>'])
def test_web_page_instead_of_text(server, home, page):
    server.answers['/a.txt'] = page
    with pytest.raises(CorpusError, match='web page instead of a text'):
        load_corpus(f'{server.url}/a.txt', progress=False)


def test_wrong_checksum(server, home):
    server.answers['/a.txt'] = BODY
    with pytest.raises(CorpusError, match='expected SHA-256'):
        download(f'{server.url}/a.txt', sha256='0'*64, progress=False)


def test_refused_connection(home):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    with pytest.raises(CorpusError, match='no connection.*give the path'):
        load_corpus(f'http://127.0.0.1:{port}/a.txt', progress=False)


def test_file_put_there_by_hand(home, monkeypatch):
    home.mkdir()
    (home/'from my stick.txt').write_bytes(BODY)
    monkeypatch.setattr(charrnn_fa.text.corpus, 'shakespeare',
                        dict(url='http://127.0.0.1:9/x', size=len(BODY), sha256=hashlib.sha256(BODY).hexdigest()))
    assert load_corpus('shakespeare') == BODY.decode()


ID = '1A2b3C4d5E6f7G8h9I0jKlMnOpQrStUvW'


@pytest.fixture
def drive(server, monkeypatch):
    "Every request to a host of Drive is sent to `server`"
    real = requests.adapters.HTTPAdapter.send
    def to_server(self, request, **kwargs):
        assert urlsplit(request.url).hostname in ('drive.google.com', 'docs.google.com', 'drive.usercontent.google.com')
        asked,request.url = request.url,server.url + urlsplit(request.url)._replace(scheme='', netloc='').geturl()
        try: return real(self, request, **kwargs)
        finally: request.url = asked                                  # whose cookies these are
    monkeypatch.setattr(requests.adapters.HTTPAdapter, 'send', to_server)
    return server


FILE = dict(Content_Type='text/plain', Content_Disposition='attachment; filename="a.txt"')
FORM = ('<!DOCTYPE html><html><body>\n'
        '<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
        f'<input type="hidden" name="id" value="{ID}"><input type="hidden" name="export" value="download">'
        '<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="12-34"></form></body></html>')
LINK = f'<html>\n<a id="uc-download-link" href="/uc?export=download&amp;confirm=x1&amp;id={ID}">Download anyway</a>\n</html>'


def page(text, **headers):
    return lambda h: send(h, 200, gzip.compress(text.encode()), Content_Type='text/html; charset=utf-8',
                          Content_Encoding='gzip', **headers)


@pytest.mark.parametrize('link', [f'https://drive.google.com/file/d/{ID}/view?usp=sharing', f'drive:{ID}'])
def test_drive(drive, home, link):
    drive.answers['/uc'] = lambda h: send(h, 200, BODY, **FILE)
    assert load_corpus(link, progress=False) == BODY.decode()
    assert load_corpus(link, progress=False) == BODY.decode()
    assert drive.asked == [f'/uc?id={ID}']


def test_drive_compressed(drive, home):
    drive.answers['/uc'] = lambda h: send(h, 200, gzip.compress(BODY), Content_Encoding='gzip', **FILE)
    assert load_corpus(f'drive:{ID}', progress=False) == BODY.decode()


def test_drive_asks_for_a_confirmation(drive, home):
    "A large file: a page with a form, which leads to the file"
    drive.answers['/uc'] = page(FORM)
    drive.answers['/download'] = lambda h: send(h, 200, BODY, **FILE)
    assert load_corpus(f'drive:{ID}', progress=False) == BODY.decode()
    assert drive.asked == [f'/uc?id={ID}', f'/download?id={ID}&export=download&confirm=t&uuid=12-34']


def test_drive_confirms_by_a_cookie(drive, home):
    "The older page: a link, and a cookie that must come back with it"
    def uc(h):
        if 'confirm' not in h.path: return page(LINK, Set_Cookie='download_warning=x1; Domain=.google.com; Path=/')(h)
        cookies.append(h.headers['Cookie'])
        send(h, 200, BODY, **FILE)
    cookies = []
    drive.answers['/uc'] = uc
    assert load_corpus(f'drive:{ID}', progress=False) == BODY.decode()
    assert cookies == ['download_warning=x1']


def test_drive_asks_without_end(drive, home):
    drive.answers['/uc'] = drive.answers['/download'] = page(FORM)
    with pytest.raises(CorpusError, match='Drive did not give the file.*after another.*browser'):
        load_corpus(f'drive:{ID}', progress=False)
    assert len(drive.asked) == 3*4 and list(home.iterdir()) == []


@pytest.mark.parametrize('text',
                         ['<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p>',
                          '<html>Sign in</html>',
                          '<form id="download-form"></form>', '', '\0'])
def test_drive_refuses(drive, home, text):
    drive.answers['/uc'] = page(text)
    with pytest.raises(CorpusError, match='Drive did not give the file.*browser'):
        load_corpus(f'drive:{ID}', progress=False)
    assert list(home.iterdir()) == []


def test_gdown_that_cannot_read_the_page(drive, home, monkeypatch):
    "The function is not in gdown's documentation: one day it may be gone"
    monkeypatch.setitem(sys.modules, 'gdown.download', types.ModuleType('gdown.download'))
    drive.answers['/uc'] = page(FORM)
    with pytest.raises(CorpusError, match='version of gdown.*browser'): load_corpus(f'drive:{ID}', progress=False)


@pytest.mark.parametrize('status', [404, 500, 206])
def test_drive_answers_with_an_error(drive, home, status):
    drive.answers['/uc'] = lambda h: send(h, status, BODY, **FILE)
    with pytest.raises(CorpusError, match=f'answered {status}.*browser'): load_corpus(f'drive:{ID}', progress=False)


@pytest.mark.parametrize('answer', [lambda h: stall(h, **FILE), lambda h: stall(h, FORM.encode()*9), silent])
@pytest.mark.parametrize('confirmed', [False, True])
def test_stalled_drive(drive, home, monkeypatch, answer, confirmed):
    "In the file, in a page or before any answer: each of three tries ends with the patience, whatever gdown is installed"
    monkeypatch.setattr(charrnn_fa.text.download, '_patience', (4, 0.2))
    drive.answers['/uc'],drive.answers['/download'] = (page(FORM), answer) if confirmed else (answer, None)
    t = time.perf_counter()
    with pytest.raises(CorpusError, match='not answer in time.*browser'): load_corpus(f'drive:{ID}', progress=False)
    # three tries of 0.2 s; a minute if the server's own end were waited for once
    assert time.perf_counter() - t < 40
    # the server may note a call after nobody waits for it any more
    while len(drive.asked) < 3*(1+confirmed): time.sleep(.01)
    assert len(drive.asked) == 3*(1+confirmed) and list(home.iterdir()) == []


def test_drive_refuses_connections(home, monkeypatch):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    real = requests.adapters.HTTPAdapter.send
    def nowhere(self, request, **kwargs):
        request.url = f'http://127.0.0.1:{port}/a.txt'
        return real(self, request, **kwargs)
    monkeypatch.setattr(requests.adapters.HTTPAdapter, 'send', nowhere)
    t = time.perf_counter()
    with pytest.raises(CorpusError, match='no connection.*browser'): load_corpus(f'drive:{ID}', progress=False)
    assert time.perf_counter() - t < 15


def test_drive_cut_short(drive, home):
    drive.answers['/uc'] = lambda h: send(h, 200, BODY[:500], **{**FILE, 'Content_Length': len(BODY)})
    with pytest.raises(CorpusError, match='before the file was whole'): load_corpus(f'drive:{ID}', progress=False)
    assert list(home.iterdir()) == []


def library():
    "What the whole process shares of requests and of what lies under it"
    import http.client
    import logging
    import urllib3
    shared = [requests, requests.api, requests.sessions, requests.Session, requests.adapters,
              requests.adapters.HTTPAdapter, urllib3.HTTPConnectionPool,
              urllib3.HTTPResponse, urllib3.Timeout, http.client.HTTPConnection, http.client.HTTPResponse, socket]
    levels = {k: o.level for k,o in logging.root.manager.loggerDict.items() if isinstance(o, logging.Logger)}
    return [dict(vars(o)) for o in shared], socket.getdefaulttimeout(), levels


@pytest.mark.parametrize('where', ['web', 'drive'])
def test_libraries_stay_as_they_are(request, home, where):
    """Seen by the server, a thread of this process, while the download waits for it: nothing is changed for
    others, not even for the time of a download"""
    def look(h):
        seen.append((library(), requests.Session.request))
        send(h, 200, BODY, **FILE)
    seen,server,url = [],request.getfixturevalue('server'),f'drive:{ID}'
    if where == 'drive':
        # changes `HTTPAdapter.send`: a part of what was there before
        request.getfixturevalue('drive')
        server.answers['/uc'],server.answers['/download'] = page(FORM),look
    else: server.answers['/a.txt'],url = look,f'{server.url}/a.txt'
    __import__('gdown')
    before = library()
    assert load_corpus(url, progress=False) == BODY.decode()
    assert [o[1] for o in seen] == [requests.Session.request]
    assert seen[0][0] == before == library()
    assert requests.Session.request.__module__ == 'requests.sessions'


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


@pytest.mark.parametrize('sample, notes', [('\ufeffabc', 1), ('a\r\nb', 1), ('a\ufffdb', 1), ('a\0'+'b'*50, 1),
                                           ('abc\n', 0), ('\ufeffa\r\n\ufffd', 3)])
def test_oddities_are_reported_and_kept(tmp_path, sample, notes):
    p = tmp_path/'x.txt'
    p.write_bytes(sample.encode())
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        assert read_text(p) == sample
    assert len([o for o in w if o.category is TextWarning]) == notes


def test_file_that_may_not_be_read():
    with tempfile.TemporaryDirectory() as d: # root may read anything, and the folders of pytest are for root alone
        for o in 'ab': Path(d, f'{o}.txt').write_text('text')
        Path(d).chmod(0o755)
        Path(d, 'b.txt').chmod(0)
        code = ("import os\nfrom charrnn_fa.text.read import *\nfrom charrnn_fa.text.corpus import *\nos.geteuid() "
                f"or os.setresuid(65534, 65534, 65534)\ntry: load_corpus({d!r})\nexcept CorpusError as e: print(e)")
        r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'b.txt cannot be read (Permission denied)' in r.stdout, r.stderr


@pytest.mark.parametrize('shut,says', [
    ('.', 'TOP cannot be read (Permission denied); check its permissions'),
    ('b', 'Passed over in TOP: TOP/b (Permission denied)')])
def test_folder_that_may_not_be_looked_into(shut, says):
    with tempfile.TemporaryDirectory() as d:
        for o in 'ab':
            Path(d, o).mkdir()
            Path(d, o, 't.txt').write_text('text'*20)
        Path(d).chmod(0o755)
        Path(d, shut).chmod(0)
        code = ("import os\nfrom charrnn_fa.text.read import *\nfrom charrnn_fa.text.corpus import *\n"
                "os.geteuid() or os.setresuid(65534, 65534, 65534)\n"
                f"try: print(len(load_corpus({d!r})))\nexcept CorpusError as e: print(e)")
        r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert says.replace('TOP', d) in r.stdout+r.stderr and ('80' in r.stdout) == (shut == 'b'), (r.stdout, r.stderr)


def test_folder_without_text(tmp_path):
    with pytest.raises(CorpusError, match='no text file'): load_corpus(tmp_path)
    (tmp_path/'x.bin').write_bytes(bytes(1000))
    with pytest.raises(CorpusError, match='no text file'): load_corpus(str(tmp_path))


def test_binary_file(tmp_path):
    (tmp_path/'x.txt').write_bytes(bytes(range(32))*100)
    with pytest.raises(CorpusError, match='binary'): load_corpus(tmp_path/'x.txt')


def test_stdlib_is_source_of_this_python():
    text = load_corpus('stdlib')
    assert len(text) > 1_000_000 and 'class JSONDecoder' in text


@pytest.mark.parametrize('what, start', [('count', '012012012'), ('count:0121', '012101210121'),
                                         ('count:7', '01234560123456'), ('count:ab', 'abab')])
def test_counting(what, start): assert load_corpus(what).startswith(start)


@pytest.mark.parametrize('what', ['count:1', 'count:99', 'count:aa', 'ftp://x.org/y', 'nowhere.txt', 'no/*.txt', '',
                                  'a'*300, 'http://[::1', '~nouser/x', 'count:²', 'count:1'])
def test_what_cannot_be_had(what):
    with pytest.raises(CorpusError): load_corpus(what)


BOM = b'\xef\xbb\xbf'

@pytest.mark.parametrize('b', ['die Bäume'.encode() + b'\xff!', BOM + 'die Bäume'.encode() + b'\xff!'])
def test_damage_behind_a_byte_order_mark_is_placed_in_the_file(b):
    at = b.index(0xff)
    for encoding in 'utf-8','utf-8-sig','UTF_8_SIG':
        with pytest.raises(CorpusError, match=rf'is UTF-8 that is cut or damaged at byte {at} \(0xff\)'):
            decode_text(b, 'a.txt', encoding)


def test_what_is_packed_is_named_for_a_byte_order_mark_too():
    with pytest.raises(CorpusError, match='packed by gzip'): decode_text(gzip.compress(b'a text'), 'a.gz', 'utf-8-sig')
    with pytest.raises(CorpusError, match='binary'): decode_text(bytes(200), 'a', 'utf-8-sig')


@pytest.mark.parametrize('b,said', [(b'ab-\xff\xff', r'is not punycode at byte 3 \(0xff\)'), (b'abc-9', 'is not punycode'),
                                    (b'\xffab-', r'is not punycode at byte 0 \(0xff\)')])
def test_an_encoding_that_tells_of_a_part_is_known(b, said):
    with pytest.raises(CorpusError, match=said): decode_text(b, 'a.txt', 'punycode')


@pytest.mark.parametrize('encoding', ['klingon', 'rot13', 'a\0b', '\ud800'])
def test_an_encoding_that_is_none_is_said_to_be_none(encoding):
    with pytest.raises(CorpusError, match='Python knows no encoding called'): decode_text(b'abc', 'a.txt', encoding)


ZIP = b'PK\3\4' + bytes(26)

@pytest.mark.parametrize('b,kind', [(b'%PDF-1.4\n%\xac\xdc\n' + b'1 0 obj << /Type /Page >> '*20, 'a PDF'),
                                    (ZIP + b'[Content_Types].xml<?xml?>', 'a document of a word processor'),
                                    (ZIP + b'mimetypeapplication/epub+zip', 'a document of a word processor'),
                                    (b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1' + b'Wort '*100, 'a document of a word processor'),
                                    (b'{\\rtf1\\ansi Hello \\par}', 'an RTF document')])
def test_what_is_written_by_a_word_processor_is_saved_as_text_first(tmp_path, b, kind):
    p = tmp_path/'letters'
    p.write_bytes(b)
    with pytest.raises(CorpusError, match=f'letters is {kind}, .*save it as plain text'): load_corpus(p)


def test_what_is_packed_by_zip_alone_is_unpacked():
    with pytest.raises(CorpusError, match='unzip x'): decode_text(ZIP + b'letters.txthello', 'x')


@pytest.mark.parametrize('what,remedy', [
    ('To be, or not to be\n'*30, 'from_text'), ('To be, or not to be. '*30, 'from_text'),
    ('faces', 'from_drawings'), ('quickdraw:cat', 'from_drawings'),
    ('www.gutenberg.org/files/100/100-0.txt', 'https://'), ('drive.google.com/file/d/abc/view', 'https://'),
    ('shakespere', 'check the spelling'), ('letters.txt', 'check the spelling'), ('books/*.txt', r'\*\* looks into')])
def test_what_is_no_name_of_a_text_has_a_way_out(what, remedy):
    with pytest.raises(CorpusError, match=remedy): load_corpus(what)


DOC = 'https://docs.google.com/document/d/1A2b3C4d5E6f7G8h9I0jKlMnOpQrStUvW'

@pytest.mark.parametrize('link,remedy', [
    (f'{DOC}/edit?usp=sharing', 'a Google Doc.*File > Download > Plain text'),
    (DOC.replace('document', 'spreadsheets/u/0'), 'a Google Sheet.*File > Download'),
    ('https://drive.google.com/drive/folders/1A2b3C4d5E6f7G8h9I0jKlMnOpQrStUvW?usp=sharing', 'a folder.*mount_drive'),
    ('https://drive.google.com/drive/u/1/folders/1A2b3C4d5E6f7G8h9I0jKlMnOp', 'a folder.*mount_drive')])
def test_what_is_no_file_of_drive_is_not_asked_for(drive, home, link, remedy):
    with pytest.raises(CorpusError, match=remedy): load_corpus(link, progress=False)
    assert not drive.asked


def test_a_document_that_is_exported_is_a_link_like_others(drive, home):
    path = f'{urlsplit(DOC).path}/export'
    drive.answers[path] = lambda h: send(h, 200, BODY, Content_Type='text/plain')
    assert load_corpus(f'{DOC}/export?format=txt', progress=False) == BODY.decode()
    assert drive.asked == [f'{path}?format=txt']


def test_several_files_are_sent_where_they_are_taken(tmp_path):
    files = [tmp_path/f'{o}.txt' for o in 'ab']
    for o in files: o.write_text('some text or other, '*20)
    for given in files, tuple(files):
        with pytest.raises(CharRNNError, match='from_files takes several'): load_corpus(given)
    assert len(CharDataLoaders.from_files(files, bs=2, seq_len=8).vocab) > 5


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


def test_a_list_from_a_to_z_is_told(tmp_path):
    "Of a sorted list of names the end, which is held back, is unlike all that is trained on"
    names = sorted(f'{a}{b}{c}' for a in 'ABCDE' for b in 'aeiou' for c in 'lmnrst')
    (tmp_path/'names.txt').write_text('\n'.join(names))
    with pytest.warns(TextWarning, match='alphabetical order.*sort -R'): load_corpus(tmp_path/'names.txt')


def test_drawings_that_are_read_as_text_are_said_to_be_drawings(tmp_path):
    for i in range(3): (tmp_path/f'{i}.svg').write_text('<svg><path d="M0 0L9 9"/></svg>')
    with pytest.warns(TextWarning, match='0.svg is a drawing, .* charrnn draw') as told: load_corpus(tmp_path)
    assert len(told) == 1
    (tmp_path/'a.txt').write_text('Three drawings.')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_corpus(tmp_path)
