"""Functions that let a network write: what is lost on the way, and what is only written in another manner"""
from itertools import cycle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from charrnn_fa.core import CharRNNError
from charrnn_fa.doctor.diagnose import diagnose
from charrnn_fa.doctor.given import parts_subject
from charrnn_fa.doctor.sampling import check_unknown, sampling_findings
from charrnn_fa.doctor.written import Written
from charrnn_fa.doctor.written_text import check_text

WORDS = 'ample bible cable eagle fable ladle maple noble rifle sable table uncle'.split()


def corpus(n=2600):
    at = torch.randint(0, len(WORDS), (n,), generator=torch.Generator().manual_seed(0)).tolist()
    return ' '.join(WORDS[i] for i in at)


TEXT = corpus()
SYMBOLS = sorted(set(TEXT))
NUMBER = {c:i for i,c in enumerate(SYMBOLS)}


class Writer(nn.Module):
    def __init__(self, n=40):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(len(SYMBOLS), n),nn.GRU(n, n, batch_first=True),nn.Linear(n, len(SYMBOLS))
    def forward(self, x, h=None):
        y,h = self.rnn(self.emb(x), h)
        return self.out(y),h


@pytest.fixture(scope='module')
def trained():
    torch.manual_seed(0)
    net = Writer()
    ids = torch.tensor([NUMBER[c] for c in TEXT])
    n = (len(ids)-1)//30*30
    batches = list(zip(ids[:n].view(-1, 30).split(16), ids[1:n+1].view(-1, 30).split(16)))
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    def fit(x, y):
        adam.zero_grad()
        loss = F.cross_entropy(net(x)[0].flatten(0, 1), y.flatten())
        loss.backward()
        adam.step()
        return loss.item()
    for b in batches: fit(*b)
    return dict(step_function=fit, model=net, batches=batches, text=TEXT, trials=False)


def drawn(scores): return torch.multinomial(scores.flatten().softmax(0), 1).item()


@torch.no_grad()
def one_by_one(model, prompt, n, first=-1, read=-1, keeps=True, renews=True, symbols=SYMBOLS, feeds_last=False,
               goes_on=True):
    "Reads a prompt, and goes on from one of its characters; what is drawn goes in next"
    h,res = None,prompt
    for c in prompt[:read]: _,h = model(torch.tensor([[NUMBER[c]]]), h)
    if not keeps: h = None
    x = torch.tensor([[NUMBER[prompt[first]]]])
    for _ in range(n):
        y,h = model(x, h if goes_on else None)
        i = drawn(y[:,-1])
        if renews: x = torch.tensor([[i]])
        res += symbols[i]
    if feeds_last: model(x, h)
    return res


@torch.no_grad()
def prompt_again(model, prompt, n):
    "The whole prompt goes in each time"
    x,res = torch.tensor([[NUMBER[c] for c in prompt]]),prompt
    for _ in range(n): res += SYMBOLS[drawn(model(x)[0][:,-1])]
    return res


@torch.no_grad()
def searched(model, prompt, n, width=3, at_once=False):
    "Goes on with the likeliest texts, one after the other or as the rows of a batch"
    read = lambda ids, h: model(torch.tensor(ids), h)
    y,h = read([[NUMBER[c] for c in prompt]], None)
    texts = [('', 0., y[0,-1], h)]
    for _ in range(n):
        further = []
        for text,fits,scores,h in texts:
            best = scores.log_softmax(-1).topk(width)
            further += [(text, fits+p, i, h) for p,i in zip(best.values.tolist(), best.indices.tolist())]
        further = sorted(further, key=lambda o: -o[1])[:width]
        if at_once:
            y,h = read([[i] for *_,i,_ in further], torch.cat([h for *_,h in further], 1))
            rows = [(y[r:r+1], h[:,r:r+1].contiguous()) for r in range(width)]
        else: rows = [read([[i]], h) for *_,i,h in further]
        texts = [(text+SYMBOLS[i], fits, y[0,-1], h) for (text,fits,i,_),(y,h) in zip(further, rows)]
    return prompt+texts[0][0]


@torch.no_grad()
def read_anew(model, prompt, n):
    "Reads all letters again for each new one"
    res = prompt
    for _ in range(n):
        h = None
        for c in res: y,h = model(torch.tensor([[NUMBER[c]]]), h)
        res += SYMBOLS[drawn(y[:,-1])]
    return res


def told(trained, f, **kwargs):
    sample = (lambda model, prompt, n: f(model, prompt, n, **kwargs)) if kwargs else f
    return [(o.id, o.certainty) for o in diagnose(sample=sample, **trained).findings]


@pytest.mark.parametrize('kwargs', [{}, dict(feeds_last=True), dict(read=None)])
def test_a_function_that_writes_well(trained, kwargs):
    "Even if the prompt's last character is read twice, or the last that is written once more"
    assert not told(trained, one_by_one, **kwargs)


@pytest.mark.parametrize('write,kwargs', [(searched, {}), (searched, dict(at_once=True)), (read_anew, {})])
def test_several_texts_are_read_for_one_that_is_written(trained, write, kwargs):
    "What goes in is no text then, and each state is that of its own"
    assert not {'G3', 'G1', 'G4'} & {id for id,_ in told(trained, write, **kwargs)}


@pytest.mark.parametrize('is_told', [True, False])
@pytest.mark.parametrize('goes_on', [True, False])
def test_a_step_that_fetches_its_batches_beside_a_function_that_writes(trained, goes_on, is_told):
    "Its batches are looked at, if they can be told: the text may be cut somewhere within the step"
    fit,at = trained['step_function'],cycle(trained['batches'])
    def fetch():
        x,y = next(at)
        if is_told: return fit(x, y)
        for a,b in zip(x.split(10, 1), y.split(10, 1)): loss = fit(a, b)
        return loss
    report = diagnose(step_function=fetch, model=trained['model'], text=TEXT, trials=False,
                      sample=lambda model, prompt, n: one_by_one(model, prompt, n, goes_on=goes_on))
    assert [o.id for o in report.findings] == ['G3']*(is_told and not goes_on)
    assert not any("doctor's own" in o for o in report.skipped)


@pytest.mark.parametrize('kwargs', [dict(renews=False), dict(renews=False, read=None)])
def test_what_is_drawn_never_goes_in(trained, kwargs):
    assert told(trained, one_by_one, **kwargs) == [('G3', 'exact')]


def test_the_prompt_goes_in_each_time(trained):
    f, = diagnose(sample=prompt_again, **trained).findings
    assert f.id == 'G3' and 'chosen' in f.message


@pytest.mark.parametrize('kwargs', [dict(read=None, first=0, keeps=False), dict(read=None, keeps=False),
                                    dict(first=0, keeps=False)])
def test_the_state_after_the_prompt_is_thrown_away(trained, kwargs):
    assert told(trained, one_by_one, **kwargs) == [('G3', 'exact')]


@pytest.mark.parametrize('rows', [4, 16])
def test_the_prompt_is_read_well_and_what_comes_after_it_is_forgotten(trained, rows):
    "However few rows there are to ask for what is said after how much"
    few = {**trained, 'batches':[(x[:rows], y[:rows]) for x,y in trained['batches']]}
    assert told(few, one_by_one, goes_on=False) == [('G3', 'exact')]
    assert not told(few, one_by_one)


@pytest.mark.parametrize('kwargs', [{}, dict(feeds_last=True), dict(read=None), dict(read=None, first=0, keeps=False)])
def test_another_table_of_symbols_stays_one(trained, kwargs):
    assert told(trained, one_by_one, symbols=SYMBOLS[1:]+SYMBOLS[:1], **kwargs) == [('G4', 'exact')]


def test_an_error_of_the_function_itself(trained):
    def write(model, prompt, n):
        done = 0
        return prompt[:n//done]
    f, = diagnose(sample=write, **trained).findings
    assert (f.id, f.certainty) == ('E1', 'exact') and 'ZeroDivisionError' in f.message and 'n//done' in f.place.source


@pytest.mark.parametrize('kwargs,said', [(dict(text=5), 'text is 5'), (dict(sample='abc'), 'sample is str'),
                                         (dict(sample=one_by_one, text=b'abc'), 'decode')])
def test_what_is_no_text_and_no_function(trained, kwargs, said):
    with pytest.raises(CharRNNError, match=said): diagnose(**{**trained, **kwargs})


class Across(Writer):
    "Symbols are the second axis, as convolutions and cross_entropy have them"
    def forward(self, x): return super().forward(x)[0].transpose(1, 2)


@torch.no_grad()
def all_again(model, prompt, n):
    res = prompt
    for _ in range(n): res += SYMBOLS[drawn(model(torch.tensor([[NUMBER[c] for c in res]]))[0,:,-1])]
    return res


@torch.no_grad()
def over_the_steps(model, prompt, n):
    "Softmax runs along the last axis, which is that of the steps here"
    res = prompt
    for _ in range(n):
        p = model(torch.tensor([[NUMBER[c] for c in res]])).softmax(-1)
        res += SYMBOLS[torch.multinomial(p[0,:,-1], 1)]
    return res


def test_symbols_on_the_second_axis(trained):
    net = Across()
    net.load_state_dict(trained['model'].state_dict())
    look = lambda f: diagnose(model=net, dls=trained['batches'], loss_func=F.cross_entropy, sample=f, text=TEXT, trials=False)
    r = look(all_again)
    assert not r.findings, r
    f = next(o for o in look(over_the_steps).findings if o.id == 'S9')
    assert 'softmax(1)' in f.fix and 'softmax(-1)' in f.place.source


@pytest.mark.parametrize('fond,ids', [(True, []), (False, ['G8'])])
def test_a_corpus_that_says_the_same_again_and_again(fond, ids):
    "What is written has long pieces of the corpus, and so has the corpus of itself; or it has not"
    phrases = [TEXT[i:i+70] for i in range(0, 1400, 70)]
    at = torch.randint(0, 20, (120,), generator=torch.Generator().manual_seed(1)).tolist()
    corpus = ''.join(phrases[i] for i in at) if fond else TEXT
    written = ''.join(phrases[i] for i in (3, 11, 7, 0, 15, 18, 5, 9)) if fond else TEXT[:500]
    w = Written(text=written)
    assert [o.id for o in check_text(w, corpus)] == ids


@pytest.mark.parametrize('prefix,keeps,ids', [('module.', True, ['G5']), ('', True, []), ('', False, ['G3'])])
def test_a_network_of_its_own_writes(trained, prefix, keeps, ids):
    "Weights that go into it, and weights whose names do not fit, which strict=False passes over"
    weights = {prefix+k:v for k,v in trained['model'].state_dict().items()}
    def write(model, prompt, n):
        net = Writer()
        net.load_state_dict(weights, strict=False)
        return one_by_one(net.eval(), prompt, n, keeps=True) if keeps else forgets(net.eval(), prompt, n)
    assert [o.id for o in diagnose(**trained, sample=write).findings] == ids


@torch.no_grad()
def forgets(net, prompt, n):
    res = prompt
    for _ in range(n): res += SYMBOLS[drawn(net(torch.tensor([[NUMBER[res[-1]]]]))[0][:,-1])]
    return res


READERS = dict(
    bytes=(lambda c: list(c.encode()), []),
    another_in_its_place=(lambda c: [NUMBER.get(c, 0)], ['G6']),
    nothing_in_its_place=(lambda c: [NUMBER[o] for o in c if o in NUMBER], ['G6']),
)


@pytest.mark.parametrize('number,ids', READERS.values(), ids=READERS)
def test_a_network_of_bytes_knows_every_symbol(number, ids):
    "Two symbols that the text does not have are two prompts to it, and one to who replaces or leaves out either"
    torch.manual_seed(0)
    emb,cell,out = net = nn.ModuleList([nn.Embedding(256, 16), nn.GRUCell(16, 16), nn.Linear(16, 256)])
    @torch.no_grad()
    def sample(model, prompt, n):
        h,res = torch.zeros(1, 16),''
        for c in prompt:
            for i in number(c): h = cell(emb(torch.tensor([i])), h)
        for _ in range(n):
            i = torch.multinomial(out(h)[0].softmax(0), 1)
            res,h = res+chr(i),cell(emb(i), h)
        return prompt+res
    subject = parts_subject(net, [(torch.zeros(2, 3).long(), torch.zeros(2, 3).long())], F.cross_entropy)
    assert [o.id for o in check_unknown(sample, subject, 'able bible ')] == ids


class Reciter(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.emb,self.rnn = nn.Embedding(26, 64),nn.GRU(64, 96, batch_first=True)
        self.drop,self.out = nn.Dropout(p),nn.Linear(96, 26)
    def forward(self, x, h=None):
        y,h = self.rnn(self.emb(x), h)
        return self.out(self.drop(y)),h


@torch.no_grad()
def recited(model, prompt, n):
    model.eval()
    x,h,res = torch.tensor([[ord(c)-97 for c in prompt]]),None,prompt
    for _ in range(n):
        out,h = model(x, h)
        x = torch.multinomial(out[0,-1:].softmax(-1), 1)
        res += chr(97+x.item())
    return res


@pytest.mark.parametrize('p', [0., .5])
def test_a_network_that_recites_is_not_told_to_have_the_dropout_that_it_has(p):
    ids = torch.randint(0, 26, (400,), generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    net,batches = Reciter(p),[(ids[k:k+360].view(12, 30), ids[k+1:k+361].view(12, 30)) for k in range(0, 39, 3)]
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    def loss(out, y): return F.cross_entropy(out[0].flatten(0, 1), y.flatten())
    for x,y in batches*12:
        adam.zero_grad()
        loss(net(x), y).backward()
        adam.step()
    page = ''.join(chr(97+i) for i in ids.tolist())
    found = sampling_findings(recited, parts_subject(net, batches, loss, adam), page)
    assert [(o.id, 'dropout = 0.5' in o.fix, 'epochs //= 2' in o.fix) for o in found] == [('G8', not p, bool(p))]


@torch.no_grad()
def whole_again(model, prompt, n, symbols=SYMBOLS, flat=False, mapped=True, k=6):
    "All goes in each time, and is put into letters at the end; what is drawn is one of the likeliest"
    ids = [NUMBER[c] for c in prompt]
    for _ in range(n):
        p = model(torch.tensor([ids[-20:]]))[0][0,-1].softmax(0)
        best = (p.exp() if flat else p).topk(k if not flat else len(p))
        i = torch.multinomial(best.values, 1)
        ids.append((best.indices[i] if mapped else i).item())
    return ''.join(symbols[i] for i in ids)


@pytest.mark.parametrize('kwargs,want', [
    ({}, []), (dict(flat=True), [('G1', 'strong')]), (dict(mapped=False), [('G1', 'strong')]),
    (dict(symbols=SYMBOLS[-1:]+SYMBOLS[:-1]), [('G4', 'exact')])])
def test_all_that_was_read_is_put_into_letters_at_the_end(trained, kwargs, want):
    assert told(trained, whole_again, **kwargs) == want


def test_a_place_in_an_order_is_no_character(trained):
    f, = diagnose(sample=lambda model, prompt, n: whole_again(model, prompt, n, mapped=False), **trained).findings
    assert 'places in the order' in f.message
