"The command: what it prints, its exit status, and one sentence for each mistake"
import hashlib
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import faultfs
import pytest

import charrnn_fa
from charrnn_fa.cli import main
from charrnn_fa.run import model as runs
from charrnn_fa.run.files import RunError, pack_json, read_json
from charrnn_fa.run.model import load_run
from charrnn_fa.text.corpus import load_corpus
from machine import command, ended, output_of, until

TINY = '--n-hid 16 --emb-sz 8 --head-sz 8 --bs 4 --seq-len 16 --precision fp32'.split()
CHARRNN = [sys.executable, '-m', 'charrnn_fa']
NAMES = 'train', 'sample', 'eval', 'info', 'doctor', 'share', 'draw', 'demo'
TEXT = ''.join('abcdefghij'[o % 10] for o in hashlib.shake_256(b'text').digest(4000))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A finished run that counts"
    d = tmp_path_factory.mktemp('runs')/'r'
    assert main(['train', 'count', '--run', str(d), '--steps', '150', '--seed', '1', '--quiet', *TINY]) == 0
    return d


@pytest.fixture
def call(capsys):
    "Run a line in this process: exit status, standard output, standard error"
    def _call(*args):
        capsys.readouterr()
        try: status = main(list(map(str, args)))
        except SystemExit as e: status = e.code
        return status,*capsys.readouterr()
    return _call


@pytest.fixture
def figures(call):
    "What a line prints with `--json`"
    def _figures(*args):
        status,out,err = call(*args, '--json')
        assert status == 0 and out.count('\n') == 1, err
        return json.loads(out)
    return _figures


def refused(result, *parts):
    "A line that ended in one sentence on stderr with each of `parts`, and printed nothing else"
    status,out,err = result
    assert status not in (0, None) and out == '' and err.startswith('charrnn') and err.count('\n') == 1, (out, err)
    assert 'usage:' not in err and 'Traceback' not in err and not {*map(chr, range(32))} - {'\n'} & {*err}
    assert all(str(o) in err for o in parts), err


def begin(call, text, run, *more):
    "A run of 20 steps that has lost its end, as if it was killed before"
    assert call('train', text, '--run', run, '--steps', 20, '--save-steps', 4, '--seed', 1, '--quiet', *TINY, *more)[0] == 0
    for o in run.glob('step-00000020-*'): o.unlink()
    return run


def with_info(run, **info):
    "Another `run.json` for a run, with a checksum that fits"
    settings = read_json(run/'run.json')
    settings.pop('sha256')
    settings['info'].update(info)
    (run/'run.json').write_bytes(pack_json(settings))


# What the commands give

def test_train(figures, call, tmp_path):
    line = 'train', 'count', '--run', tmp_path/'r', '--steps', 30, '--seed', 2, '--quiet', *TINY
    d = figures(*line)
    assert {*d} == {'nats', 'bits', 'seconds', 'seconds_total', 'steps', 'chars_per_s', 'finished', 'trained'}
    assert d['steps'] == 30 and d['finished'] and d['trained'] and 0 < d['seconds'] <= d['seconds_total']
    files = lambda: {o.name:o.read_bytes() for o in (tmp_path/'r').iterdir()}
    before,again = files(),figures(*line)
    assert again == {**d, 'trained':False} and files() == before
    assert '--from' in call(*line)[1] # how to go on
    other = {o:figures('train', 'count', '--run', tmp_path/o, '--steps', 30, '--seed', o, '--quiet', *TINY) for o in '23'}
    assert other['2']['nats'] == d['nats'] != other['3']['nats']
    shas = [figures('info', tmp_path/o)['weights_sha256'] for o in ('r', *other)]
    assert shas[0] == shas[1] != shas[2]
    assert figures('train', 'count', '--run', tmp_path/'m', '--minutes', .05, '--quiet', *TINY)['steps'] > 4


def test_eval(figures, call, run, tmp_path):
    d = figures('eval', run)
    assert {*d} == {'nats', 'bits', 'perplexity', 'accuracy', 'n_chars', 'context'}
    assert d['n_chars'] == 1999 and d['context'] == 'carry' and d['accuracy'] > .99 and '1,999' in call('eval', run)[1]
    assert figures('eval', run, '--corpus', 'count')['nats'] == d['nats']
    assert figures('eval', run, '--context', 256)['context'] == 256
    for more in [], ['--corpus', 'count']: assert figures('eval', run, '--whole', *more)['n_chars'] == 19_999
    (tmp_path/'t.txt').write_text('012'*400 + 'xyz'*100)
    assert '300 of 1,500' in call('eval', run, '--corpus', tmp_path/'t.txt', '--whole', '--skip-unknown')[2]


def test_sample(call, run, tmp_path):
    assert call('sample', run, '--prompt', '0120', '-n', 8, '--temperature', 0)[1] == '012012012012\n'
    a,b,c = (call('sample', run, '-n', 50, '--seed', s, '--temperature', 3)[1] for s in (1, 1, 2))
    assert a == b != c and len(a) == 51
    (tmp_path/'t.txt').write_text('cafe\u0301 au lait. '*60) # as a Mac writes it, and a keyboard does not
    assert call('train', tmp_path/'t.txt', '--run', tmp_path/'r', '--steps', 5, '--quiet', *TINY)[0] == 0
    status,out,_ = call('sample', tmp_path/'r', '--prompt', 'caf\xe9', '--stop', '\xe9', '-n', 5)
    assert status == 0 and out.startswith('cafe\u0301')


def test_share(figures, run, tmp_path):
    by_hand = load_run(run, 'cpu').share(tmp_path/'by_hand.html', title='Counts', prompt='012')
    page = tmp_path/'page.html'
    assert figures('share', run, page, '--title', 'Counts', '--prompt', '012') == dict(page=str(page), size=page.stat().st_size)
    assert page.read_bytes() == by_hand.read_bytes()


def test_info(figures, call, run):
    d = figures('info', run)
    assert {'step', 'epoch', 'finished', 'resumes', 'weights_sha256', 'n_params', 'vocab_size', 'checkpoints'} <= {*d}
    assert (d['step'], d['finished'], d['vocab_size'], d['resumes']) == (150, True, 3, [])
    assert [(o['step'], o['state'], o['verified']) for o in d['checkpoints']] == [(150, 'local', True)]
    assert '150 steps' in call('info', run)[1]


def test_the_doctor_reads_a_run(figures, tmp_path, call):
    (tmp_path/'t.txt').write_text(load_corpus('pydocs')[:30_000]*2)
    assert call('train', tmp_path/'t.txt', '--run', tmp_path/'r', '--steps', 5, '--seed', 1, '--quiet', *TINY)[0] == 0
    assert 'D6' in [o['id'] for o in figures('doctor', tmp_path/'r', '--seconds', 600)['findings']]


def test_demo_of_what_is_trained_already(call, run):
    status,out,_ = call('demo', '--run', run)
    assert status == 0 and out.count('At temperature') == 3
    assert f'charrnn sample {run} --temperature 0.6' in out.splitlines()[-2] # no prompt that the run does not know


@pytest.mark.parametrize('name', NAMES)
def test_help(call, name, monkeypatch):
    "An example on each page, which fits a terminal"
    monkeypatch.setenv('COLUMNS', '80')
    status,out,_ = call(name, '--help')
    assert status == 0 and 'example' in out and f'charrnn {name}' in out
    assert [o for o in out.splitlines() if len(o) > 80] == [] and ('DIR' not in out or 'folder' in out)
    if name == 'train': assert '{lstm,gru,rnn}' in out and '[256]' in out
    if name == 'demo': assert charrnn_fa.__version__ in call('--version')[1] and 'example' in call('--help')[1]


# A run goes on

@pytest.fixture(scope='module')
def begun(tmp_path_factory):
    "A run over a file that has not come to its end"
    d = tmp_path_factory.mktemp('begun')
    (d/'t.txt').write_text(TEXT)
    line = ['train', d/'t.txt', '--run', d/'r', '--epochs', 1, '--save-steps', 20, '--quiet', *TINY]
    assert main([*map(str, line)]) == 0
    max((d/'r').glob('step-*.json')).unlink() # as if killed before the end
    return d


@pytest.mark.parametrize('args,was', [
    (['--epochs', 8], '--epochs 1'), (['--valid-pct', .2], '--valid-pct 0.1'), (['--precision', 'bf16'], '--precision fp32'),
    (['--preset', 't4-hour'], '--preset cpu-minute'), (['--from', 'q'], 'no --from'), (['--encoding', 'latin-1'], '--encoding utf-8'),
    (['--minutes', 3], 'no --minutes'), (['--steps', 9], 'no --steps'), (['--n-hid', 9], '--n-hid 16'), (['--lr', .5], '--lr ')])
def test_options_that_a_run_was_not_begun_with_are_refused(call, begun, args, was):
    refused(call('train', begun/'t.txt', '--run', begun/'r', *args), was, args[0], 'another folder')


def test_options_that_a_finished_run_was_not_begun_with_are_refused(call, run):
    refused(call('train', 'count', '--run', run, '--n-hid', 9), '--n-hid 16', '--from')


@pytest.mark.parametrize('is_finished', [False, True])
def test_a_text_that_changed_is_refused(call, tmp_path, is_finished):
    (tmp_path/'t.txt').write_text(TEXT)
    line = 'train', tmp_path/'t.txt', '--run', begin(call, tmp_path/'t.txt', tmp_path/'r')
    if is_finished: assert call(*line, '--quiet')[0] == 0
    (tmp_path/'t.txt').write_text(TEXT[::-1])
    refused(call(*line), 'SHA-256', 'another folder')
    assert call('train', '--run', tmp_path/'r', '--quiet')[0] == 0


def test_a_text_that_is_gone_or_has_another_name(call, figures, tmp_path):
    "The run has a copy: that the file is gone is said on stderr, beside --json"
    for o in 'ab': (tmp_path/o).write_text(TEXT)
    run = begin(call, tmp_path/'a', tmp_path/'r')
    (tmp_path/'a').unlink()
    copy = Path(shutil.copytree(run, tmp_path/'copy'))
    status,out,err = call('train', tmp_path/'a', '--run', run, '--quiet', '--json')
    assert status == 0 and json.loads(out)['finished'] and str(tmp_path/'a') in err
    refused(call('train', tmp_path/'never', '--run', run), 'never')
    assert figures('train', tmp_path/'b', '--run', copy, '--quiet')['finished']


@pytest.fixture
def long_run(call, tmp_path, monkeypatch):
    "A run whose text is too long to be kept, begun by a path from its folder"
    monkeypatch.setattr(runs, 'most_text', 100)
    monkeypatch.chdir(tmp_path)
    (tmp_path/'t.txt').write_text(TEXT)
    (tmp_path/'elsewhere').mkdir()
    run = begin(call, 't.txt', tmp_path/'r')
    monkeypatch.chdir(tmp_path/'elsewhere')
    return run


def test_a_long_text_is_given_again(call, figures, long_run, tmp_path):
    "Another one is refused, and none is read that only the settings name"
    assert figures('eval', long_run, '--corpus', tmp_path/'t.txt')['n_chars'] == 399
    assert len(load_run(long_run, 'cpu', TEXT).dls.valid.ids) == 400
    for other in TEXT[::-1], TEXT[:-1], 'x'*4000, 5:
        with pytest.raises(RunError, match='SHA-256'): load_run(long_run, 'cpu', other)
    for args in ['train', '--run', long_run], ['eval', long_run], ['doctor', long_run]: refused(call(*args), '--corpus')
    Path('other.txt').write_text(TEXT[::-1])
    refused(call('train', 'other.txt', '--run', long_run), 'SHA-256')
    assert figures('train', tmp_path/'t.txt', '--run', long_run, '--quiet')['steps'] == 20
    assert 0 < figures('info', long_run)['resumes'][0] < 20
    assert call('train', tmp_path/'t.txt', '--run', 'twin', '--steps', 20, '--seed', 1, '--quiet', *TINY)[0] == 0
    assert figures('info', long_run)['weights_sha256'] == figures('info', 'twin')['weights_sha256']


def test_from_another_run(call, figures, run, tmp_path):
    "With more symbols; a killed run begins with the weights of the other"
    (tmp_path/'t.txt').write_text('abc012'*200)
    more = '--quiet', '--bs', 4, '--seq-len', 16
    assert call('train', tmp_path/'t.txt', '--run', tmp_path/'r', '--from', run, '--steps', 20, *more)[0] == 0
    assert figures('info', tmp_path/'r')['vocab_size'] == 6
    refused(call('train', 'count', '--run', tmp_path/'q', '--from', run, '--n-hid', 99), '--n-hid')
    assert not (tmp_path/'q').exists()
    d = tmp_path/'killed'
    pid = command('train', 'count', '--run', d, '--from', run, '--steps', 20000, '--lr', 0, '--quiet')
    try: until((d/'run.json').exists, what='the run')
    finally: os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    assert figures('eval', d)['nats'] == figures('eval', run)['nats'] and not figures('info', d)['finished']


def test_save_minutes(call, figures, tmp_path):
    "None between two saves: each step is due"
    for minutes,name in (0, 'r'), (9, 'q'):
        line = 'train', 'count', '--run', tmp_path/name, '--steps', 30, '--save-minutes', minutes, '--quiet', *TINY
        assert call(*line)[0] == 0
    assert figures('info', tmp_path/'r')['checkpoints'][1]['step'] > 0
    assert [o['step'] for o in figures('info', tmp_path/'q')['checkpoints']] == [30]


def test_weights_that_are_not_finite(call, figures, tmp_path):
    "Each step multiplies the weights by 1 - lr*wd = -9999. The fit ends at once, with options and not with code"
    line = ('train', 'count', '--run', tmp_path/'r', '--steps', 5000, '--lr', 100, '--wd', 100, '--opt', 'adamw',
            '--clip', 0, '--arch', 'rnn', '--seed', 1, '--quiet', *TINY)
    status,out,err = call(*line)
    assert status == 1 and 'nan' in err and '--lr' in err and 'learn.' not in err+out
    assert figures('info', tmp_path/'r')['step'] < 100 and '(NaN)' in call('info', tmp_path/'r')[1]
    refused(call(*line), 'nan', '--lr')
    for o in ('eval', tmp_path/'r', '--json'), ('sample', tmp_path/'r', '-n', 5): refused(call(*o), 'finite')


@pytest.mark.usefixtures('fuse')
def test_a_run_on_a_mount(figures, run, tmp_path, home):
    "`info` says how far the files have come; a mount that hangs is given up"
    with faultfs.DriveMount(tmp_path) as drive:
        d = drive.mountpoint/'MyDrive/r'
        shutil.copytree(run, d)
        states = lambda: {c['state'] for c in figures('info', d)['checkpoints']}
        assert states() == {'mounted'}
        drive.control(uncommitted=0)
        assert states() == {'uploaded'}
        drive.control(delay=dict(getattr=30))
        r,w = os.pipe()
        with open(os.devnull, 'w') as null: pid = command('info', d, stdout=null.fileno(), stderr=w)
        os.close(w)
        try:
            with open(r) as f: assert '10 seconds' in f.readline()
        finally: os.kill(pid, signal.SIGKILL); drive.control(); ended(pid)


# Mistakes

MISTAKES = [o.rsplit(' => ', 1) for o in """
fly => fly
train {d}/no.txt --run {d}/new => no.txt
train {d}/folder --run {d}/new => text file
train {d}/binary.txt --run {d}/new => binary
train {d}/latin.txt --run {d}/new => --encoding
train {d}/empty.txt --run {d}/new => 64 characters
train {t} --run {d}/new --preset nonsense => cpu-minute
train {t} --run {d}/new --minutes 1 --epochs 3 => --epochs
train {t} --run {d}/new --steps 0 => --steps
train {t} --run {d}/new --n-hid 0 => --n-hid
train {t} --run {d}/new --dropout 1.5 => --dropout
train {t} --run {d}/new --bs many => --bs
train {t} --run {d}/new --tie maybe => --tie
train count --run {d}/new --tie yes --emb-sz 8 => --emb-sz
train {t} --run {d}/other => new or empty folder
train {t} --run {t} => is a file
train {t} => --run
train {t} --run= => --run
train count --run s3://me:hunter2@bucket/r => Checkpoint
train http://127.0.0.1:9/x.txt --run {d}/new => 127.0.0.1:9
train {t} --run {d}/new --from {d}/other => not a run
train faces --run {d}/new => charrnn draw faces --run
sample {run} --prompt ЖЯ => --prompt
sample {run} --temperature nan => --temperature
sample {run} --top-k 0 => --top-k
sample {run} --stop= -n 5 => --stop
sample {d}/nowhere => nowhere
eval {run} --context 2.5 => carry
eval {run} --corpus {t} => U+0061
eval {run} --corpus {t} --whole => --skip-unknown
eval {run} --skip-unknown => --corpus
eval {run} --corpus letters => drawings
info {d}/other => not a run
info {d}/a\x1b[31m => x1b
share {run} {d}/new => .html
doctor {d}/nothing.py:make => nothing.py
""".strip().splitlines()]


@pytest.mark.parametrize('args,says', MISTAKES)
def test_mistakes_get_one_sentence(call, tmp_path, run, args, says):
    "And nothing is half-written"
    d = tmp_path
    (d/'binary.txt').write_bytes(bytes(range(256))*50)
    (d/'latin.txt').write_bytes('Käse und Brötchen. '.encode('cp1252')*50)
    (d/'tiny.txt').write_text('abcd'*25)
    (d/'empty.txt').touch()
    for o in 'folder', 'other': (d/o).mkdir()
    (d/'other/x').write_text('x')
    result = call(*args.format(d=d, run=run, t=d/'tiny.txt').split(' '))
    refused(result, says)
    assert not (d/'new').exists() and len(result[2]) < 900 and 'hunter2' not in result[2]


@pytest.mark.parametrize('part', ['run.json', 'step-*.safetensors', 'step-*.json'])
def test_a_damaged_run(call, tmp_path, run, part):
    d = Path(shutil.copytree(run, tmp_path/'r'))
    file = next(d.glob(part))
    b = bytearray(file.read_bytes())
    i = next(i for i in range(len(b)//2, len(b)) if part.endswith('rs') or chr(b[i]).isalpha()) # a last digit may say nothing
    b[i] ^= 1
    file.write_bytes(b)
    for args in ['sample', d], ['eval', d, '--json'], ['info', d]: refused(call(*args), file.name, 'restore')


def test_secrets_of_a_url_are_neither_kept_nor_said(call, server, home, tmp_path):
    server.answers['/t.txt'] = TEXT.encode()
    url = server.url.replace('//', '//me:hunter2@') + '/t.txt?sig=s3cret'
    said = call('train', url, '--run', tmp_path/'r', '--steps', 10, '--quiet', *TINY)
    assert said[0] == 0 and said[2] == '' # and no bar where nobody watches
    said += call('info', tmp_path/'r') + call('train', 'count', '--run', tmp_path/'r')
    kept = b''.join(o.read_bytes() for o in (tmp_path/'r').iterdir())
    for secret in 'hunter2', 's3cret': assert secret not in str(said) and secret.encode() not in kept
    assert f'{server.url}/t.txt' in str(said)


def read(terminal):
    "What has been written to a terminal; nothing at its end, which is an error on Linux"
    try: return os.read(terminal, 65536)
    except OSError: return b''


def in_terminal(*args):
    "Run the command in a terminal: the exit status and all that was written"
    fcntl,pty,termios = (pytest.importorskip(o) for o in ('fcntl', 'pty', 'termios'))
    ours,theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('4H', 24, 100, 0, 0)) # without a width tqdm shows nothing
    pid,out = command(*args, stdin=theirs, stdout=theirs, stderr=theirs),b''
    os.close(theirs)
    while piece := read(ours): out += piece
    os.close(ours)
    return ended(pid),out.decode().replace('\r\n', '\n')


EVIL = '\x1b]0;owned\x07\x9b31m'


def test_a_terminal_gets_nothing_that_it_would_obey(call, tmp_path):
    "From a text, and from a run of somebody else; a pipe gets the text as it is"
    (tmp_path/'t.txt').write_text((EVIL + '0123456')*100, encoding='utf-8')
    run = tmp_path/'r'
    assert call('train', tmp_path/'t.txt', '--run', run, '--steps', 10, '--seed', 1, '--quiet', *TINY)[0] == 0
    with_info(run, corpus=EVIL)
    more = '-n', 300, '--temperature', 9, '--seed', 1
    for args in ['info', run], ['sample', run, *more], ['train', tmp_path/'t.txt', '--run', tmp_path/'q', '--steps', 10, *TINY]:
        status,out = in_terminal(*args)
        assert status == 0 and not {'\x1b', '\x07', '\x9b'} & {*out} and ('\\x1b' in out or '\\x9b' in out), repr(out)
    assert '\x1b' in output_of('sample', run, *more) and '\x1b' not in output_of('info', run)


@pytest.mark.parametrize('more', [[], ['--json']])
def test_a_reader_that_leaves_does_not_stop_a_training(figures, tmp_path, more):
    "The reading end is closed before the first line"
    r,w = os.pipe()
    os.close(r)
    p = subprocess.run([*CHARRNN, 'train', 'count', '--run', tmp_path/'r', '--steps', '40', *TINY, *more], stdout=w,
                       stderr=subprocess.PIPE, text=True)
    os.close(w)
    d = figures('info', tmp_path/'r')
    assert d['finished'] and d['step'] == 40 and p.returncode == bool(more)
    assert 'Traceback' not in p.stderr and 'Exception ignored' not in p.stderr


def test_as_a_process(run, tmp_path):
    "The installed command, with an encoding that lacks letters and warnings that are errors; a reader that leaves early"
    exe = Path(sys.executable).parent/'charrnn'
    (tmp_path/'t.txt').write_text('äöü漢 '*100, encoding='utf-8')
    p = subprocess.run([exe, 'train', tmp_path/'t.txt', '--run', tmp_path/'r', '--steps', '10', *TINY], capture_output=True,
                       env={**os.environ, 'PYTHONIOENCODING':'ascii', 'PYTHONWARNINGS':'error'})
    assert p.returncode == 0 and p.stderr == b'', p.stderr
    p = subprocess.run(f'{shlex.join(CHARRNN)} sample {run} -n 1000000000 | head -c 5', shell=True, capture_output=True,
                       text=True, timeout=120)
    assert len(p.stdout) == 5 and p.stderr == ''


INTERRUPTING = """import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler) # ignored by what runs in the background
class Finder:
    def find_spec(self, name, *args):
        if name == os.environ['STOP_AT']: signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize('module', ['importlib.metadata', 'charrnn_fa.command.options', 'torch'])
def test_ctrl_c_while_modules_are_imported(tmp_path, module):
    "From the first module of the command to those that a command imports later"
    (tmp_path/'sitecustomize.py').write_text(INTERRUPTING)
    path = os.pathsep.join([str(tmp_path), str(Path(charrnn_fa.__file__).parents[1])])
    p = subprocess.run([*CHARRNN, 'train', 'count', '--run', tmp_path/'r', '--steps', '2', *TINY], text=True,
                       capture_output=True, env={**os.environ, 'PYTHONPATH':path, 'STOP_AT':module})
    assert (p.returncode, p.stdout, p.stderr) == (130, '', 'charrnn: stopped.\n')
