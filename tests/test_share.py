"""The shared page in a real browser, from a file and without a network: it writes what Python writes with the
page's weights, and nothing in it runs but the network"""
import json
import math
import re

import numpy as np
import pytest
import torch

from charrnn_fa.generate import draw, generate
from charrnn_fa.show.neurons import Found
from charrnn_fa.show.picture import script_json
from charrnn_fa.show import quantize
from charrnn_fa.show.quantize import measured, page_model
from charrnn_fa.show.share import share
from charrnn_fa.text.data import CharDataLoaders


@pytest.fixture
def visit(browser, tmp_path):
    "Share a Learner and open the page, offline; in the end nothing was asked for but the file, and nothing was complained of"
    seen,contexts,bad = [],[],[]
    def _visit(learn, context={}, **kwargs):
        path = share(learn, tmp_path/f'page{len(contexts)}.html', **{'unit':0, **kwargs})
        contexts.append(c := browser.new_context(offline=True, **context))
        page = c.new_page()
        page.on('request', lambda o: seen.append(o.url))
        page.on('console', lambda o: bad.append(o.text))
        page.on('pageerror', lambda o: bad.append(str(o)))
        page.goto(path.as_uri())
        done(page)
        return page
    yield _visit
    for c in contexts: c.close()
    assert bad == [] and len(seen) == len(contexts) and all(o.startswith('file://') for o in seen)


def done(page): page.locator('#status', has_text='Wrote').wait_for()


def write(page, prompt, **given):
    "What the page shows after a click"
    for k,v in dict(prompt=prompt, **given).items(): page.fill(f'#{k}', str(v))
    page.evaluate("document.getElementById('status').textContent = ''")
    page.click('#write')
    done(page)
    return page.text_content('#text')


@pytest.fixture
def bold(make):
    "A Learner whose network is not trained, but has opinions"
    def _bold(**kwargs):
        learn = make(**kwargs)
        with torch.no_grad(): learn.model.decoder.weight.mul_(6)
        return learn
    return _bold


def in_page(page, prompt, n, seed, temperature):
    return page.evaluate('([p, n, o]) => charrnn.text(p, n, o)', [prompt, n, dict(seed=seed, temperature=temperature)])


def in_python(model, learn, prompt, n, seed, temperature):
    return generate(model, learn.vocab, prompt, n, seed=seed, temperature=temperature)[len(prompt):]


def probabilities(model, learn, prompt):
    with torch.no_grad(): return model(learn.vocab.encode(prompt)[None])[0][0,-1].double().softmax(-1)


def same_as_python(page, learn):
    "Text and probabilities"
    model,prompt = page_model(learn),'Print the value of'
    got = torch.tensor(page.evaluate('o => charrnn.next(o)', prompt), dtype=torch.float64)
    off,off_unrounded = [(got-probabilities(o.eval(), learn, prompt)).abs().max() for o in (model, learn.model)]
    assert off < 1e-5 and off < off_unrounded/2                       # so that the test would notice other weights
    for request in [(prompt, 400, 7, .8), ('', 100, 2**40+1, 1.5), ('x', 60, 1, 0)]:
        assert in_page(page, *request) == in_python(model, learn, *request)


SHAPES = dict(lstm={}, two=dict(n_layers=2, head_sz=20), gru_two=dict(arch='gru', n_layers=2),
              one_hot_rnn=dict(arch='rnn', emb_sz=0, head_sz=5), tied=dict(emb_sz=16, tie=True),
              tied_head=dict(emb_sz=9, head_sz=9, tie=True, arch='gru'), odd=dict(n_hid=13, emb_sz=3))


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES.keys())
def test_writes_what_python_writes(bold, visit, shape):
    learn = bold(**shape)
    same_as_python(visit(learn), learn)


@pytest.mark.parametrize('shape', [dict(head_sz=20), dict(arch='rnn', emb_sz=0, n_layers=2)], ids=['head', 'one_hot'])
def test_int8(bold, visit, shape, monkeypatch):
    monkeypatch.setattr(quantize, 'most_half', 0)
    learn = bold(**shape)
    page = visit(learn)
    same_as_python(page, learn)
    page.click('summary')
    assert 'int8 with one scale for each row' in page.inner_text('details')


def test_random_numbers_are_those_of_torch(learn, visit):
    "To the bit, over several renewals of the generator"
    page = visit(learn)
    for seed in 0, 1, 5489, 2**32+5, 2**62-1:
        got = page.evaluate('s => { const u = charrnn.uniforms(s); return Array.from({length: 1000}, u); }', str(seed))
        assert got == torch.rand(1000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    for w,u in ([0, .5, .5], 0), ([0, .5, .5], .5), ([.25, 0, .75], .25), ([1, 1, 0], .9999), ([3], .2):
        assert page.evaluate('([w, u]) => charrnn.draw(w, u)', [w, u]) == draw(np.array([w]), np.array([u]))[0]


def test_error_function(learn, visit):
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    got = visit(learn).evaluate('xs => xs.map(charrnn.erf)', x.tolist())
    assert (torch.tensor(got, dtype=torch.float64)-x.erf()).abs().max() < 1e-9


def test_what_is_seen(bold, visit):
    "The form's text on the page, its colours against bits and states that PyTorch gives, and what is said of a character"
    learn = bold(n_layers=2)
    page,model = visit(learn, unit=Found('made up', 'cell 5 of layer 2', .9, .8)),page_model(learn)
    text = write(page, 'class A:\n', length=120, seed=11)
    assert text == 'class A:\n' + in_python(model, learn, 'class A:\n', 120, 11, .8)
    with torch.no_grad():
        ids = learn.vocab.encode(text)[None]
        bits = -model(ids)[0][0].double().log_softmax(-1)[range(len(text)-1), ids[0,1:]]/math.log(2)
        states = [[o[1,0,5].item() for o in model(ids[:,:i+1])[1]] for i in range(len(text))]
    cells = [math.tanh(c) for _,c in states]
    shades = lambda: [[float(v) for v in re.findall(r'[\d.]+', o)] for o in page.eval_on_selector_all(
        '#text span', 'os => os.map(o => getComputedStyle(o).backgroundColor)')]
    alpha = lambda o: o[3] if len(o) == 4 else 1
    assert all(abs(alpha(o)-.8*min(1, b/8)) < .01 for o,b in zip(shades()[1:], bits.tolist(), strict=True))
    assert max(map(alpha, shades())) > .5
    page.check('#by-unit')
    assert all(abs(alpha(o)-.8*abs(v)) < .012 for o,v in zip(shades(), cells, strict=True))
    assert (all((o[0] > o[2]) == (v > 0) for o,v in zip(shades(), cells) if abs(v) > .05)
            and {v > 0 for v in cells} == {True, False})
    assert page.text_content('#unit-name') == 'cell 5 of layer 2 follows “made up” (correlation +0.80 on new text)'
    page.select_option('#kind', 'state')
    assert (all(abs(alpha(o)-.8*abs(h)) < .012 for o,(h,_) in zip(shades(), states, strict=True))
            and page.text_content('#unit-name') == '')
    page.locator('#text span').nth(3).hover()
    assert page.text_content('#detail').startswith(f'‘{text[3]}’  state 5: {states[3][0]:.2f}. '
                                                   f'{bits[2]:.1f} bits'.replace('-0.00', '0.00'))


def test_hostile_words_stay_words(text, visit, make, tmp_path):
    "In the vocabulary, the prompt, the title, what it read, the name of a unit"
    evil = '</script><script>document.title = "gone"</script><img src=x onerror=alert(1)><!-- ]]> $net \u2028 & &lt;'
    learn = make(CharDataLoaders.from_text(text+evil*3+'\ud800😀', bs=4, seq_len=16, seed=7, path=tmp_path, device='cpu'))
    page = visit(learn, title=evil, about=evil, prompt=evil, unit=Found(evil, 'state 1', .5, .5))
    assert page.evaluate('document.title').split() == evil.split() and page.text_content('h1') == evil
    assert (page.input_value('#prompt') == evil and page.text_content('#text').startswith(evil)
            and evil in page.text_content('#unit-name'))
    assert page.locator('img').count() == 0 and page.locator('script').count() == 4
    assert '<' not in script_json([evil]) and json.loads(script_json([evil])) == [evil]
    assert in_page(page, evil, 300, 3, 2) == in_python(page_model(learn), learn, evil, 300, 3, 2)


def test_unknown_characters(learn, visit):
    page = visit(learn)
    text = write(page, 'aé日😀b', length=40, seed=2)
    assert text == 'ab' + in_python(page_model(learn), learn, 'ab', 40, 2, .8)
    said = page.text_content('#unknown')
    assert all(o in said for o in 'é日😀') and 'left out' in said
    assert (write(page, '日', length=9, seed=2) == in_python(page_model(learn), learn, '', 9, 2, .8)
            and '日' in page.text_content('#unknown'))
    write(page, 'a\u200d\u0301', length=9)                            # what is not seen by itself has a number
    assert all(o in page.text_content('#unknown') for o in ('U+200D', 'U+0301'))
    write(page, 'ab', length=9)
    assert page.text_content('#unknown') == ''


def test_a_symbol_for_what_is_rare(text, visit, make, tmp_path):
    "Unknown characters are read as that symbol, which is never written, as in Python"
    learn = make(CharDataLoaders.from_text(text+'é', min_freq=3, bs=4, seq_len=16, seed=7, path=tmp_path, device='cpu'))
    with torch.no_grad(): learn.model.decoder.bias[learn.vocab.stoi[learn.vocab.unk]] = 3.
    page = visit(learn)
    got = write(page, 'aéb', length=300, seed=4)
    assert got == f'a{learn.vocab.unk}b' + in_python(page_model(learn), learn, 'aéb', 300, 4, .8)
    assert 'read as' in page.text_content('#unknown') and learn.vocab.unk not in got[3:]


def test_stop(learn, visit):
    "By keyboard, within a text that comes slowly; then it writes anew"
    page = visit(learn)
    page.check('#slowly')
    page.fill('#length', '5000')
    page.press('#prompt', 'Enter')
    page.locator('#text span').nth(5).wait_for()
    page.press('#stop', 'Enter')
    page.locator('#status', has_text='Stopped after').wait_for()
    n = len(page.text_content('#text'))
    page.wait_for_timeout(100)
    assert 5 < n < 5000 and len(page.text_content('#text')) == n
    page.uncheck('#slowly')
    assert len(write(page, 'a', length=30)) == 31


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_phone(learn, visit, scheme):
    "No way to scroll sideways, whatever is in it; a finger can tap a character; light and dark"
    phone = dict(viewport=dict(width=390, height=844), is_mobile=True, has_touch=True, color_scheme=scheme)
    page = visit(learn, phone, title='A'*200, about='b'*300, unit=Found('c'*100, 'state 0', .5, .5))
    write(page, 'a'*3000, length=500)
    page.check('#by-unit')
    page.click('summary')
    assert not page.locator('#layer').is_visible()                    # of one layer there is nothing to choose
    assert page.evaluate('[document.documentElement.scrollWidth, innerWidth]') == [390, 390]
    paper = lambda: page.evaluate("getComputedStyle(document.getElementById('detail')).backgroundColor")
    assert paper() == 'rgba(0, 0, 0, 0)' and 'tap' in page.text_content('#text-help') # nothing covers the text before
    page.locator('#text span').first.tap()
    assert page.text_content('#detail').startswith('‘a’') and page.locator('#detail').is_visible()
    assert paper() != 'rgba(0, 0, 0, 0)'
    page.check('#by-surprise')
    assert 'Pale' not in page.text_content('#key-words') # as nothing is in the dark
    light = lambda what: sum(map(int, re.findall(r'\d+', page.evaluate(f'getComputedStyle(document.body).{what}'))[:3]))
    assert ((light('backgroundColor') > 600 > 200 > light('color')) if scheme == 'light'
            else (light('backgroundColor') < 200 < 600 < light('color')))


def test_the_one_minute_preset_fits(text, visit, make, tmp_path):
    dls = CharDataLoaders.from_text(text, path=tmp_path, seed=7, device='cpu')
    learn = make(dls, preset='cpu-minute', n_hid=256, emb_sz=64, head_sz=384)
    page = visit(learn, unit=None)                                    # which a search finds
    assert page.text_content('#unit-name').count(' follows ')
    assert (tmp_path/'page0.html').stat().st_size < 1.5e6
    assert abs(measured(learn, page_model(learn))['cost']) < .002
    same_as_python(page, learn)
    assert page.evaluate('charrnn.bench(50)') > 0
