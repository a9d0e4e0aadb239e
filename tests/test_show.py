"Pictures in a real browser and against numbers of PyTorch's: static, self-contained, safe, and answering to pointer and keys"
import base64
import copy
import math
import os
import re
import signal
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.optimizer import Adam

from charrnn_fa import show
from charrnn_fa.checkpoint import Checkpoint
from charrnn_fa.core import CharRNNError
from charrnn_fa.learner import char_learner
from charrnn_fa.loop import CharLearner
from charrnn_fa.run.model import Run, load_run, save_run
from charrnn_fa.show.lens import moments_of
from charrnn_fa.show.share import share
from charrnn_fa.text.data import CharDataLoaders

LINE = 'ROMEO:\nSay "no", or go.\n\n'
NASTY = 'Say </script><script>document.title = "bad"</script><img src=x onerror="document.title=\'bad\'"> "no"\n'


@pytest.fixture(scope='module')
def trained():
    "A small network that has seen one line often, and the watch that read along"
    text = (LINE + NASTY)*24
    learn = char_learner(CharDataLoaders.from_text(text, bs=4, seq_len=32, seed=3), n_hid=32, emb_sz=8,
                         head_sz=0, precision='fp32')
    learn.remove_cbs(learn.progress)
    watch = show.Watch(NASTY, share=1)
    learn.fit_steps(90, cbs=watch)
    return learn,watch


PICTURES = dict(
    surprise=lambda learn, watch: show.surprise(learn, NASTY),
    neurons=lambda learn, watch: show.neurons(learn, NASTY),
    memory=lambda learn, watch: show.memory(learn, NASTY, n=20),
    losses=lambda learn, watch: show.losses(learn),
    temperature=lambda learn, watch: show.temperature(learn, 'Say </script>', (.3, 1.), n=40),
    lens=lambda learn, watch: show.lens(learn, NASTY, watch),
)


@pytest.fixture(scope='module')
def pictures(trained): return {k:f(*trained) for k,f in PICTURES.items()}


@pytest.mark.parametrize('name', PICTURES)
def test_a_picture_is_static_and_alone(pictures, name):
    "It names no address, and two renderings of it share no id"
    p = pictures[name]
    a,b = p._repr_html_(),p._repr_html_()
    # names of SVG's own
    addresses = [o for o in re.findall(r'https?://[^\s"<)]+', a) if not o.startswith('http://www.w3.org/')]
    assert addresses == [] and not re.search(r'<(script|img|link|iframe)[^>]+(src|href)=', a)
    ids = [re.findall(r'\bid="([^"]+)"', o) for o in (a, b)]
    assert ids[0] and len({*ids[0], *ids[1]}) == len(ids[0])+len(ids[1])
    assert str(p).strip() and '<div' not in str(p)


@pytest.fixture
def visit(browser, tmp_path):
    "A picture as a page of its own, without a network; nothing may be asked for or complained of"
    bad,contexts = [],[]
    def _visit(picture, **context):
        path = picture.save(tmp_path/f'{len(contexts)}.html')
        contexts.append(c := browser.new_context(offline=True, **context))
        page = c.new_page()
        page.on('console', lambda o: bad.append(o.text))
        page.on('pageerror', lambda o: bad.append(str(o)))
        page.on('request', lambda o: bad.append(o.url) if o.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page
    yield _visit
    for c in contexts: c.close()
    assert bad == []


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('name', PICTURES)
def test_a_picture_fits_a_phone_and_runs_no_text(pictures, visit, name, scheme):
    "In light and dark; its ink is not that of the paper"
    page = visit(pictures[name], color_scheme=scheme, viewport=dict(width=390, height=800))
    assert page.title() == pictures[name].title
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    ink = page.evaluate("getComputedStyle(document.querySelector('.charrnn')).color")
    assert ink == dict(light='rgb(0, 0, 0)', dark='rgb(255, 255, 255)')[scheme]


def test_blanks_stay_within_a_picture(trained, visit):
    page = visit(show.surprise(trained[0], LINE + ' '*200 + LINE), viewport=dict(width=390, height=800))
    right = """[...document.querySelectorAll('.charrnn .t i')].filter(o => o.textContent == ' ')
               .map(o => o.getBoundingClientRect().right)"""
    assert len(ends := page.evaluate(right)) >= 200 and max(ends) <= 380 # within the margin


LETTERS = """[...document.querySelectorAll('svg text')].map(
    o => Math.hypot(o.getScreenCTM().a, o.getScreenCTM().b)*parseFloat(getComputedStyle(o).fontSize))"""


@pytest.mark.parametrize('name', ['memory', 'losses'])
def test_the_letters_of_a_figure_can_be_read_on_a_phone(pictures, visit, name):
    "10 px at the least, within the margins of a notebook too"
    for width in 390,360:
        sizes = visit(pictures[name], viewport=dict(width=width, height=800)).evaluate(LETTERS)
        assert len(sizes) > 9 and min(sizes) >= 10
    assert max(visit(pictures[name], viewport=dict(width=1200, height=800)).evaluate(LETTERS)) < 16


def test_surprise_is_what_pytorch_computes(trained, pictures):
    learn,_ = trained
    ids = learn.vocab.encode(NASTY)
    with torch.no_grad(): logits,_ = learn.model.eval()(ids[None])
    bits = F.cross_entropy(logits[0,:-1], ids[1:], reduction='none').numpy()/math.log(2)
    assert np.allclose(pictures['surprise'].data.bits[1:], bits, atol=1e-4)


def test_a_character_is_asked_by_pointer_and_by_keys(pictures, visit):
    p = pictures['surprise']
    page = visit(p)
    marks,told = page.locator('.s i'),page.locator('output')
    assert marks.count() == len(NASTY)
    marks.nth(4).hover()
    assert told.text_content().startswith(f'<  {p.data.bits[4]:.1f} bits. Expected: ')
    page.locator('.s').focus()
    page.keyboard.press('ArrowRight')
    assert told.text_content().startswith(f'/  {p.data.bits[5]:.1f} bits.')
    for _ in range(9): page.keyboard.press('ArrowLeft')
    assert told.text_content().startswith('S  the first character')


TALL = ''.join(f'{i}. {LINE}' for i in range(30))


@pytest.fixture(scope='module')
def tall(trained):
    "Pictures that are higher than a screen"
    learn,_ = trained
    return {k:getattr(show, k)(learn, TALL) for k in ('surprise', 'neurons', 'lens')}


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('size', [(390, 700), (1200, 600)])
@pytest.mark.parametrize('name', ['surprise', 'neurons', 'lens'])
def test_the_answer_is_in_sight(tall, visit, name, size, scheme):
    "Also when the text is higher than the screen; nothing shines through it, and nothing stays hidden at the end"
    width,height = size
    page = visit(tall[name], viewport=dict(width=width, height=height), color_scheme=scheme)
    told,marks = page.locator('.said' if name == 'lens' else 'output'),page.locator('.t i, .t u')
    assert 'tap' in told.text_content()
    marks.nth(3).click()
    box = told.bounding_box()
    assert 0 < box['y'] and box['y']+box['height'] <= height+1 and box['height'] < .4*height
    look = told.evaluate('o => [getComputedStyle(o).backgroundColor, getComputedStyle(o).color]')
    assert look[0] == dict(light='rgb(255, 255, 255)', dark='rgb(18, 18, 18)')[scheme]
    assert look[1] == dict(light='rgb(0, 0, 0)', dark='rgb(255, 255, 255)')[scheme]
    page.evaluate('scrollTo(0, document.documentElement.scrollHeight)')
    last = marks.last.bounding_box()
    assert last['y']+last['height'] <= told.bounding_box()['y']


def background(mark): return mark.evaluate('o => getComputedStyle(o).backgroundColor')

def strength(mark):
    "How strong the colour of a mark is"
    parts = re.findall(r'[\d.]+', background(mark))
    return float(parts[3]) if len(parts) > 3 else 1.


def test_the_lens_goes_back_to_the_beginning(trained, pictures, visit):
    "The slider recolours the text by the moments that were kept"
    _,watch = trained
    moments = show.lens(*[trained[0], NASTY, watch]).data['moments']
    page = visit(pictures['lens'])
    marks,slider = page.locator('.lens .t i'),page.locator('.lens input[type=range]')
    assert int(slider.get_attribute('max'))+1 == len(moments) >= 4
    late = [strength(marks.nth(i)) for i in range(1, 30)]
    slider.focus()
    for _ in moments: page.keyboard.press('ArrowLeft')
    early = [strength(marks.nth(i)) for i in range(1, 30)]
    bits = watch.moments[0]['bits'].numpy()
    assert np.allclose(early, np.minimum(1, bits[1:30]/8)*.8, atol=.01)
    assert sum(early) > 2*sum(late)
    assert page.locator('.when').text_content().startswith('no training: ')
    assert slider.get_attribute('aria-valuetext') == page.locator('.when').text_content()


def test_the_lens_has_the_bits_that_are_there():
    "All of them, also those of a character that costs more than sixteen"
    dls = CharDataLoaders.from_text('abcdefghij\n'*400, bs=8, seq_len=32, seed=1)
    learn = char_learner(dls, n_hid=32, precision='fp32')
    with learn.no_bar(), learn.no_logging(): learn.fit_steps(200)
    text = 'abcdefghij\nabcjefghij\n'
    want = show.surprise(learn, text).data.bits[1:]
    moment = show.lens(learn, text).data['moments'][-1]
    assert want.max() > 16
    assert np.allclose(np.frombuffer(base64.b64decode(moment['bits']), '<f4')[1:], want, atol=1e-4)


def test_the_lens_tells_what_was_expected(pictures, trained, visit):
    "As PyTorch computes it; the earlier characters that mattered are underlined"
    learn,_ = trained
    ids = learn.vocab.encode(NASTY)
    with torch.no_grad(): probs = learn.model.eval()(ids[None])[0][0,19].softmax(-1)
    best = int(probs.argmax())
    page = visit(pictures['lens'])
    page.locator('.lens .t i').nth(20).click()
    rows = page.locator('.said div')
    assert rows.nth(0).locator('b').text_content() == learn.vocab[best].replace(' ', '␣').replace('\n', '⏎')
    assert abs(int(re.findall(r'\d+', rows.nth(0).locator('span').text_content())[0]) - 100*float(probs[best])) < 1.1
    shadows = page.locator('.lens .t i').evaluate_all("os => os.map(o => o.style.boxShadow !== '')")
    assert shadows[19] and not any(shadows[20:]) and any(shadows[:20])


def test_the_chips_of_the_lens_colour_by_a_unit(trained, visit):
    learn,watch = trained
    p = show.lens(learn, NASTY, watch, units=['cell 3'])
    values = show.neurons(learn, NASTY, unit='cell 3').data.values
    page = visit(p)
    chip = page.get_by_role('button', name='cell 3')
    chip.focus()
    page.keyboard.press('Enter')
    assert chip.get_attribute('aria-pressed') == 'true'
    colours = [background(page.locator('.lens .t i').nth(i)) for i in range(40)]
    big = np.abs(values[:40]) > .2*np.abs(values).max()
    assert big.any() and all((c.startswith('rgba(224')) == (v > 0) for c,v,b in zip(colours, values, big) if b)
    page.locator('.lens .t i').nth(7).hover()
    scale = p.data['units'][0]['scale']
    told = float(page.locator('.said').text_content().split()[-1])
    assert abs(told - np.clip(values[7], -scale, scale)) < scale/100


def test_the_lens_plays(pictures, visit):
    "From the beginning, moment by moment"
    page = visit(pictures['lens'])
    page.get_by_role('button', name='watch it learn').click()
    assert page.locator('.when').text_content().startswith('no training')
    page.locator('.when', has_not_text='no training').wait_for()
    page.get_by_role('button', name='stop').click()
    assert page.get_by_role('button', name='watch it learn').is_visible()


def test_a_lens_of_300_characters_and_ten_moments_is_small(trained):
    learn,_ = trained
    text = (LINE*20)[:300]
    watch = show.Watch(text)
    watch.learn = learn
    for i in range(10):
        watch.look()
        watch.moments[-1].update(step=i, mean=20.-i)
    p = show.lens(learn, text, watch, units=[0, 1, 2, 3, 4])
    assert len(p.data['moments']) == 10 and len(p._repr_html_()) < 150_000


class Killed(Callback):
    "End the process at a step, without a word"
    def before_batch(self):
        if self.training and self.train_iter == 25: os.kill(os.getpid(), signal.SIGKILL)


def test_the_watch_comes_back_after_a_kill(make, tmp_path, settled, monkeypatch):
    "With the checkpoint at step 20: what the killed process kept up to there is in the next one, which never looked at it"
    monkeypatch.setattr(show.Watch, '_allowed', lambda self: math.inf)      # each look has the time it needs
    def _watched(name, *cbs):
        learn,watch = make(),show.Watch('the first of them', most=100, share=1)
        learn.fit_steps(40, cbs=[watch, Checkpoint(tmp_path/name, steps=10, quiet=True), *cbs])
        return {o['step']:o['bits'] for o in watch.moments}
    whole = _watched('whole')
    if not (pid := os.fork()):
        try: _watched('broken', Killed())
        finally: os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    again = _watched('broken')
    kept = [o for o in whole if o <= 20]
    assert len(kept) > 1 and all(torch.equal(again[o], whole[o]) for o in [*kept, 40])


def test_a_run_that_loses_its_numbers_is_not_watched_further(make, recwarn):
    "And the watch does not end it"
    class Lost(Callback):
        def after_step(self):
            if self.train_iter == 12: self.learn.model.decoder.bias.data[0] = math.nan
    watch = show.Watch('the first', share=1)
    make().fit_steps(30, cbs=[watch, Lost()])
    assert len(watch.moments) > 1 and all(math.isfinite(o['mean']) for o in watch.moments)
    assert [o for o in recwarn if 'show' in o.filename] == []


def test_a_lens_from_the_checkpoints_of_a_run(make, tmp_path, settled):
    learn = make()
    learn.fit_steps(30, cbs=Checkpoint(tmp_path/'r', steps=10, keep=5, quiet=True))
    p = show.lens(load_run(tmp_path/'r'), 'of the text', tmp_path/'r', units=[])
    assert [o['name'] for o in p.data['moments']] == ['step 10', 'step 20', 'step 30']


@pytest.mark.parametrize('name', ['surprise', 'neurons', 'lens'])
@pytest.mark.parametrize('given,says', [('', 'has 0 characters'), (None, 'The text is NoneType'),
                                        ('\u0416\u0416', 'knows no character')])
def test_a_text_that_cannot_be_shown_is_one_sentence(learn, name, given, says):
    kwargs = dict(unit=0) if name == 'neurons' else {}
    with pytest.raises(CharRNNError, match=says): getattr(show, name)(learn, given, **kwargs)


@pytest.mark.parametrize('name', ['surprise', 'neurons', 'lens'])
def test_ten_megabytes_are_a_bounded_picture(learn, name):
    p = getattr(show, name)(learn, 'the text '*1_100_000,
                            **({'unit':0} if name == 'neurons' else {'units':[]} if name == 'lens' else {}))
    assert 'are left out' in str(p) and len(p._repr_html_()) < 1_500_000


@pytest.mark.parametrize('name', PICTURES)
def test_a_model_that_is_not_ours_is_one_sentence(name):
    from fastai.basics import DataLoader, DataLoaders, Learner, nn
    dl = DataLoader([(torch.zeros(2), torch.zeros(1))]*4, bs=2)
    other = Learner(DataLoaders(dl, dl), nn.Linear(2, 1), loss_func=nn.MSELoss())
    args = {'memory':(), 'losses':(), 'temperature':('a',)}.get(name, ('a',))
    with pytest.raises(CharRNNError): getattr(show, name)(other, *args)


@pytest.mark.parametrize('path,says', [('no/such/folder/a.html', 'could not be written'), ('a.pdf', 'end the name in')])
def test_a_path_that_cannot_be_written_is_one_sentence(learn, tmp_path, path, says):
    with pytest.raises(CharRNNError, match=says): show.surprise(learn, 'the').save(tmp_path/path)
    assert [*tmp_path.iterdir()] == []


def test_figures_are_saved_as_svg_and_png(pictures, tmp_path):
    svg = pictures['losses'].save(tmp_path/'a.svg')
    assert ElementTree.parse(svg).getroot().tag.endswith('svg')
    assert pictures['losses'].save(tmp_path/'a.png').read_bytes().startswith(b'\x89PNG')


def test_a_unit_that_was_planted_is_found_on_text_that_was_not_searched(make):
    "And a property of the reader's own, with its correlation as NumPy gives it"
    learn = make(arch='rnn')
    with torch.no_grad():
        layer,emb = learn.model.rnns[0],learn.model.emb.weight
        emb[:,0] = torch.tensor([2.*(c in 'aeiou') for c in learn.vocab])
        layer.Wxh[5],layer.Whh[5] = 0.,0.
        layer.Wxh[5,0] = 1.
    text = learn.vocab.textify(learn.dls.train.ids[:4000])
    found, = show.find_units(learn, text, {'vowel':lambda t: [c in 'aeiou' for c in t]})
    assert found.unit == 'state 5' and found.held_out > .999
    half = show.find_units(learn, text, {'long':lambda t: [len(t[:i].split('\n')[-1]) for i in range(len(t))]})
    assert half == [] or abs(half[0].held_out) <= 1


def test_pictures_change_nothing(learn):
    "Neither weights nor gradients, mode, memory or random state"
    learn.fit_steps(5)
    def _state(): return ([p.clone() for p in learn.model.parameters()], [p.grad for p in learn.model.parameters()],
                          learn.model.training, torch.random.get_rng_state(), [o.clone() for o in learn.carried])
    before = _state()
    text = learn.vocab.textify(learn.dls.train.ids[:200])
    for o in (show.surprise(learn, text), show.neurons(learn, text, unit=1), show.memory(learn, n=10), show.losses(learn),
              show.temperature(learn, 'the', (.5,), n=20), show.lens(learn, text, units=[0])):
        o._repr_html_()
    after = _state()
    assert all(map(torch.equal, before[0], after[0])) and before[2] == after[2] and torch.equal(before[3], after[3])
    assert all(a is b for a,b in zip(before[1], after[1])) and all(map(torch.equal, before[4], after[4]))


@pytest.mark.parametrize('bad', [dict(prompt='Ж'), dict(temperature=-1)])
def test_live_refuses_at_the_beginning_what_it_cannot_write(learn, bad):
    with pytest.raises(CharRNNError): learn.fit_steps(3, cbs=show.Live(**bad))


def test_watch_counts_the_steps_of_several_fits():
    learn = char_learner(CharDataLoaders.from_text(LINE*40, bs=4, seq_len=16, seed=3), n_hid=16, emb_sz=8,
                         head_sz=0, precision='fp32')
    watch = show.Watch(LINE, share=1)
    learn.remove_cbs(learn.progress)
    for n in 30,10: learn.fit_steps(n, cbs=watch)
    steps = [o['step'] for o in watch.moments]
    assert steps == sorted({*steps}) and steps[-1] == 40 and '40' in str(show.lens(learn, LINE, watch))


@pytest.mark.parametrize('bad', [dict(n=0), dict(reach=0)])
def test_a_memory_of_nothing_is_refused(trained, bad):
    with pytest.raises(CharRNNError): show.memory(trained[0], **bad)


@pytest.mark.parametrize('n', [0, 3, 4])
def test_a_memory_of_a_text_needs_no_validation_part(trained, n):
    "Where it is too short to see what context does, the text itself is asked"
    learn = copy.copy(trained[0])
    learn.dls = SimpleNamespace(vocab=learn.vocab, valid=SimpleNamespace(ids=trained[0].dls.valid.ids[:n]))
    assert max(show.memory(learn, LINE*9).data.nats) == (1 if n == 4 else 64)


@pytest.mark.parametrize('most', [1, 0, -1])
def test_a_lens_has_two_moments_at_least(trained, most):
    "The first and the last are never left out"
    learn,watch = trained
    assert len(watch.moments) > 2 and len(moments_of(learn, watch.text, watch, most=2)) == 2
    with pytest.raises(CharRNNError, match='most is'): moments_of(learn, watch.text, watch, most=most)


def test_a_picture_and_a_page_go_where_a_tilde_is_a_name(trained, pictures, tmp_path, monkeypatch):
    "A folder may be called like a user whom there is not"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'~nouser').mkdir()
    for path in pictures['surprise'].save('~nouser/a.html'), share(trained[0], '~nouser/b.html'):
        assert path.parent.name == '~nouser' and path.exists()


@pytest.mark.parametrize('name', ['surprise', 'lens'])
def test_a_line_that_ends_in_two_signs_is_one(make, visit, name):
    "A carriage return in a page would be a second line end"
    learn = make(CharDataLoaders.from_text('the cat\r\nthe dog\r\n'*40, bs=4, seq_len=16, seed=7))
    page = lambda text: visit(getattr(show, name)(learn, text))
    height = lambda text: page(text).evaluate("document.querySelector('.t').getBoundingClientRect().height")
    assert height('the cat\r\nthe dog\r\n') == height('the cat\nthe dog\n')
    assert height('the cat\rthe dog\r\n') == height('the cat\nthe dog\n') # and alone it is one
    assert 'cat\r\n' in page('the cat\r\n').evaluate("document.querySelector('.t').textContent")


def test_the_table_of_surprises_fits_a_phone(make, visit):
    "Its first column has no blank to break at"
    learn = make(CharDataLoaders.from_text('DUKE HUMPHREY: AMONG MANY GOOD WOMEN WHOM MOWBRAY\n'*40, bs=4,
                                           seq_len=16, seed=7))
    page = visit(show.CharInterpretation.from_learner(learn).most_surprising(), viewport=dict(width=390, height=844))
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')


class Own(torch.nn.Module):
    "A network of one's own, of the form that is documented"
    def __init__(self, vocab_sz):
        super().__init__()
        self.cell = torch.nn.GRU(8, 8, batch_first=True)
        self.into,self.out = torch.nn.Embedding(vocab_sz, 8),torch.nn.Linear(8, vocab_sz)

    def empty_state(self, bs, device=None): return (torch.zeros(1, bs, 8),)

    def forward(self, x, state=None):
        y,h = self.cell(self.into(x.long()), (state or self.empty_state(len(x)))[0])
        return self.out(y),(h,)


def test_a_network_of_ones_own(dls, visit):
    "What needs scores alone works; what needs units says so"
    learn = CharLearner(dls, Own(len(dls.vocab)), opt_func=Adam, lr=1e-2)
    learn.remove_cbs(learn.progress)
    watch = show.Watch('the value')
    learn.fit_steps(8, cbs=watch)
    assert watch.moments and show.CharInterpretation.from_learner(learn, most=500).confusion().data
    assert show.surprise(learn, 'the value').data.best.shape == (9, 5)
    page = visit(show.lens(learn, 'the value', watch))
    page.locator('.t i').nth(3).hover()
    assert 'bits. Expected here' in page.text_content('.said') and 'Blue beneath' not in page.content()
    for f in show.neurons, show.memory:
        with pytest.raises(CharRNNError, match='units of this network'): f(learn, 'the value')


def test_what_has_no_picture_is_called_what_it_is(dls):
    "Not the Learner is what a picture cannot be made of, but the model in it; and two runs are no Learner"
    class Own(torch.nn.Embedding):
        def forward(self, x, state): return super().forward(x),()
    with pytest.raises(CharRNNError, match='Own is none'): show.surprise(CharLearner(dls, Own(*[len(dls.vocab)]*2)), 'text')
    with pytest.raises(CharRNNError, match='This list has no losses'): show.losses(['runs/a', 'runs/b'])


HEBREW = 'שלום עולם, זה טקסט בעברית.\n'


@pytest.fixture
def of_hebrew(make): return make(CharDataLoaders.from_text(HEBREW*40, bs=4, seq_len=16, seed=7))


PLACE_OF = """(o, part) => {
    const texts = document.createTreeWalker(o, NodeFilter.SHOW_TEXT), range = document.createRange();
    for (let t; t = texts.nextNode();) {
        const i = t.data.indexOf(part);
        if (i < 0) continue;
        range.setStart(t, i);
        range.setEnd(t, i + 1);
        return range.getBoundingClientRect().x;
    }
}"""


@pytest.mark.parametrize('name', ['surprise', 'neurons', 'lens'])
def test_an_answer_about_a_letter_of_any_direction_is_read_from_left_to_right(of_hebrew, visit, name):
    kwargs = dict(unit='state 1') if name == 'neurons' else {}
    page = visit(getattr(show, name)(of_hebrew, HEBREW, **kwargs))
    page.locator('.t i').nth(2).click()
    told = page.locator('.said' if name == 'lens' else 'output')
    number = re.search(r'[\d.]+', told.text_content())[0]
    parts = ['ו', number] if name == 'neurons' else ['ו', number, 'bits', 'Expected']
    places = [told.evaluate(PLACE_OF, part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize('name', ['surprise', 'lens', 'temperature'])
def test_a_line_begins_where_its_letters_do(of_hebrew, visit, name):
    "One of letters that go to the left ends at its left, with its full stop"
    kwargs = dict(temperatures=(.5,), n=1) if name == 'temperature' else {}
    text = visit(getattr(show, name)(of_hebrew, HEBREW, **kwargs)).locator('.t')
    assert text.evaluate(PLACE_OF, '.') < text.evaluate(PLACE_OF, 'ע')


def test_a_letter_with_a_long_name_does_not_cover_its_share(make, visit):
    learn = make(CharDataLoaders.from_text('a\u200db\U000e0001c\u200d\n'*60, bs=4, seq_len=16, seed=7))
    page = visit(show.lens(learn, 'a\u200db\U000e0001c'))
    page.locator('.t i').nth(2).click()
    rows = page.locator('.said div')
    ends = "o => { const r = document.createRange(); r.selectNodeContents(o); return r.getBoundingClientRect(); }"
    assert any('\\U' in o for o in rows.all_text_contents())
    for row in rows.all():
        letter,share = (row.locator(o).evaluate(ends) for o in ('b', 'span'))
        assert letter['x']+letter['width'] <= share['x']


def test_where_nothing_is_expected_it_is_said(make, visit):
    learn = make(CharDataLoaders.from_text(''.join(map(chr, range(0x4e00, 0x4e00+2000))), bs=4, seq_len=16, seed=7))
    for f,told in (show.surprise, 'output'),(show.lens, '.said'):
        page = visit(f(learn, '\u4e00\u4e01\u4e02'))
        page.locator('.t i').nth(1).click()
        assert page.locator(told).text_content().endswith('nothing in particular')
    assert 'Expected here (as it is now): nothing' in page.locator(told).text_content()
    assert '(< 1%)' in str(show.CharInterpretation.from_learner(learn).most_surprising())


@pytest.mark.parametrize('name', ['surprise', 'lens'])
def test_an_answer_is_told_to_who_does_not_see_it(pictures, visit, name):
    page = visit(pictures[name])
    page.locator('.t').focus()
    page.keyboard.press('ArrowRight')
    assert 'first character' in page.get_by_role('status').text_content()


def test_the_names_of_rungs_do_not_cover_each_other():
    "Where the validation part is far below the training, too; and the rungs beside it are there"
    from charrnn_fa.show.losses import Curves, _figure
    ladder = dict(uniform=3.04, unigram=2.93, bigram=1.3)
    fig = _figure(Curves(np.linspace(3.05, 1.8, 40), np.ones(40), [(40, 1.25)], ladder))
    fig.canvas.draw()
    boxes = sorted((o.get_window_extent() for o in fig.axes[0].texts), key=lambda o: o.y0)
    assert len(fig.axes[0].texts) == 2 and fig.axes[0].texts[-1].get_text() == 'bigram'
    assert all(a.y1 <= b.y0 for a,b in zip(boxes, boxes[1:]))


def test_interpretations_are_bounded_and_say_what_is_left_out(trained, make):
    "Of a line without an end, too; and where nothing is wrong, the table says so"
    learn = make(CharDataLoaders.from_text('abcdefghij'*3000, bs=4, seq_len=16, seed=7))
    interp = show.CharInterpretation.from_learner(learn, 'abcdefghij'*3000 + 'Ж')
    p = interp.worst_lines()
    assert 'first 400 characters' in str(p) and len(p._repr_html_()) < 200_000 and len(str(p)) < 1000
    assert '1 unknown character is skipped' in str(interp.most_surprising())
    assert '1 unknown character is skipped' in str(show.neurons(learn, 'abЖ', unit=0))
    learn.fit_steps(150)
    right = show.CharInterpretation.from_learner(learn)
    short = show.CharInterpretation.from_learner(learn, 'ab').worst_lines()
    assert 'No line is long enough' in short._repr_html_() and 'No line is long enough' in str(short)
    assert right.confused() == [] and 'Every first guess was right' in str(right.confusion())


def test_a_title_in_any_letters_is_no_complaint(tmp_path, recwarn):
    "A browser has the letters that matplotlib's fonts lack"
    p = show.drawings([[[(0, 0), (9, 9)]]], title='日本 😀')
    assert '日本' in p.save(tmp_path/'a.svg').read_text() and [*recwarn] == []
    assert '<title>Drawings</title>' in show.drawings([[[(0, 0), (9, 9)]]]).save(tmp_path/'a.html').read_text()


def test_a_text_file_holds_nothing_that_a_terminal_obeys(make, tmp_path):
    learn = make(CharDataLoaders.from_text('a\x1b[31mb\n'*60, bs=4, seq_len=16, seed=7))
    p = show.temperature(learn, 'a\x1b[31mb', (.5,), n=50)
    assert p.save(tmp_path/'a.txt').read_text() == f'{p}\n' and '\x1b' not in str(p)


FORCED = [('surprise', '.t i'), ('surprise', '.k'), ('lens', '.t i'), ('lens', '.key'), ('temperature', '.t i')]

@pytest.mark.parametrize('name,mark', FORCED)
def test_colours_that_mean_something_stay_where_colours_are_forced(pictures, visit, name, mark):
    "As by a system that is set to high contrast"
    page = visit(pictures[name], forced_colors='active')
    seen = "o => getComputedStyle(o).backgroundImage + getComputedStyle(o).backgroundColor"
    colours = ' '.join(page.locator(mark).evaluate_all(f'os => os.map({seen})'))
    assert re.search(r'\(224, 122, 16|\(38, 128, 214', colours)
