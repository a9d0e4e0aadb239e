"Drawings against an independent reading of their text, real files, and the page that draws in a real browser"
import gzip
import json
import os
import shlex

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from charrnn_fa import show
from charrnn_fa.cli import main
from charrnn_fa.command.train import _as_options
from charrnn_fa.errors import CharRNNError
from charrnn_fa.learner import char_learner
from charrnn_fa.run.hub import model_card
from charrnn_fa.run.files import digest
from charrnn_fa.command.options import parser
from charrnn_fa.run.model import Run, load_run, save_run
from charrnn_fa.show.share import page_model, share
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.text.drawings import augment, load_drawings
from charrnn_fa.text.strokes import StrokeCode, stroke_letters, strokes_to_text, text_to_strokes

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


# --- Files

SVGS = {
    'line': ('<line x1="10" y1="10" x2="30" y2="50"/>', [[(0, 0), (127.5, 255)]]),
    'moved, scaled, turned': ('<g transform="translate(7 3) scale(2)"><path transform="rotate(90)" d="M0 0H20V10"/></g>',
                              [[(127.5, 0), (127.5, 255), (0, 255)]]),
    'two parts': ('<path d="m0 0 l0 4 m4 0 l0 -4"/>', [[(0, 0), (0, 255)], [(255, 255), (255, 0)]]),
    'on from where it was closed': ('<path d="M0 0H40V40ZL80 80V100"/>',
                                    [[(0, 0), (102, 0), (102, 102), (0, 0)], [(0, 0), (204, 204), (204, 255)]]),
    'dots of a round pen': ('<g fill="none" stroke="#000" stroke-linecap="round"><path d="M0 0H50V50"/>'
                            '<path d="M10 10L10 10M20 20"/><line x1="10" y1="20" x2="10" y2="20"/></g>',
                            [[(0, 0), (255, 0), (255, 255)], [(51, 51)], [(51, 102)]])}
SIZES = ['width="100mm" height="100mm" viewBox="0 0 100 100"', 'width="1em" height="1em" viewBox="0 0 24 24"',
         'width="auto" height=""', 'viewBox="0-24 24 48"']


def svg(path, body, head=''):
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {head}>{body}</svg>')
    return path


@pytest.mark.parametrize('name', SVGS)
def test_svg(tmp_path, name):
    "However large it is shown"
    body,want = SVGS[name]
    for head in SIZES:
        (got,) = load_drawings(svg(tmp_path/'a.svg', body, head))
        assert [len(s) for s in got] == [len(s) for s in want]
        assert np.allclose(np.concatenate(got), np.concatenate(want), atol=.02)


BAD = {
    'bomb.svg': '<!DOCTYPE svg [<!ENTITY a "x"><!ENTITY b "&a;&a;&a;">]><svg>&b;</svg>',
    'uses.svg': '<svg><g id="a"><use href="#a"/></g></svg>',
    'outside.svg': '<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
    'one point.svg': '<svg><path d="M5 5L5 5"/></svg>', 'huge.svg': '<svg><path d="M0 0L1e400 5"/></svg>',
    'text.svg': 'To be or not to be', 'page.svg': '<html><body/></html>', 'empty.svg': '',
    'nan.ndjson': '{"drawing":[[[0,NaN],[0,5]]]}\n', 'strings.ndjson': '{"drawing":[[["0"],["5"]]]}\n',
    'deep.ndjson': '['*100_000, 'empty.ndjson': '', 'blank.ndjson.gz': gzip.compress(b'\n'*20_000_000),
    'cut.ndjson.gz': gzip.compress(b'{"drawing":[[[0,1],[0,5]]]}\n'*2000)[:-20],
    'hamlet.txt': 'To be, or not to be', 'me.JPG': '?', 'folder/hamlet.txt': 'To be, or not to be'}


@pytest.mark.parametrize('name', BAD)
def test_what_is_not_a_drawing_is_refused_in_one_sentence(tmp_path, capsys, name):
    path = tmp_path/name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b if isinstance(b := BAD[name], bytes) else b.encode())
    what = path.parent if 'folder' in name else path
    with pytest.raises(CharRNNError): load_drawings(what)
    assert main(['draw', str(what), '--run', str(tmp_path/'run'), '--steps', '1', '--quiet']) == 1
    said = capsys.readouterr()
    assert said.err.count('\n') == 1 and said.out == '' and what.name in said.err, said
    assert not (tmp_path/'run').exists()


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


# --- A network that draws

@pytest.fixture(scope='module')
def drawer():
    "A small network that has seen a house often"
    dls = CharDataLoaders.from_drawings(augment([HOUSE], 60, seed=1, jitter=0, drop=0), bs=4, seq_len=32, seed=3, size=24)
    learn = char_learner(dls, n_hid=48, emb_sz=8, head_sz=0, precision='fp32', lr=1e-2)
    learn.remove_cbs(learn.progress)
    with learn.no_logging(): learn.fit_steps(300)
    return learn


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


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path) # a run that is called like what it draws
    line = ['draw', 'faces', '--run', 'faces', '--steps', '4', '-n', '3', '--times', '2', '--seed', '2', '--json']
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


# --- Pictures and the page


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
    page.locator('#status', has_text='The model drew').wait_for()
    assert page.locator('#pad path.new').count() >= 1 and page.locator('#pad path:not(.new)').count() == 1
    page.click('#undo')
    assert page.locator('#pad path').count() == 0 and page.text_content('#finish') == 'Draw'
    assert page.evaluate('document.documentElement.scrollWidth') <= 390


def test_what_a_network_that_draws_cannot_use_is_refused(drawer, tmp_path):
    "A prompt and a unit to colour by were left out in silence"
    for asked in dict(prompt='A face'), dict(unit=3):
        with pytest.raises(CharRNNError, match=f'leave {next(iter(asked))} out'): drawer.share(tmp_path/'p.html', **asked)
    with pytest.raises(CharRNNError, match='leave the prompt out'): model_card(drawer, prompt='A face')
    with pytest.raises(CharRNNError, match='leave the prompt out'): drawer.fit_steps(2, cbs=show.Live('A face'))
    assert not os.listdir(tmp_path)


def test_what_a_drawing_run_is_told_names_the_command_that_draws(drawer, tmp_path, capsys):
    "A folder of it is no text; what is found on the way has options of `charrnn draw`"
    run = save_run(drawer, tmp_path/'r', n_steps=300)
    with pytest.raises(CharRNNError, match='go on with it: charrnn draw --run'): load_corpus(run.path)
    assert main(['doctor', str(run.path), '--json']) == 0
    fixes = {o['id']:o['fix'] for o in json.loads(capsys.readouterr().out)['findings']}
    fixes.update({k:f'charrnn draw faces --run x {v}' for k,v in _as_options(1e-3, 'drawings-minute').items()})
    assert 'O13' in fixes, fixes
    for o in fixes.values():
        assert o.startswith('charrnn draw '), o
        parser().parse_args(shlex.split(o.split('#')[0])[1:])
