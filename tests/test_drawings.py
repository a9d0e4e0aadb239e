"Drawings against an independent reading of their text, real files, a real server that is killed, and the page that draws in a real browser"
import gzip
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.learner import load_learner

from charrnn_fa import show
from charrnn_fa.cli import main
from charrnn_fa.command.train import _as_options_to_draw
from charrnn_fa.core import CharRNNError
from charrnn_fa.learner import char_learner
from charrnn_fa.run.card import model_card
from charrnn_fa.run.files import digest
from charrnn_fa.options import parser
from charrnn_fa.run.model import Run, char_settings, kept_text, load_run, save_run, weights
from charrnn_fa.show.drawings import braille, nearest
from charrnn_fa.show.share import page_model, share
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.text.drawings import augment, load_drawings
from charrnn_fa.text.quickdraw import read_ndjson
from charrnn_fa.text.read import TextWarning
from charrnn_fa.text.strokes import (Drawings, StrokeCode, fit_drawing, simplify, stroke_letters,
                                     strokes_to_text, text_to_strokes)

HOUSE = [[(0, 255), (0, 100), (128, 0), (255, 100), (255, 255), (0, 255)], [(90, 255), (90, 180), (150, 180), (150, 255)]]


def read_by_hand(line, size):
    "Cells of a line, by the rule in the notebook's first paragraph and nothing else"
    letters = stroke_letters(size)
    right,down = letters[:2*size-1],letters[2*size-1:]
    x,y,strokes,i = 0,0,[[]],0
    while i < len(line):
        if line[i] == ' ':
            strokes.append([])
            i += 1
            continue
        x += right.index(line[i])-(size-1)
        y += down.index(line[i+1])-(size-1)
        strokes[-1].append((x, y))
        i += 2
    return strokes


@pytest.mark.parametrize('size', [2, 7, 48, 256])
def test_a_line_says_where_the_pen_goes(size):
    rng = np.random.default_rng(size)
    for _ in range(50):
        d = [[tuple(map(float, p)) for p in rng.uniform(0, 255, (rng.integers(1, 12), 2))]
             for _ in range(rng.integers(1, 6))]
        cells = [[tuple(round(o*(size-1)/255) for o in p) for p in s] for s in d]
        merged = [[p for i,p in enumerate(s) if i == 0 or p != s[i-1]] for s in cells]
        line = strokes_to_text([d], size).rstrip('\n')
        assert read_by_hand(line, size) == merged
        back, = text_to_strokes(line, size)
        assert [[tuple(round(o*(size-1)/255) for o in p) for p in s] for s in back] == merged


def test_twice_there_and_back():
    "Also what a network might write: any letters in any order give drawings that are written and read alike"
    rng,letters = np.random.default_rng(0),np.array([*stroke_letters(), ' ', '\n', '!', 'é', '\t'])
    text = ''.join(rng.choice(letters, 20_000))
    ds = text_to_strokes(text)
    again = text_to_strokes(strokes_to_text(ds))
    assert again == ds and again.repaired == again.skipped == 0
    assert ds.repaired > 50 and len(ds)+ds.skipped == len(text.split('\n'))


def test_lines_are_counted_as_what_they_are():
    ok,half,lost = strokes_to_text([HOUSE]),strokes_to_text([HOUSE])[:-2]+'\n','!?\n'
    ds = text_to_strokes(ok + half + lost + '\n' + ok)
    assert isinstance(ds, Drawings) and (len(ds), ds.repaired, ds.skipped) == (3, 1, 2)


def test_what_is_left_out_lies_near_the_line():
    rng = np.random.default_rng(1)
    stroke = np.cumsum(rng.normal(0, 3, (200, 2)), 0)
    kept = np.array(simplify([stroke.tolist()], 4.)[0])
    assert 2 < len(kept) < 100
    a,b = kept[:-1],kept[1:]
    t = np.clip(((stroke[:,None]-a)*(b-a)).sum(-1)/((b-a)**2).sum(-1), 0, 1)
    assert np.linalg.norm(a+t[...,None]*(b-a)-stroke[:,None], axis=-1).min(1).max() <= 4+1e-9


# --- Files

SVGS = {
    'line': ('<line x1="10" y1="10" x2="30" y2="50"/>', [[(0, 0), (127.5, 255)]]),
    'moved, scaled, turned': ('<g transform="translate(7 3) scale(2)"><path transform="rotate(90)" d="M0 0H20V10"/></g>',
                              [[(127.5, 0), (127.5, 255), (0, 255)]]),
    'two parts': ('<path d="m0 0 l0 4 m4 0 l0 -4"/>', [[(0, 0), (0, 255)], [(255, 255), (255, 0)]]),
    'a turned rectangle': ('<path d="M0 0H200V200"/>'
                           '<rect x="80" y="90" width="40" height="20" transform="rotate(90 100 100)"/>',
                           [[(0, 0), (255, 0), (255, 255)], [(140.25, 102), (140.25, 153), (114.75, 153),
                                                             (114.75, 102), (140.25, 102)]]),
    'hidden': ('<g visibility="hidden"><path d="M0 0L9 9"/></g><path d="M0 0L5 5"/>', [[(0, 0), (255, 255)]]),
    'a frame that is not seen': ('<path stroke="none" d="M0 0h24v24H0z" fill="none"/>'
                                 '<path d="M12 12l5 0" fill="none" stroke="currentColor"/>',
                                 [[(0, 0), (255, 0)]]),
    'white on a ground': ('<circle cx="50" cy="50" r="0"/><path d="M0 0H100V100H0Z" fill="#07f"/>'
                          '<path fill="#fff" d="M0 0H100V100"/>',
                          [[(0, 0), (255, 0), (255, 255), (0, 255), (0, 0)], [(0, 0), (255, 0), (255, 255)]]),
    'on from where it was closed': ('<path d="M0 0H40V40ZL80 80V100"/>',
                                    [[(0, 0), (102, 0), (102, 102), (0, 0)], [(0, 0), (204, 204), (204, 255)]]),
    'numbers that stand against each other': ('<path d="M0-10H100V90"/><polyline points="0-10 50-10 .0.0"/>',
                                              [[(0, 0), (255, 0), (255, 255)], [(0, 0), (127.5, 0), (0, 25.5)]]),
    'dots of a round pen': ('<g fill="none" stroke="#000" stroke-linecap="round"><path d="M0 0H50V50"/>'
                            '<path d="M10 10L10 10M20 20"/><line x1="10" y1="20" x2="10" y2="20"/></g>',
                            [[(0, 0), (255, 0), (255, 255)], [(51, 51)], [(51, 102)]]),
    'millimetres': ('<line x1="0mm" y1="0mm" x2="10mm" y2="5mm"/>', [[(0, 0), (255, 127.5)]]),
}


@pytest.mark.parametrize('name', SVGS)
def test_svg(tmp_path, name):
    body,want = SVGS[name]
    (tmp_path/'a.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg" width="100mm" height="100mm" '
                                  f'viewBox="0 0 100 100">{body}</svg>')
    (got,) = load_drawings(tmp_path/'a.svg')
    assert [len(s) for s in got] == [len(s) for s in want]
    if 'mm' not in body: assert np.allclose(np.concatenate(got), np.concatenate(want), atol=.02)


@pytest.mark.parametrize('background,n', [('rgb(255, 255, 255)', 1), ('#222', 2)])
def test_what_has_no_colour_is_not_drawn_on_any_ground(tmp_path, background, n):
    "draw.io and plotly say that the paper is white, and put rectangles without colour on it"
    (tmp_path/'a.svg').write_text(f'<svg xmlns="http://www.w3.org/2000/svg" style="background-color: {background};">'
                                  '<rect width="60" height="90" fill="none" stroke="none" pointer-events="all"/>'
                                  '<path fill="none" stroke="#fff" d="M0 0H9"/><path stroke="#000" d="M0 0V9"/></svg>')
    assert len(load_drawings(tmp_path/'a.svg')[0]) == n


@pytest.mark.parametrize('head', ['width="1em" height="1em" viewBox="0 0 24 24"', 'width="5ex" height="3ex" viewBox="0 0 24 24"',
                                  'width="auto" height="" viewBox="0 0 24 24"', 'viewBox="0-24 24 48"'])
def test_how_large_an_svg_is_does_not_matter(tmp_path, head):
    "Icons are often as large as a letter"
    (tmp_path/'a.svg').write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {head}><path d="M0 0H12V6"/></svg>')
    assert load_drawings(tmp_path/'a.svg') == [[[(0, 0), (255, 0), (255, 127.5)]]]


def test_a_plot_has_no_frame_of_its_paper(tmp_path):
    "matplotlib writes what is behind a plot too, white or without any colour"
    from matplotlib.figure import Figure
    for i,transparent in enumerate((True, False)):
        ax = (figure := Figure()).add_axes([0, 0, 1, 1])
        ax.plot([1, 2, 3], [3, 1, 2])
        ax.axis('off')
        figure.savefig(tmp_path/f'{i}.svg', transparent=transparent)
        assert [len(s) for s in load_drawings(tmp_path/f'{i}.svg')[0]] == [3]


def test_turned_circles_stand_where_a_browser_draws_them(tmp_path):
    (tmp_path/'a.svg').write_text('<svg><path d="M0 0H200V200"/><g transform="translate(100 100) rotate(30)">'
                                  '<circle cx="40" cy="0" r="10"/></g></svg>')
    points = np.array(load_drawings(tmp_path/'a.svg')[0][1])*200/255
    assert np.allclose(np.hypot(*(points-[100+40*3**.5/2, 120]).T), 10, atol=.1)


def test_lines_of_other_editors(tmp_path):
    line = '{"drawing":[[[0,10],[5,30]]]}'
    (tmp_path/'a.ndjson').write_bytes(b'\xef\xbb\xbf' + f'{line}\r\n{line}'.encode())
    assert load_drawings(tmp_path/'a.ndjson') == [[[(0, 5), (10, 30)]]]*2
    (tmp_path/'b.ndjson').write_text(line + '\n{"drawing":[[[900],[900]]]}\n')
    with pytest.warns(UserWarning, match='single point'): assert len(load_drawings(tmp_path/'b.ndjson')) == 1


@pytest.mark.parametrize('kwargs', [dict(what=''), dict(what='x'*5000), dict(seed=-1), dict(seed=1.5), dict(seed='a')])
def test_arguments_of_load_drawings(tmp_path, monkeypatch, kwargs):
    (tmp_path/'a.svg').write_text('<svg><path d="M0 0L9 9"/></svg>')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CharRNNError): load_drawings(**{'what':[HOUSE], 'times':2, **kwargs})


def test_what_is_nothing_is_not_a_lost_line():
    assert (text_to_strokes(''), text_to_strokes('').skipped) == ([], 0)
    with pytest.raises(CharRNNError, match='twice'): StrokeCode(alphabet='a'*95)
    with pytest.raises(CharRNNError): show.drawings([HOUSE], corpus='faces')


def test_a_circle_in_an_svg_is_round(tmp_path):
    (tmp_path/'a.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"><ellipse cx="9" cy="7" rx="40" ry="20"/></svg>')
    points = np.array(load_drawings(tmp_path/'a.svg')[0][0])
    assert np.allclose(((points-[127.5, 63.75])/[127.5, 63.75]).__pow__(2).sum(1), 1, atol=.01) and len(points) > 16


BAD = {
    'bomb.svg': '<!DOCTYPE svg [' + ''.join(f'<!ENTITY a{i+1} "{f"&a{i};"*10}">' for i in range(9))
    + '<!ENTITY a0 "x">]><svg>&a9;</svg>',
    'uses.svg': '<svg>' + ''.join(f'<g id="u{i}">{f"""<use href="#u{i+1}"/>"""*10}</g>' for i in range(12))
    + '<path id="u12" d="M0 0L1 1"/></svg>',
    'self.svg': '<svg><g id="a"><use href="#a"/></g></svg>',
    'one of several.svg': '<svg><switch><path d="M0 0L5 0"/></switch></svg>',
    'inner.svg': '<svg><path d="M0 0H9"/><svg x="60" y="70"><path d="M0 0h20v20"/></svg></svg>',
    'a rule behind.svg': '<svg><path fill="none" class="a" d="M0 0H9V9"/><style>.a{stroke:red}</style></svg>',
    'a share.svg': '<svg viewBox="0 0 9 9"><circle cx="30%" cy="5" r="4"/></svg>',
    'marked.svg': '<svg><style>.a{fill:none !important}</style><path class="a" d="M0 0H9V9"/></svg>',
    'colour.svg': '<svg><path fill="rgb(255 255 255)" d="M0 0H9V9"/></svg>',
    'other curve.svg': '<svg><path d="M0 0c50 0 50 0 100 0T100 100"/></svg>',
    'outside.svg': '<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
    'turned in words.svg': '<svg><path d="M0 0L9 0L9 9" transform="rotate(40)" transform-origin="center"/></svg>',
    'hidden from afar.svg': '<svg><style>#a path{display:none}</style><g id="a"><path d="M0 0L9 0"/></g></svg>',
    'broken path.svg': '<svg><path d="M 0 0 L 9 q"/></svg>',
    'too few numbers.svg': '<svg><path d="M0 0L50 50C90 10 20 30L30 90"/></svg>',
    'half an arc.svg': '<svg><path d="M0 0L9 9A10 10 0 0 1 5"/></svg>',
    'half a path.svg': '<svg><path d="M0 0L9 9L x 3"/></svg>',
    'turn.svg': '<svg><path transform="rotate(x)" d="M0 0L9 9"/></svg>',
    'no lines.svg': '<svg><text>hello</text></svg>',
    'one point.svg': '<svg><path d="M5 5L5 5"/></svg>',
    'huge.svg': '<svg><path d="M0 0L1e400 5"/></svg>',
    'nan.svg': '<svg><path d="M0 0LNaN 5"/></svg>',
    'no number.svg': '<svg><circle cx="nan" r="4"/><path d="M0 0L9 9"/></svg>',
    'less than nothing.svg': '<svg><rect width="-4" height="4"/><path d="M0 0L9 9"/></svg>',
    'text.svg': 'To be or not to be',
    'page.svg': '<html><body/></html>',
    'empty.svg': '',
    'one point.ndjson': '{"drawing":[[[5],[5]]]}\n'*9,
    'huge.ndjson': '{"drawing":[[[0,1e400],[0,5]]]}\n',
    'nan.ndjson': '{"drawing":[[[0,NaN],[0,5]]]}\n',
    'points.ndjson': '{"drawing":[[[0,1],[2,3],[4,5],[6,7]]]}\n',
    'overflow.ndjson': '{"drawing":[[[1e308,-1e308],[0,5]]]}\n',
    'blank.ndjson.gz': gzip.compress(b'\n'*20_000_000),
    'strings.ndjson': '{"drawing":[[["0"],["5"]]]}\n',
    'text.ndjson': 'To be or not to be\n',
    'deep.ndjson': '['*100_000,
    'empty.ndjson': '',
    'cut.ndjson.gz': gzip.compress(b'{"drawing":[[[0,1],[0,5]]]}\n'*2000)[:-20],
    'plain.ndjson.gz': '{"drawing":[[[0,1],[0,5]]]}\n',
}


@pytest.mark.parametrize('name', BAD)
def test_what_is_no_drawing_is_refused_in_one_sentence(tmp_path, capsys, name):
    (tmp_path/name).write_bytes(b if isinstance(b := BAD[name], bytes) else b.encode())
    with pytest.raises(CharRNNError): load_drawings(tmp_path/name)
    began = time.monotonic()
    status = main(['draw', str(tmp_path/name), '--run', str(tmp_path/'run'), '--steps', '1', '--quiet'])
    said = capsys.readouterr()
    assert status == 1 and said.err.count('\n') == 1 and said.out == '' and time.monotonic()-began < 60, said
    assert name in said.err or 'drawing' in said.err
    assert not (tmp_path/'run').exists()


def test_all_files_of_a_folder_that_are_no_drawings_are_named_at_once(tmp_path, capsys):
    for name in 'good', 'bad', 'empty': (tmp_path/f'{name}.svg').write_text('<svg><path d="M0 0L9 9"/></svg>')
    for name in 'bad', 'empty': (tmp_path/f'{name}.svg').write_text('')
    assert main(['draw', str(tmp_path), '--run', str(tmp_path/'run')]) == 1
    said = capsys.readouterr().err
    assert 'bad.svg is not an SVG file' in said and 'empty.svg; move them to another folder' in said and 'good' not in said


@pytest.mark.parametrize('shut', ['.', 'b'])
def test_folder_of_drawings_that_may_not_be_looked_into(shut):
    with tempfile.TemporaryDirectory() as d:
        for o in 'ab':
            Path(d, o).mkdir()
            Path(d, o, 'x.svg').write_text('<svg><path d="M0 0L9 9"/></svg>')
        Path(d).chmod(0o755)
        Path(d, shut).chmod(0)
        code = ("import os\nfrom charrnn_fa.text.drawings import load_drawings\n"
                "os.geteuid() or os.setresuid(65534, 65534, 65534)\n"
                f"try: print(len(load_drawings({d!r})))\nexcept ValueError as e: print(e)")
        r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        where = os.path.normpath(os.path.join(d, shut))
    assert f"'{where}' cannot be read (Permission denied)" in r.stdout, (r.stdout, r.stderr)


def test_a_text_is_no_drawings(tmp_path, capsys):
    (tmp_path/'hamlet.txt').write_text('To be, or not to be')
    for what in tmp_path/'hamlet.txt', tmp_path, 'pydocs', 'quickdraw:', 'quickdraw:../../x':
        assert main(['draw', str(what), '--run', str(tmp_path/'run')]) == 1
        assert capsys.readouterr().err.count('\n') == 1


@pytest.mark.parametrize('what,remedy', [
    ('https://example.org/face.svg', 'download it first'), ('https://example.org/data/face', 'download it first'),
    ('faces/*.svg', 'give the folder'), ('me.JPG', 'trace it to lines first')])
def test_what_is_no_drawing_has_a_way_out(what, remedy):
    with pytest.raises(CharRNNError, match=f'{re.escape(what)}.*{remedy}'): load_drawings(what)


@pytest.mark.parametrize('given', [['a.svg', 'b.svg'], (Path('a.svg'),)])
def test_names_of_files_are_no_drawings(given):
    for f in load_drawings, CharDataLoaders.from_drawings:
        with pytest.raises(CharRNNError, match='names of files, and no drawings; give the folder'): f(given)


@pytest.mark.parametrize('kind', [dict(requires_grad=True), dict(dtype=torch.bfloat16)], ids=['gradients', 'bf16'])
def test_drawings_held_in_tensors_are_drawings(kind):
    plain = [[[(0., 0.), (255., 128.), (8., 200.)], [(128., 128.)]]]*2
    held = [[torch.tensor(s, **kind) for s in d] for d in plain]
    same = lambda f: f(held) == f(plain)
    assert same(lambda ds: show.drawings(ds, corpus=ds).text)
    assert same(lambda ds: re.findall('<path.*?>', show.drawings(ds, corpus=ds, animate=True)._repr_html_()))
    assert same(lambda ds: braille(ds[0])) and same(lambda ds: nearest(ds, ds))
    assert same(lambda ds: simplify(ds[0])) and same(lambda ds: fit_drawing(ds[0]))
    assert same(lambda ds: augment(ds, 2)[len(ds):])


@pytest.mark.parametrize('given', [HOUSE, HOUSE[0]])
def test_one_list_too_few_is_said_to_be_one(drawer, given):
    "A drawing where drawings are asked for, and a stroke where a drawing is"
    for f in strokes_to_text, load_drawings, show.drawings:
        if given is HOUSE:
            with pytest.raises(CharRNNError, match=r'one list too few.*put \[ \] around'): f(given)
        else:
            with pytest.raises(CharRNNError, match='no list of strokes'): f(given)
    with pytest.raises(CharRNNError, match=r'one list too few.*put \[ \] around'): drawer.draw(1, begin=HOUSE[0])


def test_one_list_too_many_is_said_to_be_one(drawer):
    for f in lambda: drawer.draw(1, begin=[HOUSE]), lambda: show.drawings([[HOUSE]]), lambda: strokes_to_text([[HOUSE, HOUSE]]):
        with pytest.raises(CharRNNError, match=r'one list too many.*take one \[ \] away'): f()


def test_raw_files_are_brought_to_the_paper(tmp_path):
    (tmp_path/'raw.ndjson').write_text(json.dumps({'drawing':[[[1000.5, 1500.5], [200, 700], [0, 31]]]}))
    assert read_ndjson(tmp_path/'raw.ndjson')[0] == [[[(0, 0), (255, 255)]]]


@pytest.mark.parametrize('n', [-1, 0, 1.5, 'all'])
def test_a_number_of_drawings_that_is_none_is_refused(tmp_path, n):
    (tmp_path/'raw.ndjson').write_text(json.dumps({'drawing':[[[0, 9], [2, 7]]]}))
    with pytest.raises(CharRNNError, match='n is'): read_ndjson(tmp_path/'raw.ndjson', n)


# --- A class of QuickDraw

class Slow(BaseHTTPRequestHandler):
    lines = [json.dumps({'word':'cat', 'drawing':[[[0, i%256], [0, 255]]], 'key_id':str(i)*20}) for i in range(3000)]
    body = ('\n'.join(lines)+'\n').encode()
    asked,slow = [],True
    def log_message(self, *args): pass
    def do_GET(self):
        start = int(re.match(r'bytes=(\d+)-', self.headers.get('Range', 'bytes=0-'))[1])
        self.asked.append(start)
        self.send_response(206 if start else 200)
        self.send_header('ETag', '"x"')
        self.send_header('Content-Length', str(len(self.body)-start))
        self.end_headers()
        for i in range(start, len(self.body), 20_000):
            self.wfile.write(self.body[i:i+20_000])
            if self.slow: time.sleep(.2)


def test_a_class_of_quickdraw_comes_back_after_a_kill(tmp_path):
    "The process is killed in the middle; the next one asks for what is missing only, and has all drawings in order"
    Slow.asked.clear()
    server = ThreadingHTTPServer(('127.0.0.1', 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (f"import charrnn_fa.text.quickdraw as q; q.quickdraw_url = 'http://127.0.0.1:{server.server_port}'; "
            "ds = q.quickdraw('cat', 5000, False); print(len(ds), [d[0][1][0] for d in ds] == [i%256 for i in range(3000)])")
    env,kept = dict(os.environ, CHARRNN_HOME=str(tmp_path)),tmp_path/'quickdraw/cat.ndjson'
    try:
        first = subprocess.Popen([sys.executable, '-c', code], env=env)
        while not kept.exists() or kept.stat().st_size < 30_000: time.sleep(.05)
        first.send_signal(signal.SIGKILL)
        first.wait()
        had = kept.read_bytes()
        assert 0 < len(had) < len(Slow.body)
        Slow.slow = False
        out = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
        assert out.stdout == '3000 True\n', out.stderr
        assert Slow.asked == [0, had.rindex(b'\n')+1]
    finally:
        Slow.slow = True
        server.shutdown()
        server.server_close()


# --- Loaders

def test_no_twin_of_a_training_drawing_is_validated_on():
    "Each drawing has a number of strokes of its own, which no variation changes"
    ds = [[[(0, 10*i), (255, 10*i)] for i in range(1, k+1)] for k in range(1, 21)]
    dls = CharDataLoaders.from_drawings(ds, seed=5, times=7, valid_pct=.25, bs=2, seq_len=8)
    kinds = [[line.count(' ')+1 for line in dls.vocab.textify(o.ids).split('\n')[1:-1]] for o in dls.loaders]
    assert not {*kinds[0]} & {*kinds[1]} and {*kinds[0]} | {*kinds[1]} == {*range(1, 21)}
    assert sorted(kinds[0]) == sorted([*{*kinds[0]}]*7) and len(kinds[1]) == 5
    other = CharDataLoaders.from_drawings(ds, seed=6, times=7, valid_pct=.25, bs=2, seq_len=8)
    assert other.vocab.textify(other.valid.ids) != dls.vocab.textify(dls.valid.ids)


def test_the_same_seed_gives_the_same_corpus():
    ids = lambda seed: CharDataLoaders.from_drawings('faces', times=3, seed=seed).train.ids
    assert torch.equal(ids(1), ids(1)) and not torch.equal(ids(1), ids(2))


def test_of_few_drawings_it_is_said_how_they_become_many():
    few = [[[(0, i), (200, 255-i), (i, 30)]] for i in range(100)]
    with pytest.warns(TextWarning, match='90 drawings to train on are few.*times=110 draws'):
        CharDataLoaders.from_drawings(few, bs=2, seq_len=16, seed=1)
    with pytest.warns(TextWarning, match='450 drawings .*times=55 draws'):
        CharDataLoaders.from_drawings(few*5, bs=2, seq_len=16, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        CharDataLoaders.from_drawings(few, bs=2, seq_len=16, seed=1, times=1)
        CharDataLoaders.from_drawings(few*12, bs=2, seq_len=16, seed=1)
        CharDataLoaders.from_drawings('faces', bs=2, seq_len=16, n=12, seed=1)


def test_built_in_drawings_need_no_network(tmp_path):
    code = ("import socket; from charrnn_fa.text.drawings import load_drawings; socket.socket = None; "
            "print(len(load_drawings('faces', times=1)), len(load_drawings('letters', times=1)))")
    out = subprocess.run([sys.executable, '-c', code], env=dict(os.environ, CHARRNN_HOME=str(tmp_path)),
                         capture_output=True, text=True)
    assert out.stdout == '66 250\n', out.stderr


# --- A network that draws

@pytest.fixture(scope='module')
def drawer():
    "A small network that has seen a house often"
    dls = CharDataLoaders.from_drawings(augment([HOUSE], 60, seed=1, jitter=0, drop=0), bs=4, seq_len=32, seed=3, size=24)
    learn = char_learner(dls, n_hid=48, emb_sz=8, head_sz=0, precision='fp32', lr=1e-2)
    learn.remove_cbs(learn.progress)
    with learn.no_logging(): learn.fit_steps(300)
    return learn


def test_letters_of_drawings_are_no_words(drawer):
    "What writes words refuses a network that draws, and says how its drawings are seen"
    with pytest.raises(CharRNNError, match=r'draws.*show\.drawings\(learn\.draw\(16\)\)'): show.temperature(drawer)


def test_losses_per_drawing_and_point(drawer):
    "Against PyTorch's cross-entropy over the whole text"
    r,ids = drawer.evaluate(),drawer.dls.valid.ids.long()
    with torch.no_grad():
        total = F.cross_entropy(drawer.model.eval()(ids[None,:-1])[0][0].double(), ids[1:], reduction='sum').item()
    assert (r['nats_per_drawing'] == pytest.approx(total/6, rel=1e-5)
            and r['nats_per_point'] == pytest.approx(total/60, rel=1e-5))
    assert 'nats_per_drawing' in drawer.evaluate(text='\n0. 0.\n')


@pytest.mark.parametrize('text', ['hello to the\nworld of words', 'ABBA '*20, 'I.\n' + 'aa bb\n'*30, 'Ab\nAb\n', '\n'*9])
def test_a_text_that_is_no_drawings_is_not_measured(drawer, text):
    "Though its letters are those of drawings; what the network itself writes is measured, well-formed or not"
    with pytest.raises(CharRNNError, match='strokes_to_text'): drawer.evaluate(text=text)
    assert 'nats_per_drawing' in drawer.evaluate(text=drawer.generate('\n', 200, temperature=1, seed=1))


def test_draws_and_finishes(drawer):
    ds = drawer.draw(12, temperature=.3, seed=1)
    assert len(ds) >= 11 and np.mean([len(d) for d in ds]) == pytest.approx(2, abs=.5)
    assert drawer.draw(12, temperature=.3, seed=1) == ds != drawer.draw(12, temperature=.3, seed=2)
    walls, = text_to_strokes(strokes_to_text([HOUSE[:1]], 24), 24)
    for d in drawer.draw(3, seed=1, begin=HOUSE[:1]): assert d[0] == walls[0] and len(d) > 1


def test_a_drawing_is_counted_once(drawer):
    "One that is spelled wrong and cut as well"
    raw = char_learner(drawer.dls, n_hid=16)
    ds = raw.draw(20, temperature=5., seed=1, most=30)
    assert ds.repaired+ds.skipped <= 20 == len(ds)+ds.skipped


def test_loaders_of_drawings_need_one_import():
    code = ("from charrnn_fa.text.data import CharDataLoaders as C; "
            "print(C.from_drawings('letters', seed=1, times=1).strokes.size)")
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == '48\n'


def test_a_network_that_read_a_text_does_not_draw(learn):
    with pytest.raises(CharRNNError, match='from_drawings'): learn.draw()


def test_a_run_knows_how_its_strokes_are_written(drawer, tmp_path):
    save_run(drawer, tmp_path/'r')
    again = load_run(tmp_path/'r')
    assert again.dls.strokes == StrokeCode(24) and again.draw(3, seed=1) == drawer.draw(3, seed=1)
    settings = tmp_path/'r/run.json'
    good = json.loads(settings.read_text())
    for bad in dict(size=1), dict(size='x'), dict(siz=24), [24], dict(size=24, alphabet='ab'), dict(size=2.5):
        d = {**good, 'info':{**good['info'], 'strokes':bad}}
        settings.write_text(json.dumps({**d, 'sha256':digest(d)}))
        with pytest.raises(CharRNNError): Run(tmp_path/'r')
    settings.write_text(json.dumps({**good, 'sha256':digest(good)}))
    assert Run(tmp_path/'r').strokes == StrokeCode(24)


def test_what_is_drawn_shows_itself_in_a_notebook(drawer):
    from IPython.core.formatters import DisplayFormatter
    shown,_ = DisplayFormatter().format(drawer.draw(3, seed=1))
    assert shown['text/html'].count('<svg') == 3


def test_live_shows_drawings(drawer, capsys):
    drawer.fit_steps(6, cbs=show.Live(updates=2))
    assert len(re.findall('[\u2801-\u28ff]', capsys.readouterr().out)) > 50


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path) # a run that is called like what it draws
    line = ['draw', 'faces', '--run', 'faces', '--steps', '4', '-n', '3', '--seed', '2', '--json']
    assert main(line) == 0
    first = json.loads(capsys.readouterr().out)
    assert first['finished'] and first['steps'] == 4 and first['drawings'] <= 3 and 0 <= first['well_formed'] <= 1
    page = (tmp_path/'faces/drawings.html').read_text()
    assert main(line) == 0
    assert (json.loads(capsys.readouterr().out)['nats'] == first['nats']
            and (tmp_path/'faces/drawings.html').read_text().count('<svg') == page.count('<svg'))
    assert main(['draw', 'letters', '--run', 'faces']) == 1 and 'begun with faces' in capsys.readouterr().err
    assert main(['eval', 'faces', '--json']) == 0
    r = json.loads(capsys.readouterr().out)
    n = Run('faces').settings['text']['n_valid']
    # ten faces are never trained on
    assert r['nats_per_drawing'] > 10 and r['nats_per_drawing']/r['nats'] == pytest.approx((n-1)/10, rel=.01)
    (tmp_path/'words.txt').write_text('some words\n'*100)
    assert main(['eval', 'faces', '--corpus', 'words.txt']) == 1
    said = capsys.readouterr().err
    assert 'learned to draw' in said and 'leave --corpus out' in said and 'skip' not in said
    assert main(['draw', '--run', 'none']) == 1 and 'charrnn draw CORPUS' in capsys.readouterr().err
    assert main(['share', 'faces', 'page.html', '--prompt', 'x']) == 1 and 'leave --prompt out' in capsys.readouterr().err
    assert main(['share', 'faces', 'page.html']) == 0 and 'that draws' in (tmp_path/'page.html').read_text()


def test_the_command_makes_few_drawings_many(tmp_path, capsys):
    for i in range(12): (tmp_path/f'{i}.svg').write_text(f'<svg><path d="M0 0 L60 {i} L{5*i} 80 Z"/></svg>')
    line = ['draw', str(tmp_path), '--run', str(tmp_path/'run'), '--steps', '2', '-n', '1', '--times']
    assert main([*line, '0']) == 1 and 'times is 0' in capsys.readouterr().err
    assert main([*line, '20']) == 0 and 'are few' not in capsys.readouterr().err
    assert Run(tmp_path/'run').settings['text']['n_train'] > 1000
    assert main([*line, '21']) == 1 and 'begun with --times 20' in capsys.readouterr().err
    line = ['draw', 'faces', '--run', str(tmp_path/'usual'), '--steps', '1', '-n', '1', '--quiet']
    assert [main(o) for o in (line, [*line, '--times', '110'], [*line, '--times', '109'])] == [0, 0, 1]
    assert 'begun with --times 110; leave --times out' in capsys.readouterr().err


# --- Pictures and the page

def test_nearest_finds_a_twin_and_says_how_far():
    faces = load_drawings('faces', times=1)
    moved = [[[(x*.5+40, y*.7+20) for x,y in s] for s in d] for d in faces]
    assert [i for i,_ in show.nearest(moved, faces)] == [*range(66)]
    assert max(d for _,d in show.nearest(moved, faces)) < .05 < min(d for _,d in show.nearest([HOUSE], faces))


def test_a_sheet_says_what_it_leaves_out(tmp_path):
    p = show.drawings([HOUSE]*500)
    assert 'first 200 of 500' in str(p) and 'first 200 of 500' in p._repr_html_() and len(p._repr_html_()) < 200_000
    for kind in 'svg', 'png', 'html', 'txt': assert p.save(tmp_path/f'a.{kind}').stat().st_size > 500


def test_a_saved_sheet_has_the_nearest_beside_each(tmp_path):
    faces = load_drawings('faces', times=1)[:4]
    plain,near = (show.drawings(faces[:2], o).save(tmp_path/f'{bool(o)}.svg').read_text() for o in (None, faces))
    assert 'stroke: #2680d6' in near and 'stroke: #2680d6' not in plain
    assert 'In blue' in near and 'In blue' not in plain # as a comment beside the letters' outlines, or as text
    assert near.count('<path') > 1.8*plain.count('<path')
    assert 'background:#181818' in near # in dark it stands alone


@pytest.fixture
def page(browser, drawer, tmp_path):
    "The shared page of a network that draws, at a phone's size, offline; nothing may be asked for or complained of"
    path,bad,seen = share(drawer, tmp_path/'page.html'),[],[]
    c = browser.new_context(offline=True, viewport=dict(width=390, height=800), has_touch=True)
    p = c.new_page()
    p.on('console', lambda o: bad.append(o.text))
    p.on('pageerror', lambda o: bad.append(str(o)))
    p.on('request', lambda o: seen.append(o.url))
    p.goto(path.as_uri())
    p.locator('#status', has_text='12 drawings').wait_for()
    yield p
    if shots := os.environ.get('CHARRNN_SHOTS'): p.screenshot(path=f'{shots}/draw.png', full_page=True)
    c.close()
    assert bad == [] and len(seen) == 1


def test_the_page_draws_what_python_draws(page, drawer):
    model = page_model(drawer)
    saved,drawer.model = drawer.model,model
    try:
        for begin in None, HOUSE[:1]:
            want = drawer.draw(1, temperature=.6, seed=9, begin=begin)[0]
            line = page.evaluate('([s, o]) => charrnn.line(s, o)', [begin or [], dict(seed='9', temperature=.6)])
            assert text_to_strokes(line, 24)[0] == want == [[tuple(p) for p in s]
                                                            for s in page.evaluate('s => charrnn.toStrokes(s)', line)]
    finally: drawer.model = saved
    assert page.evaluate('s => charrnn.toText(s)', HOUSE) == strokes_to_text([HOUSE], 24).rstrip('\n')


def test_the_page_makes_a_drawing_smaller_as_python_does(page):
    "Halves were rounded up there, and to the even number here"
    xs,ys = (dict(zip(range(-23, 24), o)) for o in StrokeCode(24).letters)
    line = ''.join(xs[o]+ys[o] for o in (0, 23, 23, -21)) # to 0, 23, 46 and 25, of which the paper has half
    (want,), = text_to_strokes(line, 24)
    assert want[-1] == (133, 133)
    assert page.evaluate('s => charrnn.toStrokes(s)', line) == [[list(p) for p in want]]


def test_the_page_finishes_what_a_hand_begins(page):
    assert page.locator('#sheet svg').count() == 12 and page.text_content('#finish') == 'Draw'
    r = page.locator('#pad').bounding_box()
    page.mouse.move(r['x']+20, r['y']+r['height']-20)
    page.mouse.down()
    for k in range(20): page.mouse.move(r['x']+20, r['y']+r['height']-20-k*8)
    page.mouse.up()
    assert page.locator('#pad path').count() == 1 and page.text_content('#finish') == 'Finish it'
    assert len(page.get_attribute('#pad path', 'd').split()) < 12          # a straight line has two ends
    page.fill('#seed', '5')
    page.click('#finish')
    page.locator('#status', has_text='The network drew').wait_for()
    assert page.locator('#pad path.new').count() >= 1 and page.locator('#pad path:not(.new)').count() == 1
    page.click('#undo')
    assert page.locator('#pad path').count() == 0 and page.text_content('#finish') == 'Draw'
    assert page.evaluate('document.documentElement.scrollWidth') <= 390


def test_the_page_keeps_what_runs_off_the_paper_on_the_pad(page):
    r = page.locator('#pad').bounding_box()
    page.mouse.move(r['x']+r['width']-3, r['y']+r['height']-3)
    page.mouse.down()
    page.mouse.move(r['x']+9, r['y']+r['height']-3)
    page.mouse.up()
    last = page.evaluate("JSON.parse(document.getElementById('spec').textContent).points.map(o => String.fromCodePoint(o))")
    far = [last.index(stroke_letters(24)[46]), last.index(stroke_letters(24)[-1])]
    page.evaluate('o => { charrnn.write = function* () { for (let i = 0; i < 8; i++) yield {id: o[i % 2]}; }; }', far)
    page.click('#finish')
    page.locator('#status', has_text='The network drew').wait_for()
    for o in page.locator('#pad path').all():
        b = o.bounding_box()
        assert b['x'] >= r['x']-1 and b['x']+b['width'] <= r['x']+r['width']+1 and b['y']+b['height'] <= r['y']+r['height']+1


def test_the_page_with_a_wrong_seed_and_a_hasty_hand(page):
    page.fill('#seed', 'abc')
    for o in '#finish', '#more':
        page.click(o)
        page.locator('#status', has_text='whole number').wait_for()
    page.fill('#seed', '')
    for _ in range(4): page.evaluate("document.getElementById('more').click()")
    page.locator('#status', has_text='12 drawings').wait_for()
    page.wait_for_timeout(300)
    assert page.locator('#sheet svg').count() == 12
    page.locator('#pad').click(button='right')
    assert page.locator('#pad path').count() == 0


def test_what_a_network_that_draws_cannot_use_is_refused(drawer, tmp_path):
    "A prompt and a unit to colour by were left out in silence"
    for asked in dict(prompt='A face'), dict(unit=3):
        with pytest.raises(CharRNNError, match=f'leave {next(iter(asked))} out'): drawer.share(tmp_path/'p.html', **asked)
    with pytest.raises(CharRNNError, match='leave the prompt out'): model_card(drawer, prompt='A face')
    for live in show.Live('A face'), show.Live(prompt='A face', n=9):
        with pytest.raises(CharRNNError, match='leave the prompt out, as in show.Live()'): drawer.fit_steps(2, cbs=live)
    for prompt in 5, None, ['A'], b'A':
        for f in lambda: model_card(drawer, prompt=prompt), lambda: show.Live(prompt):
            with pytest.raises(CharRNNError, match='^prompt is .* must be a string'): f()
    assert not os.listdir(tmp_path)


def test_what_a_drawing_run_is_told_names_the_command_that_draws(drawer, tmp_path, capsys):
    "A folder of it is no text; what is found on the way has options of `charrnn draw`"
    run = save_run(drawer, tmp_path/'r', n_steps=300)
    with pytest.raises(CharRNNError, match='go on with it: charrnn draw --run'): load_corpus(run.path)
    assert main(['doctor', str(run.path), '--json']) == 0
    fixes = {o['id']:o['fix'] for o in json.loads(capsys.readouterr().out)['findings']}
    fixes.update({k:f'charrnn draw faces --run x {v}' for k,v in _as_options_to_draw(1e-3).items()})
    assert 'O13' in fixes, fixes
    for o in fixes.values():
        assert o.startswith('charrnn draw '), o
        parser().parse_args(shlex.split(o.split('#')[0])[1:])


def test_a_drawing_run_that_went_astray_is_mended_by_options_of_draw(drawer, tmp_path, capsys, monkeypatch):
    "`charrnn draw` has no rate; each command that is named is one that the parser takes"
    learn = char_learner(drawer.dls, n_hid=8, emb_sz=8, head_sz=0, precision='fp32')
    with torch.no_grad(): learn.model.decoder.bias[0] = float('nan')
    run = save_run(learn, tmp_path/'r', n_steps=3)
    assert main(['doctor', str(run.path), '--json']) == 0
    fix = json.loads(capsys.readouterr().out)['findings'][0]['fix']
    parser().parse_args(fix.split('#')[0].split()[1:])
    for line in ['draw', '--run', str(run.path)], ['sample', str(run.path)]:
        assert main(line) == 1
        assert '--lr' not in capsys.readouterr().err
    learn = char_learner(drawer.dls, n_hid=8, emb_sz=8, head_sz=0, precision='fp32')
    run = Run(tmp_path/'s', char_settings(learn))
    run.create(kept_text(learn), weights(learn.model), {}, step=0, epoch=0)
    (run.path/run.save(weights(learn.model), {}, step=3, epoch=0, finished=True).file).write_bytes(b'')
    with pytest.raises(CharRNNError, match='charrnn draw --run'): run.newest_whole()
    def lacks(args): raise MemoryError
    monkeypatch.setattr('charrnn_fa.cli._run', lacks)
    for line in ['draw', 'faces', '--run', 'x'], ['sample', 'x'], ['train', 'count', '--run', 'x']:
        assert main(line) == 1
        said = capsys.readouterr().err
        for o in re.findall('--[a-z-]+', said): parser().parse_args([*line, o, '1'])


def test_letters_of_an_svg_that_are_left_out_are_told(tmp_path):
    "They were left out without a word, where the file has lines too"
    lines = '<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0L9 9"/>{}</svg>'
    for i in range(4): (tmp_path/f'{i}.svg').write_text(lines.format('<text y="9">A</text>'*(i > 1)))
    with pytest.warns(TextWarning, match='2.svg and 1 other file.*Object to Path'): load_drawings(tmp_path)
    with pytest.warns(TextWarning, match='^3.svg: letters'): load_drawings(tmp_path/'3.svg')


def test_what_an_svg_hides_and_a_pen_draws_is_told(tmp_path):
    "A clipping path was not heeded, and nothing said so; the one of the whole paper hides nothing"
    file = '<svg xmlns="http://www.w3.org/2000/svg"><clipPath id="c">{}</clipPath><path clip-path="url(#c)" d="M0 0L9 9"/></svg>'
    for name,o in ('paper', '<rect width="24" height="24"/>'),('round', '<circle r="4"/>'):
        (tmp_path/f'{name}.svg').write_text(file.format(o))
    with pytest.warns(TextWarning, match='^round.svg: what is hidden by a clipping path'): load_drawings(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_drawings(tmp_path/'paper.svg')


def test_an_exported_network_still_draws(drawer, tmp_path):
    "`export` keeps loaders without a text; they said no more how drawings are written"
    path,drawer.path = drawer.path,tmp_path
    try: drawer.export()
    finally: drawer.path = path
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_learner(tmp_path/'export.pkl')
    assert loaded.dls.times == drawer.dls.times
    assert loaded.draw(2, seed=1, most=200) == drawer.draw(2, seed=1, most=200)
