"Damaged and hostile files: some hundred mutations (tests/fuzz.py makes as many as are wanted), and each thing that they found"
import hashlib
import json
import random

import pytest
import torch
from fastai.callback.core import Callback

pytest.importorskip('resource')                                                      # fuzz.py limits memory with it
import fuzz
from make_golden import extras, fit, learner

from charrnn_fa.run.files import Folder, RunError, digest, pack
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.run.model import Run, load_run
from charrnn_fa.checkpoint.restore import State
from charrnn_fa.store.copies import Remote


def test_mutations(capsys):
    rep = fuzz.fuzz(400, seed=7, chunk=200)
    rep.show()
    assert sum(rep.counts.values()) == 400 and not rep.findings, capsys.readouterr().out
    assert len({k for k,_ in rep.counts}) >= 2 and sum(n for (_,o),n in rep.counts.items() if o == 'loaded') > 40


@pytest.fixture(scope='module')
def base(tmp_path_factory): return fuzz.Base(tmp_path_factory.mktemp('base'))


@pytest.fixture
def folder(base):
    "The files of a run, to be changed: `folder('finished')`"
    def _folder(which):
        base.write(base.files[which])
        return base.run
    return _folder


def reseal(path, **changes):
    d = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**d, 'sha256': digest(d)}))


def test_settings_name_no_file_outside(folder):
    "Neither read nor, which would be worse, copied to a store"
    path = folder('finished')/'run.json'
    text = json.loads(path.read_text())['text']
    outside = folder('finished').parent/fuzz.CANARY
    for name in f'../{fuzz.CANARY}', str(outside), '/etc/passwd', 'text-0123456789abcdef.safetensors/../x', 'run.json':
        reseal(path, text={**text, 'file': name})
        with pytest.raises(RunError, match='run.json is damaged'): RunFolder(path.parent)


@pytest.mark.parametrize('change', [dict(text=None), dict(text={'ids_sha256': 'x'}), dict(preset=[]), dict(vocab='x'),
                                    dict(fit=3), dict(fit=[1]), dict(id=5), dict(info=None), dict(format='x'*10_000),
                                    dict(format=True), dict(kind=7)])
def test_settings_of_other_kinds(folder, base, change):
    path = folder('unfinished')/'run.json'
    reseal(path, **change)
    with pytest.raises(RunError): Run(path.parent).info()
    with pytest.raises(RunError) as e: fit(learner(fuzz.TEXT, base.dir/'scratch'), path.parent)
    assert len(str(e.value)) < 500


@pytest.mark.parametrize('change', [dict(n_hid=10**6), dict(n_layers=10**9), dict(emb_sz=10**9), dict(head_sz=10**7),
                                    dict(n_hid=10**30), dict(n_hid=-1), dict(arch='x'), dict(dropout=float('nan'))])
def test_settings_ask_for_no_memory(folder, change):
    path = folder('finished')/'run.json'
    reseal(path, preset={**json.loads(path.read_text())['preset'], **change})
    for f in (lambda: Run(path.parent).info(), lambda: Run(path.parent).load_model(),
              lambda: Run(path.parent).learner(), lambda: load_run(path.parent)):
        with pytest.raises(RunError): f()
    reseal(path, preset={**json.loads(path.read_text())['preset'], 'arch': 'x'*100_000})
    with pytest.raises(RunError) as e: Run(path.parent)
    assert len(str(e.value)) < 1000
    reseal(path, preset={**json.loads(path.read_text())['preset'], 'arch': 'gru', **change})
    for o in path.parent.glob('step-*'): o.unlink()                                  # without a checkpoint too
    with pytest.raises(RunError): Run(path.parent).info()


@pytest.mark.parametrize('f', [lambda t: t[:1], lambda t: t.double(), lambda t: t.to(torch.int32), lambda t: t[None]],
                         ids=['shape', 'float64', 'int32', 'dimension'])
def test_weights_are_not_converted(folder, f):
    "`copy_` would broadcast one row to all, and turn any type into another"
    run = Run(folder('finished'))
    m,ts,_ = run.newest_whole()
    run.save({**ts, 'decoder.bias': f(ts['decoder.bias'])}, {}, step=10**6, epoch=1, finished=True)
    with pytest.raises(RunError, match='other weights'): run.load_model()


def test_text_is_checked(folder):
    run = Run(folder('finished'))
    file = run.path/run.settings['text']['file']
    train,valid = run.ids('train'),run.ids('valid')
    for bad in (dict(train=train+200, valid=valid), dict(train=train.float(), valid=valid),
                dict(train=train[None], valid=valid), dict(train=train[:-1], valid=valid), dict(train=train)):
        file.write_bytes(b''.join(pack(bad)))
        reseal(run.path/'run.json', text={**run.settings['text'], 'size': file.stat().st_size,
                                          'sha256': hashlib.sha256(file.read_bytes()).hexdigest()})
        with pytest.raises(RunError): load_run(run.path)


@pytest.mark.parametrize('change', [dict(size=-1), dict(step=-5), dict(step=10**400), dict(generation=-1),
                                    dict(resumes=[-1]),
                                    dict(epoch=2.5), dict(format=True), dict(format='1'), dict(file='../x')])
def test_manifests_are_checked(folder, change):
    "Those that are no good do not count"
    run = Run(folder('finished'))
    name = run.newest()['file'].replace('.safetensors', '.json')
    reseal(run.path/name, **change)
    assert name not in [m['file'] for m in run.checkpoints()] and 'damaged' in str(run.damaged[name])


def test_a_manifest_counts_under_its_own_name(folder):
    "One that took another's place would be read, and its data cleared away as left over"
    run = Run(folder('finished'))
    new,old = [run.path/o['file'].replace('.safetensors', '.json') for o in run.checkpoints()[:2]]
    there = [o['file'] for o in run.checkpoints()[2:]]
    new.replace(old)
    assert [o['file'] for o in run.checkpoints()] == there
    assert f"describes another file, {new.stem}.safetensors; remove it" in str(run.damaged[old.name])


def test_settings_of_another_run_recover_none(folder):
    "A checkpoint whose manifest names another run than its settings do"
    path = folder('finished')
    (path/'run.json').unlink()
    assert Remote(Folder(path)).recover()
    for o in path.glob('step-*.json'): reseal(o, run='0'*32)
    assert Remote(Folder(path)).recover() is None


@pytest.mark.parametrize('change', [dict(host='\x1b[2Jx'), dict(host='x'*10_000), dict(generation=-1), dict(beat='1'),
                                    dict(resumes=[None])])
def test_owner_records_are_checked(folder, change):
    run = Run(folder('unfinished'))
    reseal(next(run.path.glob('owner-*')), **change)
    assert run.owner() is None


def in_fit(base, f, cbs=()):
    "Call `f(learn)` where checkpoints are restored: in the `before_fit` of a fit"
    class Done(Exception): pass
    class Now(Callback):
        order = 1001
        def before_fit(self):
            f(self.learn)
            raise Done('done')
    learn = learner(fuzz.TEXT, base.dir/'scratch', seed=3)
    with pytest.raises(Done): learn.fit_one_cycle(3, 1e-2, cbs=[*extras(), Now(), *cbs])
    return learn


def hostile(base, change):
    meta = json.loads(base.meta)
    change(meta)
    return meta


# as `to_json` has it; of two that are the same the last counts
def entries(d): return {'dict': [o for kv in d.items() for o in kv]}

def put(j, **kwargs): j['dict'] += entries(kwargs)['dict']

def get(j, k): return dict(zip(j['dict'][::2], j['dict'][1::2]))[k]

def attrs(name): return lambda m, **kwargs: put(m['cbs'][name], **kwargs)


@pytest.mark.parametrize('change', [
    # NumPy would read other memory
    lambda m: put(m['rng'], numpy={'tuple': [*get(m['rng'], 'numpy')['tuple'][:2], 10**6, 0, 0.0]}),
    lambda m: m['rng'].update(dict=m['rng']['dict'][2:]),
    lambda m: m.update(at=[1.5, 2]), lambda m: m.update(at=['0', '1']), lambda m: m.update(at=[-1, 0]),
    lambda m: m.update(at=[10**400, 0]), lambda m: m.update(elapsed='x'), lambda m: m.update(elapsed=float('nan')),
    lambda m: m.update(base=10**6), lambda m: m.update(env={'gpu': 'x'*10_000}), lambda m: m.update(env=[['a', 1]]),
    lambda m: m.update(opt={'dict': []}), lambda m: m.update(opt=None), lambda m: put(m['opt'], hypers=None),
    lambda m: get(m['opt'], 'hypers')['L'].pop(), lambda m: get(m['opt'], 'hypers')['L'][0]['dict'].__setitem__(1, 'x'),
    lambda m: put(m['learn'], seed=-1), lambda m: put(m['learn'], carried={'tuple': []}),
    lambda m: put(m['learn'], steps_done=None), lambda m: put(m['learn'], smooth_loss='x'),
    lambda m: put(m['learn'], epoch=None), lambda m: m['loaders']['list'].pop(),
    lambda m: m.update(loaders={'list': [entries(dict(seed=1, epoch=0, batch=10**9))]*2}),
    lambda m: attrs('CSVLogger#0')(m, _text='\ud800'), lambda m: attrs('CSVLogger#0')(m, _text=5),
    lambda m: m.update(best=entries({'SaveModelCallback#0': {'tuple': [entries({}), None]}})),
    lambda m: attrs('Recorder#0')(m, losses='x'), lambda m: attrs('SaveModelCallback#0')(m, best={'list': []}),
    lambda m: attrs('AvgSmoothLoss:avg_smooth_loss#0')(m, count='x'),
    lambda m: m.update(cbs={**m['cbs'], 'Recorder#0': entries({'lrs': {'list': [[1]]}})}),
    lambda m: attrs('Tally#0')(m, last=fuzz.nested(900, 'list')), lambda m: attrs('Tally#0')(m, seen=2**63),
    # a small file that asks for much memory
    lambda m: attrs('Tally#0')(m, last={'list': [get(m['learn'], 'smooth_loss')]*1000}),
])
def test_hostile_state_changes_nothing(base, change):
    meta = hostile(base, change)
    def check(learn):
        before = ([{**vars(o)} for o in learn.cbs],[p.clone() for p in learn.model.parameters()],
                  torch.get_rng_state(),random.getstate())
        with pytest.raises(RunError, match='damaged'): State(learn, base.tensors, meta, 'x')
        assert all(vars(o).keys() == b.keys() and all(vars(o)[k] is b[k] for k in b) for o,b in zip(learn.cbs, before[0]))
        assert (all(torch.equal(p, q) for p,q in zip(learn.model.parameters(), before[1]))
                and torch.equal(torch.get_rng_state(), before[2]) and random.getstate() == before[3])
    in_fit(base, check)


@pytest.mark.parametrize('name', ['learn', 'model', 'opt', 'dls', 'path', 'run', 'order', 'name', '__class__',
                                  '_x', 'before_batch', 'state_dict', 'load_state_dict', 'loss_func', 'recorder',
                                  'fname', 'comp', 'file'])
def test_no_attribute_but_plain_state(base, name):
    "What a file holds under such a name is left out"
    meta = hostile(base, lambda m: [put(d, **{name: 7}) for n,d in m['cbs'].items()
                                    if ':' not in n and not n.startswith('Budget')])
    def check(learn):
        before = {id(o): {**vars(o)} for o in learn.cbs}
        State(learn, base.tensors, meta, 'x').restore()
        for o in learn.cbs:
            if name in before[id(o)] or hasattr(learn, name) or hasattr(type(o), name):
                assert vars(o).get(name) is before[id(o)].get(name)
        assert learn.tally.seen > 0
    in_fit(base, check)


def test_optimizer_state_is_checked(base):
    key = next(k for k in base.tensors if k.startswith('train/opt') and base.tensors[k].ndim == 2)
    for t in base.tensors[key].long(), base.tensors[key][:1], base.tensors[key][None], torch.zeros(()):
        def check(learn):
            with pytest.raises(RunError): State(learn, {**base.tensors, key: t}, json.loads(base.meta), 'x')
        in_fit(base, check)


def test_a_callback_of_ones_own_may_change_kinds(base):
    "Such as one that begins with an empty text and has counts in the end; whether it is switched off comes back too"
    class Odd(Callback):
        def __init__(self): self.best,self.parts = '',[]
    odd,later = Odd(),entries({'best': 2.5, 'parts': {'tensor': 'train/cb/Odd#0/parts'}, 'run': False})
    meta = hostile(base, lambda m: m['cbs'].update({'Odd#0': later}))
    in_fit(base, lambda learn: State(learn, {**base.tensors, 'train/cb/Odd#0/parts': torch.ones(2)}, meta, 'x').restore(),
           [odd])
    assert (odd.best, odd.parts.tolist(), odd.run) == (2.5, [1, 1], False)


