"Models on a Hub: the real client `huggingface_hub` against a server on this machine (hub_server.py), which speaks the Hub's calls but Xet"
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
import traceback

import huggingface_hub
import pytest
import torch
import yaml
from hub_server import Hub, Repo
from huggingface_hub import constants
from safetensors.torch import load as load_tensors

from charrnn_fa.errors import CharRNNError
from charrnn_fa.run.files import pack, pack_json, sha256_pieces
from charrnn_fa.run.hub import hub_folder
from charrnn_fa.run.hub import from_hub
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.run.model import Run, load_run, save_run, weights_sha256

TOKEN = 'hf_mine'


@pytest.fixture
def hub(monkeypatch, tmp_path):
    "A Hub, and a client that knows no token but what a test gives it"
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path/'no token'))
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    for o in 'HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY':
        monkeypatch.delenv(o, raising=False)
    with Hub() as hub: yield hub


@pytest.fixture
def push(hub, learn):
    def _push(repo_id='me/tiny', learn=learn, **kwargs):
        return learn.push_to_hub(repo_id, **{**dict(token=TOKEN, endpoint=hub.url, sample=40), **kwargs})
    return _push


@pytest.fixture
def load(hub, tmp_path):
    def _load(repo_id='me/tiny', **kwargs):
        return from_hub(repo_id, **{**dict(endpoint=hub.url, device='cpu', cache_dir=tmp_path/'cache'), **kwargs})
    return _load


def refused(f, *parts, secret=TOKEN):
    "`f` ends in one sentence with each of `parts` and a remedy; the token is not in it, nor in anything that is printed with it"
    with pytest.raises(CharRNNError) as e: f()
    s = str(e.value)
    assert all(o in s for o in parts), s
    assert '\n' not in s and e.value.remedy and secret not in s + ''.join(traceback.format_exception(e.value))
    return s


ABSENT = """
import sys, charrnn_fa.all
from charrnn_fa.run.hub import from_hub
assert 'huggingface_hub' not in sys.modules
sys.modules['huggingface_hub'] = None
try: from_hub('me/tiny')
except ValueError as e: print(e)
del sys.modules['huggingface_hub']
"""


def test_out_and_in_again_in_another_process(hub, push, learn, tmp_path, capsys):
    """The same weights to the bit, and the same text for the same seed; what runs there is what the card says.
    The package is not imported before it is needed, and then asked for"""
    learn.fit_steps(5)
    url = push(prompt='The', data='a manual', data_license='PSF-2.0', license='mit')
    assert url == f'{hub.url}/me/tiny' and f'me/tiny is on the Hub, without its text: {url}\n' in capsys.readouterr().out
    shown = re.search('```python\n(.*?)```', hub.repos['me/tiny'].files['README.md'].decode(), re.S)[1]
    code = (f"{ABSENT}{shown}from charrnn_fa.run.model import weights_sha256\n"
            "print('|', weights_sha256(learn.model), repr(learn.generate('The', n=80, seed=3)), sep='|')")
    env = {**os.environ, 'HF_ENDPOINT':hub.url, 'HF_HUB_DISABLE_XET':'1', 'HF_HOME':str(tmp_path/'home'),
           'OMP_NUM_THREADS':'1'}
    p = subprocess.run([sys.executable, '-c', code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    assert 'it is not installed; run: pip install -U huggingface_hub' in p.stdout
    _,sha,made = p.stdout[p.stdout.rindex('||')+1:].split('|', 2)
    assert sha == weights_sha256(learn.model) and made.strip() == repr(learn.generate('The', n=80, seed=3))


def test_what_is_published(hub, push, learn, text):
    "Settings, weights, card: no text, no pickle, no token, nothing of this machine"
    push()
    files = hub.repos['me/tiny'].files
    kinds = sorted(re.sub('-[0-9]+-[0-9a-f]+', '', o) for o in files)
    assert kinds == ['README.md', 'config.json', 'run.json', 'step.json', 'step.safetensors']
    everything = b''.join(files.values())
    assert (TOKEN.encode() not in everything and os.fsencode(os.getcwd()) not in everything
            and text[2000:2030].encode() not in everything)
    # a .safetensors is read below; the length of its header comes first, and may look like a pickle's 80 03
    others = [v for k,v in files.items() if not k.endswith('.safetensors')]
    assert not any(o.startswith((b'\x80', b'PK')) for o in others)       # how a pickle and PyTorch's zip begin
    ids = learn.dls.train.ids.numpy().tobytes()
    assert ids[1000:1030] not in everything
    ts = load_tensors(next(v for k,v in files.items() if k.endswith('.safetensors')))
    # and nothing of the optimiser
    assert {k:t.shape for k,t in ts.items()} == {k:p.shape for k,p in learn.model.named_parameters()}
    config = json.loads(files['config.json'])
    assert (config['n_params'] == sum(t.numel() for t in ts.values())
            and config['weights_sha256'] == weights_sha256(learn.model))
    push(text=True)
    assert ids[1000:1030] in b''.join(hub.repos['me/tiny'].files.values())


def test_the_card_has_the_facts(hub, push, learn, tmp_path):
    "Read with the client's own reader of cards, and held against what is measured without it"
    push('me/tiny', license='apache-2.0', data='Letters: a "test" #1', data_license='CC0-1.0', prompt='The')
    path = tmp_path/'README.md'
    path.write_bytes(hub.repos['me/tiny'].files['README.md'])
    card = huggingface_hub.ModelCard.load(path)
    result, = card.data.eval_results
    assert (card.data.license, card.data.library_name, card.data.model_name) == ('apache-2.0', 'charrnn_fa', 'tiny')
    ids = learn.dls.valid.ids.long()
    with torch.no_grad(): logits,_ = learn.model.eval()(ids[None,:-1])
    bits = torch.nn.functional.cross_entropy(logits[0], ids[1:]).item()/0.6931471805599453
    assert abs(result.metric_value - bits) < 1e-3 and result.dataset_name == 'Letters: a "test" #1, validation part'
    for o in (f'**{bits:.3f} bits per character**', 'Letters: a "test" #1', 'CC0-1.0',
              f'validation part, {len(ids):,} characters (10%)', f'{len(learn.dls.train.ids):,} characters to learn from',
              f'{sum(p.numel() for p in learn.model.parameters()):,} parameters',  
              learn.generate('The', n=40, seed=0), "from_hub('me/tiny')",
              'is not in this repository', 'word for word'):
        assert o in card.content, o
    push('me/tiny', text=True)
    again = hub.repos['me/tiny'].files['README.md'].decode()
    for o in ('Licence of the model: none was given', 'not named by whoever', 'Licence of the data: not known',
              'is in this repository'):
        assert o in again, o
    assert 'license' not in yaml.safe_load(again.split('---\n')[1])


def test_a_model_without_its_text_still_knows_which_it_was(hub, push, load, make, text, tmp_path):
    "However often it is saved and loaded"
    learn = make(CharDataLoaders.from_text(text, bs=4, seq_len=16, seed=7, by_line=True, val_bs=2, device='cpu'))
    push(learn=learn)
    learner = load()
    for o in 'abc':
        run = save_run(learner, tmp_path/o)
        assert not any(k.startswith('text-') for k in os.listdir(run.path)) and run.info()['step'] == 0
        assert run.settings['info']['valid_pct'] == pytest.approx(.1)
        learner = load_run(run.path, 'cpu')
        refused(learner.evaluate, 'has no text; set its loaders')
        refused(lambda: hub_folder(learner, tmp_path/'none', text=True), 'has no text')
        given = load_run(run.path, 'cpu', text=text)
        assert given.evaluate() == learn.evaluate()
        assert given.dls.train.batch(3, 1)[0].equal(learn.dls.train.batch(3, 1)[0])
        refused(lambda: load_run(run.path, 'cpu', text=text[1:]), 'not the text that')
    assert learner.generate('The', n=60, seed=1) == learn.generate('The', n=60, seed=1)


def test_with_its_text_it_can_train(hub, push, load, learn, text):
    "From the Hub, or given back; another one is refused"
    with learn.no_bar(): learn.fit_steps(2)      # or fresh weights from the same seed would do
    push()
    bare = load()
    assert bare.generate('The', n=60, seed=1) == learn.generate('The', n=60, seed=1)
    assert bare.evaluate(text=text[-600:]) == learn.evaluate(text=text[-600:])
    refused(bare.evaluate, 'has no text; set its loaders')
    refused(lambda: push(learn=bare), 'has no text')
    given = load(text=text)
    assert given.evaluate() == learn.evaluate()
    refused(lambda: load(text=text[1:]), 'not the text that me/tiny on the Hub was begun with')
    push(text=True)
    with_text = load()
    assert with_text.evaluate() == learn.evaluate()
    with with_text.no_bar(): with_text.fit_steps(2)


def test_a_second_push_replaces_the_first(hub, push, load, learn):
    "In one commit; a text that was published goes; the commit before can still be had"
    push(text=True)
    sha,before = hub.repos['me/tiny'].commits[-1]
    old = weights_sha256(learn.model)
    with learn.no_bar(): learn.fit_steps(3)
    push()
    files = hub.repos['me/tiny'].files
    assert (len(hub.repos['me/tiny'].commits) == 3
            and set(before) - set(files) == {o for o in before if o.startswith(('step-', 'text-'))})
    assert weights_sha256(load().model) == weights_sha256(learn.model) != old
    assert weights_sha256(load(revision=sha).model) == old
    refused(lambda: load(revision='nine'), 'no such revision', 'revision=')


def test_private(hub, push, load):
    push(private=True)
    assert hub.repos['me/tiny'].private
    refused(load, 'or it is private', 'login()')
    refused(lambda: load(token='hf_yours'), 'or it is private')
    load(token=TOKEN)
    cdn = [auth for _,path,auth in hub.asked if path.startswith('/cdn/')]
    assert cdn and set(cdn) == {None}        # the token goes to the Hub alone
    push('me/open')
    refused(lambda: push('me/open', private=True), 'already, and public')
    with pytest.raises(CharRNNError, match='private is .*True or False'): push('me/other', private='yes')


@pytest.mark.parametrize('token,says', [(None, 'does not know who you are'), ('hf_wrong', 'does not know who you are'),
                                        ('hf_yours', "don't have the rights")])
def test_a_token_that_may_not_write(hub, push, token, says):
    said = refused(lambda: push(token=token), says)
    assert 'token' in said and 'hf_' not in said and 'me/tiny' not in hub.repos and (token or hub.asked == [])


def test_nothing_there(hub, load, push):
    refused(load, 'The Hub has no me/tiny', 'check the name')
    refused(lambda: load(token='hf_wrong'), 'does not know who you are', 'token=')
    hub.canned['GET', '/api/models/me/tiny'] = 503,b''
    refused(load, 'error 503', 'later')
    refused(push, 'error 503', 'later')
    hub.canned['GET', '/api/models/me/tiny'] = 200,b'<html>Log in to this hotel</html>'
    refused(load, 'cannot be reached')


def test_a_refusal_in_the_middle(hub, push):
    "What the Hub says of it is told"
    hub.canned['POST', '/api/models/me/tiny/commit/main'] = 403,{'error':'Your storage is full.'}
    refused(push, 'Your storage is full')
    hub.canned['POST', '/api/models/me/tiny/commit/main'] = 403,{'error':f'The token {TOKEN} is weak.'}
    refused(push, 'The token ... is weak')
    refused(lambda: push(license='no-such'), 'refuses the card', '"license" must be one of', 'check license=.')


def test_no_network(push, load, monkeypatch):
    "A port where nobody listens, and one where somebody does and says nothing"
    import socket
    start = time.monotonic()
    for f in push,load: refused(lambda: f(endpoint='http://127.0.0.1:9'), 'cannot be reached', 'check the network')
    monkeypatch.setattr('charrnn_fa.run.hub._patience', 0.5)
    with socket.create_server(('127.0.0.1', 0)) as s:
        end = threading.Timer(120, s.close)
        end.start()
        for f in push,load: refused(lambda: f(endpoint=f'http://127.0.0.1:{s.getsockname()[1]}'), 'cannot be reached')
        end.cancel()
    assert time.monotonic()-start < 60
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    refused(load, 'cannot be reached (OfflineModeIsEnabled)')


def test_another_model(hub, push, load):
    "One of somebody else's library is neither read nor overwritten"
    hub.repos['me/bert'] = Repo()
    hub.repos['me/bert'].commit({'config.json':b'{"model_type": "bert"}', 'pytorch_model.bin':b'\x80\x02.',
                                 'model.safetensors':b''})
    refused(lambda: load('me/bert'), 'no model of charrnn_fa', 'run.json')
    refused(lambda: push('me/bert'), 'holds another model', 'another name')
    assert len(hub.repos['me/bert'].commits) == 2 and not any('/resolve/' in path for _,path,_ in hub.asked)


def changed(files, weights=None, manifest=None, settings=None):
    "The files of a run with parts replaced, checksums mended, as somebody would who means harm"
    files = dict(files)
    run = {**json.loads(files['run.json']), **(settings or {})}
    name = next(o for o in files if o.startswith('step-') and o.endswith('.json'))
    m = json.loads(files[name])
    if weights is not None:
        files[m['file']] = weights
        m.update(size=len(weights), file_sha256=sha256_pieces([weights]))
    files.update({'run.json':pack_json(run), name:pack_json({**m, **(manifest or {})})})
    return files


def other(ts, **kwargs): return b''.join(pack({**ts, **kwargs}, {}))


HOSTILE = {
    'wrong shapes': lambda f,ts: changed(f, other(ts, **{'decoder.bias':torch.zeros(3)})),
    'a huge header': lambda f,ts: changed(f, struct.pack('<Q', 2**62) + b'{}'),
    'a pickle for weights': lambda f,ts: changed(
        f, b'\x80\x04\x95\x1b\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x94\x8c\x04exit\x94\x93\x94)R\x94.'),
    'a model of terabytes': lambda f,ts: changed(f, settings=dict(preset={**json.loads(f['run.json'])['preset'],
                                                                          'n_hid':10**6})),
    'a file elsewhere': lambda f,ts: changed(f, manifest=dict(file='../../etc/passwd')),
    'another Learner': lambda f,ts: changed(f, settings=dict(kind='other')),
    'no weights': lambda f,ts: {k:v for k,v in f.items() if not k.endswith('.safetensors')},
    'a later format': lambda f,ts: changed(f, settings=dict(format=2)),
}


@pytest.mark.parametrize('what', HOSTILE)
def test_a_strangers_repository(what, hub, push, load):
    "One sentence about the model, not about a folder of this machine"
    push()
    repo = hub.repos['me/tiny']
    ts = load_tensors(next(v for k,v in repo.files.items() if k.endswith('.safetensors')))
    repo.commit(HOSTILE[what](repo.files, ts))
    start = time.monotonic()
    said = refused(load, 'me/tiny on the Hub', 'tell its owner, or take another one.')
    assert '/tmp' not in said and time.monotonic()-start < 60


def test_nothing_is_written_for_a_mistake(learn, tmp_path):
    for bad in dict(data='a\nb'), dict(sample='many'), dict(prompt='\u2603'):
        with pytest.raises(CharRNNError): hub_folder(learn, tmp_path/'r', **bad)
        assert not (tmp_path/'r').exists()
    with torch.no_grad(): learn.model.decoder.bias[0] = torch.nan
    with pytest.raises(CharRNNError, match='not finite'): hub_folder(learn, tmp_path/'r')
    with torch.no_grad(): learn.model.decoder.bias[0] = 0
    assert Run(hub_folder(learn, tmp_path/'r', sample=0)).info()['weights_sha256'] == weights_sha256(learn.model)
