"Texts from everywhere: real files, a real web server, both shapes of gdown"
import hashlib
import socket
import sys
import time
import types
import warnings

import pytest

from charrnn_fa import corpus
from charrnn_fa.corpus import CorpusError, TextWarning, download, load_corpus, read_text

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
    monkeypatch.setattr(corpus, 'shakespeare', dict(url='http://127.0.0.1:9/x', size=len(BODY), sha256=hashlib.sha256(BODY).hexdigest()))
    assert load_corpus('shakespeare') == BODY.decode()


ID = '1A2b3C4d5E6f7G8h9I0jKlMnOpQrStUvW'


def fake_gdown(monkeypatch, version, body=BODY, fails=None):
    "gdown as it is called: keywords only; 6 has no `fuzzy`"
    def download(url=None, output=None, quiet=False, proxy=None, speed=None, use_cookies=True, verify=True, id=None, resume=False, **kwargs):
        assert version < 6 or 'fuzzy' not in kwargs
        assert id == ID and not use_cookies
        if fails == 'none': return None
        if fails: raise fails
        with open(output, 'wb') as f: f.write(body)
        return output
    m = types.ModuleType('gdown')
    m.download = download
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
