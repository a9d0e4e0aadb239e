"Pictures in a real browser and against numbers of PyTorch's: static, self-contained, safe, and answering to pointer and keys"
import math
import os
import re
import signal

import numpy as np
import pytest
import torch
from browser import opened  # noqa: F401: a fixture
from fastai.basics import DataLoader, DataLoaders, Learner
from fastai.callback.core import Callback
from fastai.optimizer import Adam

from charrnn_fa import show
from charrnn_fa.checkpoint import Checkpoint
from charrnn_fa.errors import CharRNNError
from charrnn_fa.learner import char_learner
from charrnn_fa.loop import CharLearner
from charrnn_fa.text.data import CharDataLoaders

LINE = 'ROMEO:\nSay "no", or go.\n\n'
NASTY = 'Say </script><script>document.title = "bad"</script><img src=x onerror="document.title=\'bad\'"> "no"\n'
PHONE = dict(width=375, height=700)
PAPER = dict(light='rgb(255, 255, 255)', dark='rgb(18, 18, 18)')
INK = dict(light='rgb(0, 0, 0)', dark='rgb(255, 255, 255)')


def learner_of(text, **kwargs):
    dls = CharDataLoaders.from_text(text, bs=4, seq_len=16, seed=7, device='cpu')
    learn = char_learner(dls, **{**dict(n_hid=16, emb_sz=8, head_sz=0, precision='fp32'), **kwargs})
    learn.remove_cbs(learn.progress)
    return learn


@pytest.fixture(scope='module')
def trained():
    "A small model that has seen one line often, and the watch that looked at its training"
    learn,watch = learner_of((LINE + NASTY)*24, n_hid=32),show.Watch(NASTY, share=1)
    learn.fit_steps(150, cbs=watch)
    return learn,watch


PICTURES = dict(
    surprise=lambda learn, watch: show.surprise(learn, NASTY),
    neurons=lambda learn, watch: show.neurons(learn, NASTY),
    memory=lambda learn, watch: show.memory(learn, NASTY, n=20),
    losses=lambda learn, watch: show.losses(learn),
    temperature=lambda learn, watch: show.temperature(learn, 'Say </script>', (.3, 1.), n=40),
    lens=lambda learn, watch: show.lens(learn, NASTY, watch, units=['cell 3']),
    interpret=lambda learn, watch: show.CharInterpretation.from_learner(learn, NASTY).most_surprising())


@pytest.fixture(scope='module')
def pictures(trained): return {k:f(*trained) for k,f in PICTURES.items()}


@pytest.fixture
def visit(opened, tmp_path):  # noqa: F811
    "A picture as a page of its own"
    return lambda picture, **context: opened(picture.save(tmp_path/f'{id(picture)}.html'), **context)


def style(mark, what): return mark.evaluate(f'o => getComputedStyle(o).{what}')

def strength(mark):
    "How strong the colour of a mark is"
    parts = re.findall(r'[\d.]+', style(mark, 'backgroundColor'))
    return float(parts[3]) if len(parts) > 3 else 1.


# --- Every picture

@pytest.mark.parametrize('name', PICTURES)
def test_a_picture_is_static_and_alone(pictures, name):
    "It names no address, and two renderings of it share no id"
    p = pictures[name]
    a,b = p._repr_html_(),p._repr_html_()
    assert all('//www.w3.org/' in o for o in re.findall(r'https?://[^\s"<)]+', a)) # names of SVG's own
    assert not re.search(r'<(script|img|link|iframe)[^>]+(src|href)=', a)
    ids = [re.findall(r'\bid="([^"]+)"', o) for o in (a, b)]
    assert ids[0] and len({*ids[0], *ids[1]}) == len(ids[0])+len(ids[1])
    assert str(p).startswith(p.title) and '<div' not in str(p)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('name', PICTURES)
def test_a_picture_fits_a_phone_and_runs_no_text(pictures, visit, name, scheme):
    page = visit(pictures[name], color_scheme=scheme, viewport=PHONE)
    assert page.title() == pictures[name].title
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    assert style(page.locator('.charrnn'), 'color') == INK[scheme]
    assert style(page.locator('body'), 'backgroundColor') == PAPER[scheme]


@pytest.mark.parametrize('name', PICTURES)
def test_a_model_that_cannot_be_shown_is_refused(name):
    dl = DataLoader([(torch.zeros(2), torch.zeros(1))]*4, bs=2)
    other = Learner(DataLoaders(dl, dl), torch.nn.Linear(2, 1), loss_func=torch.nn.MSELoss())
    with pytest.raises(CharRNNError): PICTURES[name](other, None)


def test_pictures_change_nothing(learn):
    "Neither weights nor gradients, mode, hidden state or random state"
    learn.fit_steps(5)
    def _state(): return ([p.clone() for p in learn.model.parameters()] + [o.clone() for o in learn.carried] +
                          [torch.random.get_rng_state()], [p.grad for p in learn.model.parameters()], learn.model.training)
    before,text = _state(),learn.vocab.textify(learn.dls.train.ids[:200])
    for o in (show.surprise(learn, text), show.neurons(learn, text, unit=1), show.memory(learn, n=10), show.losses(learn),
              show.temperature(learn, 'the', (.5,), n=20), show.lens(learn, text, units=[0])): o._repr_html_()
    after = _state()
    assert all(map(torch.equal, before[0], after[0])) and before[2] == after[2]
    assert all(a is b for a,b in zip(before[1], after[1]))


# --- Texts that answer

@pytest.mark.parametrize('name', ['surprise', 'lens'])
def test_a_character_answers_to_pointer_and_keys(trained, pictures, visit, name):
    "With what PyTorch computes, and as a status that is read aloud"
    learn,ids = trained[0],trained[0].vocab.encode(NASTY)
    with torch.no_grad(): logp = learn.model.eval()(ids[None])[0][0].log_softmax(-1)
    best,page = int(logp[19].argmax()),visit(pictures[name])
    marks,said = page.locator('.t i'),page.get_by_role('status')
    assert marks.count() == len(NASTY)
    marks.nth(19).hover()
    page.locator('.t').focus()
    page.keyboard.press('ArrowRight')
    assert abs(float(re.search(r'([\d.]+) bits', said.text_content())[1]) + logp[19,ids[20]]/math.log(2)) < .06
    row = said.locator('div').nth(0)
    assert row.locator('b').text_content() == learn.vocab[best].replace(' ', '␣').replace('\n', '⏎')
    assert abs(int(re.findall(r'\d+', row.locator('span').text_content())[0]) - 100*logp[19,best].exp()) < 1.1
    shadows = marks.evaluate_all("os => os.map(o => o.style.boxShadow !== '')")
    assert not any(shadows[20:]) and any(shadows[:20]) == (name == 'lens')
    for _ in range(30): page.keyboard.press('ArrowLeft')
    assert 'first character' in said.text_content()


@pytest.mark.parametrize('scheme,width,height', [('light', 375, 700), ('dark', 1200, 600)])
def test_the_answer_is_in_sight(trained, visit, width, height, scheme):
    "Also when the text is higher than the screen; nothing shines through it, and nothing stays hidden at the end"
    tall = show.surprise(trained[0], ''.join(f'{i}. {LINE}' for i in range(30)))
    page = visit(tall, viewport=dict(width=width, height=height), color_scheme=scheme)
    said,marks = page.locator('output'),page.locator('.t i, .t u')
    marks.nth(3).click()
    box = said.bounding_box()
    assert 0 < box['y'] and box['y']+box['height'] <= height+1 and box['height'] < .4*height
    assert (style(said, 'backgroundColor'), style(said, 'color')) == (PAPER[scheme], INK[scheme])
    page.evaluate('scrollTo(0, document.documentElement.scrollHeight)')
    last = marks.last.bounding_box()
    assert last['y']+last['height'] <= said.bounding_box()['y']


# --- The lens and its callback

def test_the_slider_goes_back_to_the_beginning_and_plays(trained, pictures, visit):
    moments,page = pictures['lens'].data['moments'],visit(pictures['lens'])
    marks,slider,when = page.locator('.t i'),page.locator('input[type=range]'),page.locator('.when')
    assert int(slider.get_attribute('max'))+1 == len(moments) >= 4
    late = [strength(marks.nth(i)) for i in range(1, 20)]
    slider.focus()
    for _ in moments: page.keyboard.press('ArrowLeft')
    early = [strength(marks.nth(i)) for i in range(1, 20)]
    assert np.allclose(early, np.minimum(1, trained[1].moments[0]['bits'].numpy()[1:20]/8)*.8, atol=.01)
    assert sum(early) > 2*sum(late)
    assert when.text_content().startswith('no training: ') and slider.get_attribute('aria-valuetext') == when.text_content()
    page.get_by_role('button', name='watch it learn').click()
    page.locator('.when', has_not_text='no training').wait_for()
    page.get_by_role('button', name='stop').click()
    assert page.get_by_role('button', name='watch it learn').is_visible()


def test_a_button_colours_by_a_unit(trained, pictures, visit):
    values,page = show.neurons(trained[0], NASTY, unit='cell 3').data.values,visit(pictures['lens'])
    page.get_by_role('button', name='cell 3').focus()
    page.keyboard.press('Enter')
    assert page.get_by_role('button', name='cell 3').get_attribute('aria-pressed') == 'true'
    colours = [style(page.locator('.t i').nth(i), 'backgroundColor') for i in range(40)]
    big = np.abs(values[:40]) > .2*np.abs(values).max()
    assert big.any() and all((c.startswith('rgba(224')) == (v > 0) for c,v,b in zip(colours, values, big) if b)
    page.locator('.t i').nth(7).hover()
    assert abs(float(page.locator('output').text_content().split()[-1]) - values[7]) < .006


class At(Callback):
    "Does something before a batch"
    def __init__(self, n, what): self.n,self.what = n,what
    def before_batch(self):
        if self.training and self.train_iter == self.n: self.what(self.learn)


def test_the_watch_is_restored_after_a_kill(make, tmp_path, settled, monkeypatch):
    "From the checkpoint at step 20: what the killed process saved up to there is in the next one, which never looked at it"
    monkeypatch.setattr(show.Watch, '_allowed', lambda self: math.inf)      # each look has the time it needs
    def _watched(name, *cbs):
        learn,watch = make(),show.Watch('the first of them', most=100, share=1)
        learn.fit_steps(40, cbs=[watch, Checkpoint(tmp_path/name, steps=10, quiet=True), *cbs])
        return {o['step']:o['bits'] for o in watch.moments}
    whole = _watched('whole')
    if not (pid := os.fork()):
        try: _watched('broken', At(25, lambda _: os.kill(os.getpid(), signal.SIGKILL)))
        finally: os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    again,early = _watched('broken'),[o for o in whole if o <= 20]
    assert len(early) > 1 and all(torch.equal(again[o], whole[o]) for o in [*early, 40])


def test_a_run_with_nan_is_not_watched_further(make, recwarn):
    watch = show.Watch('the first', share=1)
    make().fit_steps(30, cbs=[watch, At(12, lambda learn: learn.model.decoder.bias.data.fill_(math.nan))])
    assert len(watch.moments) > 1 and all(math.isfinite(o['mean']) for o in watch.moments)
    assert [o for o in recwarn if 'show' in o.filename] == []


class Own(torch.nn.Module):
    "A model of one's own, of the form that is documented"
    def __init__(self, vocab_sz):
        super().__init__()
        self.cell = torch.nn.GRU(8, 8, batch_first=True)
        self.into,self.out = torch.nn.Embedding(vocab_sz, 8),torch.nn.Linear(8, vocab_sz)
    def empty_state(self, bs, device=None): return (torch.zeros(1, bs, 8),)
    def forward(self, x, state=None):
        y,h = self.cell(self.into(x.long()), (state or self.empty_state(len(x)))[0])
        return self.out(y),(h,)


def test_a_model_of_ones_own(dls, visit):
    "What needs scores alone works; what needs units says so"
    learn,watch = CharLearner(dls, Own(len(dls.vocab)), opt_func=Adam, lr=1e-2),show.Watch('the value')
    learn.remove_cbs(learn.progress)
    learn.fit_steps(8, cbs=watch)
    assert watch.moments and show.CharInterpretation.from_learner(learn, most=500).confusion().data
    page = visit(show.lens(learn, 'the value', watch))
    page.locator('.t i').nth(3).hover()
    assert 'bits. Expected here' in page.text_content('output') and 'Blue beneath' not in page.content()
    for f in show.neurons, show.memory:
        with pytest.raises(CharRNNError, match='Own'): f(learn, 'the value')
    learn.model = torch.nn.Linear(2, 2)
    with pytest.raises(CharRNNError, match='Linear'): show.surprise(learn, 'the value') # and not the Learner


# --- Others

LETTERS = """[...document.querySelectorAll('svg text')].map(
    o => Math.hypot(o.getScreenCTM().a, o.getScreenCTM().b)*parseFloat(getComputedStyle(o).fontSize))"""


@pytest.mark.parametrize('name', ['memory', 'losses'])
def test_the_letters_of_a_figure_can_be_read(pictures, visit, name):
    "10 px at the least on a phone, and not huge on a desk"
    small,large = (visit(pictures[name], viewport=dict(width=w, height=800)).evaluate(LETTERS) for w in (360, 1200))
    assert len(small) > 9 and min(small) >= 10 and max(large) < 16
