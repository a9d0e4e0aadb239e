"The command: what it prints, its exit status, and one sentence for each mistake"
import io
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys

import faultfs
import pytest
from fastai.callback.core import Callback

from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.cli import main
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.run.model import load_run
from machine import command, ended, machine, until

TINY = '--n-hid 16 --emb-sz 8 --head-sz 8 --bs 4 --seq-len 16 --precision fp32'.split()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    d = tmp_path_factory.mktemp('runs')/'r'
    assert main(['train', 'count', '--run', str(d), '--steps', '150', '--seed', '1', '--quiet', *TINY]) == 0
    return str(d)


@pytest.fixture
def call(capsys):
    def _call(*args):
        capsys.readouterr()
        try: status = main(list(map(str, args)))
        except SystemExit as e: status = e.code
        return status,*capsys.readouterr()
    return _call


def test_train_json(call, tmp_path):
    status,out,err = call('train', 'count', '--run', tmp_path/'r', '--steps', 30, '--seed', 2, '--quiet', '--json', *TINY)
    assert status == 0 and out.count('\n') == 1
    d = json.loads(out)
    assert set(d) == {'nats', 'bits', 'seconds', 'seconds_total', 'steps', 'chars_per_s', 'finished', 'trained'}
    assert d['steps'] == 30 and d['finished'] is True and 0 < d['seconds'] <= d['seconds_total']
    files = {o: (tmp_path/'r'/o).read_bytes() for o in os.listdir(tmp_path/'r')}
    status,out,err = call('train', 'count', '--run', tmp_path/'r', '--json')           # finished: nothing changes
    assert status == 0 and json.loads(out)['steps'] == 30 and '--from' in err
    assert files == {o: (tmp_path/'r'/o).read_bytes() for o in os.listdir(tmp_path/'r')}


def test_same_seed_same_weights(call, tmp_path):
    shas = []
    for name,seed in ('a', 3), ('b', 3), ('c', 4):
        call('train', 'count', '--run', tmp_path/name, '--epochs', 1, '--seed', seed, '--quiet', *TINY)
        shas.append(json.loads(call('info', tmp_path/name, '--json')[1])['weights_sha256'])
    assert shas[0] == shas[1] != shas[2]


def test_minutes(call, tmp_path):
    status,out,_ = call('train', 'count', '--run', tmp_path/'r', '--minutes', 0.1, '--quiet', '--json', *TINY)
    assert status == 0 and json.loads(out)['steps'] > 8


def test_eval(call, run):
    status,out,_ = call('eval', run, '--json')
    d = json.loads(out)
    assert status == 0 and set(d) == {'nats', 'bits', 'perplexity', 'accuracy', 'n_chars', 'context'}
    assert d['n_chars'] == 1999 and d['context'] == 'carry' and d['accuracy'] > 0.99
    assert json.loads(call('eval', run, '--context', 256, '--json')[1])['context'] == 256
    assert json.loads(call('eval', run, '--whole', '--json')[1])['n_chars'] == 19_999
    assert json.loads(call('eval', run, '--corpus', 'count', '--json')[1])['nats'] == d['nats']
    assert json.loads(call('eval', run, '--corpus', 'count', '--whole', '--json')[1])['n_chars'] == 19_999
    assert '1,999' in call('eval', run)[1]


def test_sample(call, run):
    assert call('sample', run, '--prompt', '0120', '-n', 8, '--temperature', 0)[1] == '012012012012\n'
    a,b,c = (call('sample', run, '-n', 50, '--seed', s, '--temperature', 3)[1] for s in (1, 1, 2))
    assert a == b != c and len(a) == 51


def test_share(call, run, tmp_path):
    page,by_hand = tmp_path/'page.html',load_run(run, 'cpu').share(tmp_path/'by_hand.html', title='Counts', prompt='012')
    status,out,_ = call('share', run, page, '--title', 'Counts', '--prompt', '012', '--json')
    assert status == 0 and json.loads(out) == dict(page=str(page), size=page.stat().st_size)
    assert page.read_bytes() == by_hand.read_bytes()
    assert str(page) in call('share', run, page)[1] and b'Counts' not in page.read_bytes()


def test_info(call, run):
    d = json.loads(call('info', run, '--json')[1])
    assert {'step', 'epoch', 'finished', 'resumes', 'weights_sha256', 'n_params', 'vocab_size', 'checkpoints'} <= set(d)
    assert (d['step'] == 150 and d['finished'] and d['vocab_size'] == 3 and d['resumes'] == []
            and [c['step'] for c in d['checkpoints']] == [150])
    assert 'finished after 150 steps' in call('info', run)[1]


def test_unfinished_run_goes_on_by_itself(call, tmp_path, home):
    "Killed before the first step: the same settings, from the beginning"
    d = tmp_path/'r'
    args = 'train', 'count', '--steps', '200', '--seed', '5', '--quiet', *TINY
    def killed_at_once():
        create = RunFolder.create
        def create_and_die(*args, **fields):
            create(*args, **fields)
            os.kill(os.getpid(), signal.SIGKILL)
        RunFolder.create = create_and_die
        main([*args, '--run', str(d)])
    assert ended(machine(home, killed_at_once)) == -signal.SIGKILL
    assert json.loads(call('info', d, '--json')[1])['step'] == 0
    status,out,_ = call('train', 'count', '--run', d, '--json', '--quiet')
    assert status == 0 and json.loads(out)['steps'] == 200
    assert call(*args, '--run', tmp_path/'alone')[0] == 0
    assert (json.loads(call('info', d, '--json')[1])['weights_sha256']
            == json.loads(call('info', tmp_path/'alone', '--json')[1])['weights_sha256'])


@pytest.mark.parametrize('args,said',
                         [(['--epochs', 8], '--epochs 4'), (['--valid-pct', 0.2], '--valid-pct 0.1'),
                          (['--precision', 'bf16'], '--precision fp32'), (['--preset', 't4-hour'], '--preset cpu-minute'),
                          (['--from', '{run}'], 'no --from'), (['--encoding', 'latin-1'], '--encoding utf-8'),
                          (['--minutes', 3], 'no --minutes'), (['--steps', 9], 'no --steps'), (['--n-hid', 9], '--n-hid 16')])
def test_settings_of_an_unfinished_run_are_not_ignored(call, begun, run, args, said):
    status,out,err = call('train', begun.text, '--run', begun.d, *(str(o).format(run=run) for o in args))
    assert status == 1 and out == '' and err.count('\n') == 1 and f'was begun with {said};' in err


@pytest.mark.usefixtures('fuse')
@pytest.mark.parametrize('how', ['missing', 'empty'])
def test_the_end_is_not_on_the_mount(call, tmp_path, home, how):
    "Killed before it was copied, or emptied there later: the next call brings it there"
    with faultfs.DriveMount(tmp_path) as drive:
        (drive.backing/'MyDrive').mkdir()
        d = drive.mountpoint/'MyDrive/r'
        assert call('train', 'count', '--run', d, '--steps', 30, '--quiet', *TINY)[0] == 0
        for o in d.glob('step-00000030-*' if how == 'missing' else 'step-00000030-*.safetensors'):
            o.unlink() if how == 'missing' else os.truncate(o, 0)
        status,out,err = call('train', 'count', '--run', d, '--quiet', '--json')
        assert status == 0 and json.loads(out)['steps'] == 30 and json.loads(out)['finished'], err
        (c,*_) = json.loads(call('info', d, '--json')[1])['checkpoints']
        assert c['step'] == 30 and c['verified']


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
    "A run over a file that has not come to its end"
    from types import SimpleNamespace
    d = tmp_path_factory.mktemp('begun')
    (d/'t.txt').write_text('abcd'*100)
    from charrnn_fa.cli import main
    assert main(list(map(str, ['train', d/'t.txt', '--run', d/'r', '--epochs', 4, '--save-steps', 5,
                               '--quiet', '--precision', 'fp32', *TINY]))) == 0
    last = max((d/'r').glob('step-*.json'))
    last.unlink()                                                                    # as if killed before the end
    return SimpleNamespace(d=d/'r', text=d/'t.txt')


def test_an_unfinished_run_from_python(call, make, tmp_path):
    "The command line does not know what it was to become"
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        make(n_hid=8, emb_sz=8, head_sz=0).fit(2, 1e-2, cbs=[Stop(), Checkpoint(tmp_path/'r', quiet=True)])
    code,out,err = call('train', '--run', tmp_path/'r')
    assert code == 1 and 'begun in Python' in err and len(err.splitlines()) == 1
    report = json.loads(call('doctor', tmp_path/'r', '--json')[1])
    assert report['note'].startswith('learn.fit(...)') and 'charrnn train --run' not in str(report)


@pytest.mark.parametrize('finished', [False, True])
def test_the_same_line_goes_on_though_its_text_is_gone(call, begun, tmp_path, finished):
    "The run has a copy; that the file is gone is said, and on stderr beside --json"
    d,text = tmp_path/'r',tmp_path/'moved.txt'
    shutil.copytree(begun.d, d)
    if finished: assert call('train', '--run', d, '--quiet')[0] == 0
    begun.text.rename(text)
    try: status,out,err = call('train', begun.text, '--run', d, '--quiet', '--json')
    finally: text.rename(begun.text)
    assert status == 0 and json.loads(out)['finished'] and 'the run keeps its text' in err
    assert json.loads(call('info', d, '--json')[1])['finished']
    status,_,err = call('train', tmp_path/'never.txt', '--run', d)
    assert status == 1 and 'leave it out' in err and err.count('\n') == 1


def test_text_that_has_changed_is_refused(call, begun, tmp_path):
    d = tmp_path/'r'
    shutil.copytree(begun.d, d)
    for change in 'abca', 'abcx':
        text = begun.text.read_text()
        try:
            begun.text.write_text(text[:-4] + change)
            status,_,err = call('train', begun.text, '--run', d)
        finally: begun.text.write_text(text)
        assert status == 1 and err.count('\n') == 1 and 'not the text' in err
    assert call('train', begun.text, '--run', d, '--quiet')[0] == 0


def in_terminal(args, until, columns=100):
    """Run the command in a terminal, with an interrupt as soon as it has shown the texts of `until` in this
    order: the exit status and the lines that are left to be read"""
    fcntl,pty,termios = (pytest.importorskip(o) for o in ('fcntl', 'pty', 'termios'))
    ours,theirs = pty.openpty()
    # without a width tqdm shows nothing
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('4H', 24, columns, 0, 0))
    pid = command(*args, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    out,seen,until = b'',0,[o.encode() for o in until]
    try:
        while piece := read(ours):
            out += piece
            while until and until[0] in out[seen:]:
                seen = out.index(until[0], seen) + len(until.pop(0))
                if not until: os.kill(pid, signal.SIGINT)
        status,pid = ended(pid),None
    finally:
        if pid: os.kill(pid, signal.SIGKILL); ended(pid)
        os.close(ours)
    return status,[overwritten(o) for o in out.decode().replace('\r\n', '\n').split('\n')]


def read(terminal):
    "What has been written to a terminal; nothing at its end, which is an error on Linux"
    try: return os.read(terminal, 65536)
    except OSError: return b''


def overwritten(line):
    "What a terminal shows of a line with carriage returns"
    shown = ''
    for o in line.split('\r'): shown = o + shown[len(o):]
    return shown.rstrip()


def test_nothing_is_said_in_the_line_of_the_bar(tmp_path):
    "What a run says at its beginning, a line with its sample, and what an interrupt says: each above a bar that stands"
    status,lines = in_terminal(['train', 'count', '--run', tmp_path/'r', '--steps', 6000, '--seed', 1, *TINY],
                               until=['step/s', ' left\r\n', 'step/s', 'step/s'])
    assert status == 130
    n_samples = (len(lines)-6)//3 # each of a line with the loss, one with the text, and an empty one
    said = ['18,000 characters to train on', 'lstm with', 'A new run, kept in ', *['step ', '    ', '']*n_samples,
            'Stopped; the run in ', 'charrnn: stopped.']
    assert n_samples in (1, 2) and len(lines) == len(said)+1 and lines[-1] == ''
    for line,begins in zip(lines, said): assert line.startswith(begins) and 'step/s' not in line, line


class Screen(io.StringIO):
    "Where a person watches"
    def isatty(self): return True


def test_the_doctor_says_that_it_is_at_work(run, monkeypatch):
    "Where a person watches; it takes seconds"
    monkeypatch.setattr(sys, 'stderr', screen := Screen())
    assert main(['doctor', run]) == 0
    assert 'looking ...' in screen.getvalue() and overwritten(screen.getvalue()) == ''


def test_save_minutes(call, tmp_path):
    "None between two saves: each step is due"
    assert call('train', 'count', '--run', tmp_path/'r', '--steps', 30, '--save-minutes', 0, '--quiet', *TINY)[0] == 0
    assert json.loads(call('info', tmp_path/'r', '--json')[1])['checkpoints'][1]['step'] > 0
    assert call('train', 'count', '--run', tmp_path/'q', '--steps', 30, '--save-minutes', 9, '--quiet', *TINY)[0] == 0
    assert [c['step'] for c in json.loads(call('info', tmp_path/'q', '--json')[1])['checkpoints']] == [30]


def test_a_url_is_no_folder(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status,_,err = call('train', 'count', '--run', 's3://bucket/run')
    assert status == 1 and err.count('\n') == 1 and 'Checkpoint' in err and os.listdir(tmp_path) == []


@pytest.mark.usefixtures('fuse')
def test_a_run_on_a_mount(call, run, tmp_path):
    "`info` says how far the files have come; a mount that hangs is given up after ten seconds"
    with faultfs.DriveMount(tmp_path) as drive:
        d = drive.mountpoint/'MyDrive/r'
        shutil.copytree(run, d)
        states = lambda: {c['state'] for c in json.loads(call('info', d, '--json')[1])['checkpoints']}
        assert states() == {'mounted'}
        drive.control(uncommitted=0)
        assert states() == {'uploaded'}
        (data,) = [o for o in d.glob('step-*.safetensors') if '00000000' not in o.name[:13]]
        # as Drive may do; what it has is not asked for by another name
        data.rename(data.with_stem(f'{data.stem} (1)'))
        assert 'mounted' in states()
        drive.control(uncommitted=True)
        (d/'owner-000009-01234567-0.json').touch()
        drive.control(delay=dict(getattr=30))
        r,w = os.pipe()
        with open(os.devnull, 'w') as null: pid = command('info', d, stdout=null.fileno(), stderr=w)
        os.close(w)
        try:
            with open(r) as f: assert 'has not answered for 10 seconds' in f.readline()
        finally: os.kill(pid, signal.SIGKILL); drive.control(); ended(pid)


def test_from_another_run_with_more_symbols(call, run, tmp_path):
    (tmp_path/'t.txt').write_text('abc012'*200)
    status,out,err = call('train', tmp_path/'t.txt', '--run', tmp_path/'r', '--from', run, '--steps', 20,
                          '--quiet', '--bs', 4, '--seq-len', 16)
    assert status == 0, err
    assert json.loads(call('info', tmp_path/'r', '--json')[1])['vocab_size'] == 6
    status,_,err = call('train', tmp_path/'t.txt', '--run', tmp_path/'q', '--from', run, '--n-hid', 99)
    assert status == 1 and '--n-hid' in err and not (tmp_path/'q').exists()


def test_interrupted_fine_tuning_starts_from_the_other_run(call, run, tmp_path):
    d = tmp_path/'r'
    pid = command('train', 'count', '--run', d, '--from', run, '--steps', 20000, '--lr', 0, '--quiet')
    try: until((d/'run.json').exists, what='the run')
    finally: os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    assert json.loads(call('eval', d, '--json')[1])['nats'] == json.loads(call('eval', run, '--json')[1])['nats']
    assert json.loads(call('info', d, '--json')[1])['finished'] is False
    status,_,err = call('train', 'count', '--run', d, '--seed', 123456)
    assert status == 1 and 'was begun with --seed' in err and 'leave --seed out' in err


def test_long_text_goes_on_too(call, tmp_path, monkeypatch):
    from charrnn_fa.run import model as runs
    monkeypatch.setattr(runs, 'most_text', 100)
    d = tmp_path/'r'
    real = runs.Run.save
    monkeypatch.setattr(runs.Run, 'save', lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert call('train', 'count', '--run', d, '--steps', 5, '--quiet', *TINY)[0] == 130
    monkeypatch.setattr(runs.Run, 'save', real)
    # interrupted before there was anything to go on from
    assert not (d/'run.json').exists()
    assert call('train', 'count', '--run', d, '--steps', 22, '--save-steps', 4, '--quiet', *TINY)[0] == 0
    # as if killed before the end
    next(d.glob('step-00000022-*.json')).unlink()
    step = json.loads(call('info', d, '--json')[1])['step']
    assert 0 < step < 22 and step%4 == 0
    assert call('train', 'count', '--run', d, '--quiet')[0] == 0
    assert json.loads(call('info', d, '--json')[1])['resumes'] == [step]
    assert call('eval', d)[1] == call('eval', d, '--corpus', 'count')[1] != ''


def test_diverged_run_is_an_error(call, tmp_path):
    "Each step multiplies the weights by 1 - lr*wd, -9999 at the top: after 30 of them single precision is left far behind"
    status,out,err = call('train', 'count', '--run', tmp_path/'r', '--steps', 30, '--lr', 100, '--wd', 100,
                          '--opt', 'adamw', '--clip', 0, '--arch', 'rnn', '--quiet', '--json', *TINY)
    assert status == 1 and out == ''
    assert 'The loss is nan' in err and 'lower --lr' in err


def test_output_that_lacks_letters(run, tmp_path, text):
    (tmp_path/'t.txt').write_text('äöü漢 '*100, encoding='utf-8')
    p = subprocess.run([sys.executable, '-m', 'charrnn_fa', 'train', str(tmp_path/'t.txt'), '--run', str(tmp_path/'r'),
                        '--steps', '10', *TINY], capture_output=True,
                       env={**os.environ, 'PYTHONIOENCODING': 'ascii'})
    assert p.returncode == 0, p.stderr


def bad_files(d):
    (d/'binary.txt').write_bytes(bytes(range(256))*50)
    (d/'latin.txt').write_bytes('Käse und Brötchen. '.encode('cp1252')*50)
    (d/'empty.txt').touch()
    (d/'short.txt').write_text('a'*63)
    (d/'tiny.txt').write_text('abcd'*25)
    (d/'folder').mkdir()
    (d/'other').mkdir(); (d/'other/x').write_text('x')


@pytest.mark.parametrize('args, says', [
    ('train {d}/no.txt --run {d}/new', 'check the spelling'),
    ('train {d}/folder --run {d}/new', 'no text file'),
    ('train {d}/binary.txt --run {d}/new', 'binary'),
    ('train {d}/latin.txt --run {d}/new', 'read it with --encoding cp1252.'),
    ('train {d}/empty.txt --run {d}/new', '64 characters'),
    ('train {d}/short.txt --run {d}/new', '63 characters'),
    ('train {d}/tiny.txt --run {d}/new --valid-pct 0.9', '10 to train on and 90'),
    ('train {d}/tiny.txt --run {d}/new --valid-pct 2', 'between 0 and 1'),
    ('train {d}/tiny.txt --run {d}/new --preset nope', 'cpu-minute'),
    ('train {d}/tiny.txt --run {d}/new --minutes 0', 'more than 0'),
    ('train {d}/tiny.txt --run {d}/new --minutes -1', 'more than 0'),
    ('train {d}/tiny.txt --run {d}/new --epochs 0', 'from 1 to'),
    ('train {d}/tiny.txt --run {d}/new --n-hid 0', '--n-hid is 0'),
    ('train {d}/tiny.txt --run {d}/new --dropout 1.5', '--dropout is 1.5'),
    ('train {d}/tiny.txt --run {d}/new --bs many', '--bs'),
    ('train {d}/tiny.txt --run {d}/new --nonsense', "--nonsense; 'charrnn train --help'"),
    ('train {d}/tiny.txt --run {d}/new --arch LSTM', "--arch is 'LSTM'"),
    ('train {d}/tiny.txt --run {d}/other', 'new or empty folder'),
    ('train {d}/tiny.txt --run {d}/tiny.txt', 'is a file'),
    ('train {d}/tiny.txt --run {d}/tiny.txt/new', 'cannot be made'),
    ('train {d}/tiny.txt', '--run'),
    ('train --run {d}/new', 'what to train on'),
    ('train http://127.0.0.1:9/x.txt --run {d}/new', 'no connection'),
    ('train {d}/tiny.txt --run {d}/new --from {d}/other', 'not a run'),
    ('sample {run} --prompt abc', "'a' (U+0061)"),
    ('sample {run} --temperature -1', 'below 0'),
    ('sample {run} --top-p 1.5', 'at most 1'),
    ('sample {run} --top-k 0', '--top-k is 0, but it is a whole number'),
    ('sample {run} -n -5', 'below 0'),
    ('sample {d}/other', 'not a run'),
    ('sample {d}/nowhere', 'no folder'),
    ('eval {run} --context some', "'carry' or a number"),
    ('eval {run} --context 0', "'carry' or a number"),
    ('eval {run} --corpus {d}/tiny.txt', "'a' (U+0061)"),
    ('eval {d}/tiny.txt', 'not a run'),
    ('share {run}', 'PAGE.html'),
    ('share {run} {d}/new', 'end the name in .html'),
    ('share {run} {d}/new/page.html', 'could not be written'),
    ('share {d}/other {d}/page.html', 'not a run'),
    ('info {d}/other', 'not a run'),
    ('train {d}/tiny.txt --run {d}/new --tie maybe', '--tie'),
    ('train count --run {d}/new --opt adamw --ns-steps 3', '--ns-steps is for --opt muon'),
    ('train count --run {d}/new --steps 5 --max-epochs 3', '--max-epochs is for a run by minutes'),
    ('train faces --run {d}/new', 'charrnn draw faces --run'),
    ('eval {run} --corpus letters', 'name of drawings'),
    ('doctor {run} --seconds 5', 'for a Learner'),
    ('train {d}/tiny.txt --run {d}/new --seed 18446744073709551616', 'seed'),
    ('train {d}/tiny.txt --run {d}/new --minutes inf', 'minutes is inf'),
    ('train {d}/tiny.txt --run {d}/new --lr inf', 'lr is inf'),
    ('train {d}/tiny.txt --run {d}/new --epochs 99999999999999', 'billion'),
    ('eval {run} --corpus {d}/tiny.txt --whole', '--skip-unknown'),
    ('', 'train,sample'),
    ('fly', 'fly'),
])
def test_mistakes_get_one_sentence(call, tmp_path, run, args, says):
    bad_files(tmp_path)
    status,out,err = call(*args.format(d=tmp_path, run=run).split())
    assert status not in (0, None) and out == ''
    assert says in err and err.count('\n') == 1 and 'usage:' not in err and 'Traceback' not in err
    assert not (tmp_path/'new').exists()                                             # nothing half-written


@pytest.mark.parametrize('part', ['run.json', 'safetensors', 'json'])
def test_damaged_run(call, tmp_path, run, part):
    d = tmp_path/'r'
    shutil.copytree(run, d)
    file = d/'run.json' if part == 'run.json' else next(d.glob(f'step-*.{part}'))
    b = bytearray(file.read_bytes())
    # the last digit of a number may say nothing
    i = next(i for i in range(len(b)//2, len(b)) if part == 'safetensors' or chr(b[i]).isalpha())
    b[i] ^= 1
    file.write_bytes(b)
    for args in ['sample', d], ['eval', d, '--json'], ['info', d], ['train', 'count', '--run', d]:
        status,out,err = call(*args)
        if args[0] == 'train' and part == 'safetensors': continue                    # a finished run is not read again
        assert status == 1 and out == '' and err.count('\n') == 1 and 'restore' in err


@pytest.mark.parametrize('args', ['--help', 'train --help', 'sample --help', 'eval --help', 'info --help', 'share --help',
                                  'demo --help'])
def test_help_has_an_example(call, args):
    status,out,_ = call(*args.split())
    assert status == 0 and 'example' in out and 'charrnn' in out


@pytest.mark.parametrize('command', ['train', 'sample', 'eval', 'info', 'doctor', 'share', 'draw', 'demo'])
def test_help_fits_a_terminal_and_describes_everything(call, command, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    out = call(command, '--help')[1]
    assert [o for o in out.splitlines() if len(o) > 80] == []
    assert '  DIR' not in out.splitlines() and ('DIR' not in out or 'folder' in out)


def test_help_says_what_a_setting_is_by_default(call):
    out = ' '.join(call('train', '--help')[1].split())
    assert '--arch {lstm,gru,rnn}' in out and '--tie {yes,no}' in out and 'Size of the state [256]' in out


def test_one_epoch_is_one(call, tmp_path):
    call('train', 'count', '--run', tmp_path/'r', '--epochs', 1, '--seed', 1, '--quiet', *TINY)
    assert ', 1 epoch\n' in call('info', tmp_path/'r')[1]


def test_as_a_process(run):
    "The installed command and the module; a reader that stops early"
    for cmd in ['charrnn'], [sys.executable, '-m', 'charrnn_fa']:
        exe = os.path.join(os.path.dirname(sys.executable), cmd[0]) if cmd == ['charrnn'] else cmd[0]
        p = subprocess.run([exe, *cmd[1:], 'info', run, '--json'], capture_output=True, text=True)
        assert p.returncode == 0 and json.loads(p.stdout)['step'] == 150 and p.stderr == ''
    p = subprocess.run(f'{sys.executable} -m charrnn_fa sample {run} -n 3000 | head -c 5', shell=True,
                       capture_output=True, text=True)
    assert len(p.stdout) == 5 and 'Traceback' not in p.stderr
    p = subprocess.run([sys.executable, '-m', 'charrnn_fa', 'sample', run, '--prompt', 'ä'],
                       capture_output=True, text=True)
    assert p.returncode == 1 and 'Traceback' not in p.stderr


def test_warnings_of_others_are_no_errors_of_the_command(run):
    "Whatever the environment makes of warnings: fastai has some when it is imported"
    p = subprocess.run([sys.executable, '-m', 'charrnn_fa', 'eval', run], capture_output=True, text=True,
                       env={**os.environ, 'PYTHONWARNINGS':'error'})
    assert (p.returncode, p.stderr) == (0, '') and 'characters right' in p.stdout


def test_the_demo_recommends_no_letters_that_its_run_does_not_know(call, run):
    assert call('demo', '--run', run)[1].splitlines()[-2] == f'Go on: charrnn sample {run} --temperature 0.6'


def test_demo_when_it_is_trained_already(call, tmp_path, text):
    (tmp_path/'t.txt').write_text(text, encoding='utf-8')
    call('train', tmp_path/'t.txt', '--run', tmp_path/'demo', '--steps', 5, '--quiet', *TINY)
    status,out,_ = call('demo', '--run', tmp_path/'demo')
    assert status == 0 and 'trained already' in out and out.count('At temperature') == 3


def test_a_run_that_went_astray_is_found_as_it_is(call, tmp_path):
    "Weights that are no numbers: the same line again says so, as does whoever measures it or lets it write"
    asked = 'train','pydocs','--run',tmp_path/'r','--steps',60,'--lr',100,'--n-hid',16,'--seed',1
    for _ in range(2):
        status,_,err = call(*asked)
        assert status == 1 and 'The loss is nan' in err and 'damaged' not in err, err
    for o in ('eval', tmp_path/'r', '--json'),('eval', tmp_path/'r'),('sample', tmp_path/'r', '-n', 5):
        status,out,err = call(*o)
        assert (status, out) == (1, '') and 'weights that are not finite' in err, (out, err)


def test_a_loss_that_is_no_number_ends_the_training(call, tmp_path):
    "At once, with options and not with code, and the same line again says so at once"
    line = ('train', 'count', '--run', tmp_path/'r', '--steps', 5000, '--lr', 100, '--wd', 100, '--opt', 'adamw',
            '--clip', 0, '--arch', 'rnn', '--seed', 1, '--quiet', *TINY)
    status,out,err = call(*line)
    assert status == 1 and 'goes on after' not in out and 'no finite numbers any more' in out and 'The loss is nan' in err
    assert json.loads(call('info', tmp_path/'r', '--json')[1])['step'] < 100
    assert 'learn.' not in err+out and '(NaN)' in call('info', tmp_path/'r')[1]
    status,out,err = call(*line)
    assert (status, out) == (1, '') and 'The loss is nan' in err


def test_what_the_network_does_not_know_is_counted(call, run, tmp_path):
    (tmp_path/'t.txt').write_text('012'*400 + 'xyz'*100, encoding='utf-8')
    status,out,err = call('eval', run, '--corpus', tmp_path/'t.txt', '--whole', '--skip-unknown')
    assert status == 0 and '300 of 1,500 characters are left out' in err
    status,_,err = call('eval', run, '--skip-unknown')
    assert status == 1 and '--corpus' in err


def test_a_run_that_counts_is_well(call, run):
    assert json.loads(call('doctor', run, '--json')[1])['findings'] == []


def test_the_doctor_says_that_a_run_is_not_finished(call, tmp_path):
    "And how it goes on, whatever is found"
    d = tmp_path/'a run'
    call('train', 'count', '--run', d, '--steps', 150, '--save-steps', 100, '--seed', 1, '--quiet', *TINY)
    said = f"charrnn train --run '{d}' goes on with this run, which is not finished."
    assert 'goes on' not in call('doctor', d)[1]
    next(d.glob('step-00000150-*.json')).unlink() # as if killed before the end
    report = json.loads(call('doctor', d, '--json')[1])
    assert report['findings'] == [] and report['note'] == said
    assert ' '.join(call('doctor', d)[1].split()).count(said) == 1


def test_a_text_that_stands_twice_in_a_run_is_found(call, tmp_path):
    from charrnn_fa.text.corpus import load_corpus
    (tmp_path/'t.txt').write_text(load_corpus('pydocs')[:30_000]*2, encoding='utf-8')
    call('train', tmp_path/'t.txt', '--run', tmp_path/'r', '--steps', 20, '--seed', 1, '--quiet', *TINY)
    assert 'D6' in [o['id'] for o in json.loads(call('doctor', tmp_path/'r', '--json')[1])['findings']]


def test_the_version_is_told(call):
    import charrnn_fa
    status,out,_ = call('--version')
    assert status == 0 and charrnn_fa.__version__ in out


def test_home_in_an_option(call, tmp_path, monkeypatch):
    "A shell leaves ~ as it is in --run=~/docs"
    monkeypatch.setenv('HOME', str(tmp_path))
    line = 'train', 'count', '--run=~/r', '--steps', 2, '--quiet', *TINY
    assert [call(*line)[0] for _ in range(2)] == [0, 0]
    assert json.loads(call('info', '~/r', '--json')[1])['finished'] and (tmp_path/'r'/'run.json').exists()


def test_the_same_line_is_the_same_though_the_text_is_too_short_for_it(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'s.txt').write_text('The quick brown fox.\n'*60)
    line = 'train', 's.txt', '--run', 'u', '--steps', 3, '--quiet', '--n-hid', 16, '--bs', 64, '--seq-len'
    assert [call(*line, 400)[0] for _ in range(2)] == [0, 0]
    status,_,err = call(*line, 500)
    assert status == 1 and 'begun with --seq-len 400' in err


def test_another_name_of_the_run_that_weights_are_from(call, run, tmp_path, monkeypatch):
    run = pathlib.Path(run)
    monkeypatch.chdir(run.parent)
    line = 'train', 'count', '--run', tmp_path/'r', '--steps', 2, '--quiet', '--from'
    assert [call(*line, o)[0] for o in (run.name, f'./{run.name}', f'{run.name}/', run)] == [0]*4


def test_an_accent_of_the_prompt_may_have_the_other_form(call, tmp_path):
    "As a text from a Mac has it and a keyboard does not; so does the string that a text ends with"
    (tmp_path/'t.txt').write_text('cafe\u0301 au lait. '*60)
    assert call('train', tmp_path/'t.txt', '--run', tmp_path/'r', '--steps', '5', '--seed', '1', '--quiet', *TINY)[0] == 0
    status,out,_ = call('sample', tmp_path/'r', '--prompt', 'caf\xe9', '--stop', '\xe9', '-n', '5')
    assert status == 0 and out.startswith('cafe\u0301')
