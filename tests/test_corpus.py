"Texts from everywhere: real files, a real web server, both shapes of gdown"
import gzip
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

import charrnn_fa.text.corpus
import charrnn_fa.text.download
from charrnn_fa.text.read import CorpusError, TextWarning, read_text
from charrnn_fa.text.download import download
from charrnn_fa.text.corpus import load_corpus

BODY = ('To be, or not to be\n'*100).encode()


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


def test_retries(server, home):
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
    assert len(tries) == 3


def test_broken_connection_is_not_a_file(server, home):
    def short(handler):
        handler.send_response(200)
        handler.send_header('Content-Length', str(len(BODY)))
        handler.end_headers()
        handler.wfile.write(BODY[:500])
    server.answers['/a.txt'] = short
    with pytest.raises(CorpusError, match='before the file was whole'): load_corpus(f'{server.url}/a.txt', progress=False)


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
def test_compressed_transfer_cut_short(server, home, end, monkeypatch):
    "Content-Length is that of what was sent, so only the stream itself tells that its end is missing"
    monkeypatch.setattr(time, 'sleep', lambda s: None)                # between tries
    server.answers['/a.txt'] = lambda h: send(h, 200, gzip.compress(BODY)[:end], Content_Encoding='gzip')
    with pytest.raises(CorpusError, match='empty file.*browser' if end == 0 else 'cut short or damaged.*browser'): load_corpus(f'{server.url}/a.txt', progress=False)
    assert len(server.asked) == 3 and list(home.iterdir()) == []


def test_damaged_compressed_transfer(server, home, monkeypatch):
    monkeypatch.setattr(time, 'sleep', lambda s: None)
    packed = bytearray(gzip.compress(BODY))
    packed[20] ^= 255
    server.answers['/a.txt'] = lambda h: send(h, 200, bytes(packed), Content_Encoding='gzip')
    with pytest.raises(CorpusError, match='cut short or damaged.*browser'): load_corpus(f'{server.url}/a.txt', progress=False)


def test_cut_short_once(server, home):
    server.answers['/a.txt'] = lambda h: send(h, 200, gzip.compress(BODY)[:40 if len(server.asked) == 1 else None], Content_Encoding='gzip')
    assert load_corpus(f'{server.url}/a.txt', progress=False) == BODY.decode()
    assert len(server.asked) == 2


@pytest.mark.parametrize('status', [206, 201, 202, 203, 226, 300, 304])
def test_only_200_is_the_whole_file(server, home, status, monkeypatch):
    monkeypatch.setattr(time, 'sleep', lambda s: None)
    server.answers['/a.txt'] = (status, BODY[:500])
    with pytest.raises(CorpusError, match=f'answered {status}.*browser'): load_corpus(f'{server.url}/a.txt', progress=False)
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
    time.sleep(3)


def test_stalled_download(server, home, monkeypatch):
    monkeypatch.setattr(charrnn_fa.text.download, '_patience', (4, 0.2))
    server.answers['/a.txt'] = stall
    with pytest.raises(CorpusError, match='not answer in time.*browser'): load_corpus(f'{server.url}/a.txt', progress=False)
    assert len(server.asked) == 3


@pytest.mark.parametrize('page', [b'<!DOCTYPE html><title>Log in</title>', b'\n <html><body>quota</body></html>', b'<?xml version="1.0"?><!-- x --><!DOCTYPE html><p>',
                                  b'<head><title>x</title>'])
def test_web_page_instead_of_text(server, home, page):
    server.answers['/a.txt'] = page
    with pytest.raises(CorpusError, match='web page instead of a text'): load_corpus(f'{server.url}/a.txt', progress=False)


def test_wrong_checksum(server, home):
    server.answers['/a.txt'] = BODY
    with pytest.raises(CorpusError, match='expected SHA-256'): download(f'{server.url}/a.txt', sha256='0'*64, progress=False)


def test_refused_connection(home):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    with pytest.raises(CorpusError, match='no connection.*give the path'): load_corpus(f'http://127.0.0.1:{port}/a.txt', progress=False)


def test_file_put_there_by_hand(home, monkeypatch):
    home.mkdir()
    (home/'from my stick.txt').write_bytes(BODY)
    monkeypatch.setattr(charrnn_fa.text.corpus, 'shakespeare', dict(url='http://127.0.0.1:9/x', size=len(BODY), sha256=hashlib.sha256(BODY).hexdigest()))
    assert load_corpus('shakespeare') == BODY.decode()


ID = '1A2b3C4d5E6f7G8h9I0jKlMnOpQrStUvW'


def fake_gdown(monkeypatch, version, body=BODY, fails=None, url=None):
    "gdown as it is called: keywords only; 5 knows no time limit, 6 passes one on, None included; `url` is asked for the body if given"
    def get(output, **timeout):
        if fails == 'none': return None
        if fails: raise fails
        with open(f'{output}x.part', 'wb') as f:
            f.write(b''.join(requests.session().get(url, stream=True, verify=True, **timeout).iter_content(100)) if url else body)
        os.replace(f'{output}x.part', output)
        return output
    def download5(url=None, output=None, quiet=False, proxy=None, speed=None, use_cookies=True, verify=True, id=None, fuzzy=False, resume=False,
                  format=None, user_agent=None, log_messages=None):
        assert id == ID and not use_cookies
        return get(output)
    def download6(url=None, output=None, quiet=False, proxy=None, speed=None, use_cookies=True, verify=True, id=None, resume=False, format=None,
                  user_agent=None, log_messages=None, progress=None, skip_download=False, cookies_file=None, hasher=None, timeout=None, retries=0, cancel=None):
        assert id == ID and not use_cookies
        return get(output, timeout=timeout)
    m = types.ModuleType('gdown')
    m.download = download5 if version == 5 else download6
    monkeypatch.setitem(sys.modules, 'gdown', m)


@pytest.mark.parametrize('version', [5, 6])
@pytest.mark.parametrize('link', [f'https://drive.google.com/file/d/{ID}/view?usp=sharing', ID])
def test_drive(home, monkeypatch, version, link):
    fake_gdown(monkeypatch, version)
    assert load_corpus(link, progress=False) == BODY.decode()


@pytest.mark.parametrize('fails', ['none', Exception('Cannot retrieve the public link of the file.\nmore')])
def test_drive_refuses(home, monkeypatch, fails):
    fake_gdown(monkeypatch, 5, fails=fails)
    with pytest.raises(CorpusError, match='Drive did not give the file.*browser'): load_corpus(ID, progress=False)


@pytest.mark.parametrize('version', [5, 6])
def test_stalled_drive(server, home, monkeypatch, version):
    monkeypatch.setattr(charrnn_fa.text.download, '_patience', (4, 0.2))
    server.answers['/a.txt'] = stall
    fake_gdown(monkeypatch, version, url=f'{server.url}/a.txt')
    request = requests.Session.request
    with pytest.raises(CorpusError, match='not answer in time.*browser'): load_corpus(ID, progress=False)
    assert len(server.asked) == 3 and list(home.iterdir()) == []
    assert requests.Session.request is request                       # the limit is gone with the call


@pytest.mark.parametrize('version', [5, 6])
def test_drive_refuses_connections(home, monkeypatch, version):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    fake_gdown(monkeypatch, version, url=f'http://127.0.0.1:{port}/a.txt')
    t = time.perf_counter()
    with pytest.raises(CorpusError, match='no connection.*browser'): load_corpus(ID, progress=False)
    assert time.perf_counter() - t < 15


@pytest.fixture
def drive(server, monkeypatch):
    "The installed gdown, with every request that it makes sent to `server`"
    real = requests.adapters.HTTPAdapter.send
    def to_server(self, request, **kwargs):
        request.url = server.url + urlsplit(request.url).path
        return real(self, request, **kwargs)
    monkeypatch.setattr(requests.adapters.HTTPAdapter, 'send', to_server)
    return server


FILE = dict(Content_Type='text/plain', Content_Disposition='attachment; filename="a.txt"')


def test_real_gdown(drive, home):
    drive.answers['/uc'] = lambda h: send(h, 200, BODY, **FILE)
    assert load_corpus(ID, progress=False) == BODY.decode()


def test_real_gdown_stalls(drive, home, monkeypatch):
    monkeypatch.setattr(charrnn_fa.text.download, '_patience', (4, 0.2))
    drive.answers['/uc'] = lambda h: stall(h, **FILE)
    with pytest.raises(CorpusError, match='not answer in time.*browser'): load_corpus(ID, progress=False)
    assert len(drive.asked) == 3 and list(home.iterdir()) == []


def test_real_gdown_cut_short(drive, home):
    drive.answers['/uc'] = lambda h: send(h, 200, BODY[:500], **{**FILE, 'Content_Length': len(BODY)})
    with pytest.raises(CorpusError, match='whole|incomplete'): load_corpus(ID, progress=False)
    assert list(home.iterdir()) == []


def test_real_gdown_before_an_answer(drive, home, monkeypatch):
    monkeypatch.setattr(charrnn_fa.text.download, '_patience', (4, 0.2))
    drive.answers['/uc'] = lambda h: time.sleep(3)
    with pytest.raises(CorpusError, match='not answer in time.*browser'): load_corpus(ID, progress=False)


@pytest.mark.parametrize('sample, encoding, at', [
    ("Le café naïve était déjà fermé, disait-on à l'hôtel. "*5, 'cp1252', 6), ('Привет мир, это текст на русском языке. '*5, 'cp1251', 0),
    ('日本語のテキストです。これは長い文章です。'*10, 'cp932', 0), ('这是一个中文文本。'*20, 'gb18030', 0), ('plain text in wide characters', 'utf_16', 0),
    ('plain text in very wide characters', 'utf_32', 0)])
def test_wrong_encoding_names_offset_and_remedy(tmp_path, sample, encoding, at):
    p = tmp_path/'x.txt'
    p.write_bytes(sample.encode(encoding))
    with pytest.raises(CorpusError, match=f"at byte {at} .*encoding='{encoding}'"): read_text(p)
    assert read_text(p, encoding) == sample


@pytest.mark.parametrize('sample, notes', [('\ufeffabc', 1), ('a\r\nb', 1), ('a\ufffdb', 1), ('a\0'+'b'*50, 1), ('abc\n', 0), ('\ufeffa\r\n\ufffd', 3)])
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
        code = f"import os\nfrom charrnn_fa.text.read import *\nfrom charrnn_fa.text.corpus import *\nos.geteuid() or os.setresuid(65534, 65534, 65534)\ntry: load_corpus({d!r})\nexcept CorpusError as e: print(e)"
        r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'b.txt cannot be read (Permission denied)' in r.stdout, r.stderr


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


@pytest.mark.parametrize('what, start', [('count', '012012012'), ('count:0121', '012101210121'), ('count:7', '01234560123456'), ('count:ab', 'abab')])
def test_counting(what, start): assert load_corpus(what).startswith(start)


@pytest.mark.parametrize('what', ['count:1', 'count:99', 'count:aa', 'ftp://x.org/y', 'nowhere.txt', 'no/*.txt', '', 'a'*300, 'http://[::1', '~nouser/x', 'count:²', 'count:1'])
def test_what_cannot_be_had(what):
    with pytest.raises(CorpusError): load_corpus(what)
