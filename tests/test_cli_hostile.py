"The command where something is odd: output that cannot be written, texts that moved, strangers' runs, values that cannot be"
import glob
import gzip
import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import time

import pytest
import torch

from charrnn_fa.cli import main
from charrnn_fa.run import model as runs
from charrnn_fa.run.files import pack_json, read_json
from machine import command, ended, output_of

TINY = '--n-hid 16 --emb-sz 8 --head-sz 8 --bs 4 --seq-len 16 --precision fp32'.split()
COMMAND = [sys.executable, '-m', 'charrnn_fa']
LETTERS = 'abcdefghij'


@pytest.fixture
def call(capsys):
    "Run a line in this process: exit status, standard output, standard error"
    def _call(*args):
        capsys.readouterr()
        try: status = main(list(map(str, args)))
        except SystemExit as e: status = e.code
        return status,*capsys.readouterr()
    return _call


def pseudo_text(n=4000): return ''.join(LETTERS[o % 10] for o in hashlib.shake_256(b'text').digest(n))


def begin(call, text, run, *more):
    "A run of 20 steps that has lost its end, as if it was killed before"
    assert call('train', text, '--run', run, '--steps', 20, '--save-steps', 4, '--seed', 1, '--quiet', *TINY, *more)[0] == 0
    for o in glob.glob(f'{run}/step-00000020-*'): os.unlink(o)
    return run


def with_settings(run, change):
    "Another run.json for a run, with a checksum that fits"
    settings = read_json(run/'run.json')
    settings.pop('sha256')
    change(settings)
    (run/'run.json').write_bytes(pack_json(settings))


def one_sentence(err):
    assert err.startswith('charrnn') and err.count('\n') == 1 and 'Traceback' not in err, err
    return err


# A text that is not kept

@pytest.fixture
def long_run(call, tmp_path, monkeypatch):
    "A run whose text is too long to be kept, begun by a path from its folder"
    monkeypatch.setattr(runs, 'most_text', 100)
    monkeypatch.chdir(tmp_path)
    (tmp_path/'t.txt').write_text(pseudo_text())
    return begin(call, 't.txt', tmp_path/'r')


@pytest.mark.parametrize('option', [[], ['--corpus']])
def test_a_long_text_that_moved_is_given_again(call, long_run, tmp_path, monkeypatch, option):
    "From another folder, and once moved: the same weights as without a break"
    twin = tmp_path/'twin'
    call('train', 't.txt', '--run', twin, '--steps', 20, '--seed', 1, '--quiet', *TINY)
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path/'elsewhere')
    (tmp_path/'t.txt').rename('moved.txt')
    err = one_sentence(call('train', '--run', long_run)[2])
    assert '--corpus' in err and 't.txt' in err
    open('other.txt', 'w').write(pseudo_text()[::-1])
    assert 'not the text' in one_sentence(call('train', *option, 'other.txt', '--run', long_run)[2])
    assert call('train', *option, 'moved.txt', '--run', long_run, '--quiet')[0] == 0
    shas = [json.loads(call('info', o, '--json')[1])['weights_sha256'] for o in (long_run, twin)]
    assert shas[0] == shas[1]


def test_a_long_text_is_found_from_any_folder(call, long_run, tmp_path, monkeypatch):
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path/'elsewhere')
    measured = json.loads(call('eval', long_run, '--json')[1])
    assert (measured == json.loads(call('eval', long_run, '--corpus', tmp_path/'t.txt', '--json')[1])
            and measured['n_chars'] == 399)
    assert json.loads(call('eval', long_run, '--whole', '--json')[1])['n_chars'] == 3999
    assert call('train', '--run', long_run, '--quiet')[0] == 0
    (tmp_path/'t.txt').write_text(pseudo_text()[::-1])
    assert 'not the text' in one_sentence(call('eval', long_run)[2])


def test_a_text_that_is_another_is_refused_in_python(long_run, tmp_path):
    text = pseudo_text()
    assert len(runs.load_run(long_run, 'cpu', text).dls.valid.ids) == 400
    for other in text[::-1], text[:-1], text + 'a', 'x'*4000, 5:
        with pytest.raises(runs.RunError, match='not the text'): runs.load_run(long_run, 'cpu', other)


# Another text for a run that is there

def folder_of(path, text):
    path.mkdir()
    (path/'a.txt').write_text(text[:2000])
    (path/'b.txt').write_text(text[2000:])
    return path


@pytest.mark.parametrize('kind', ['file', 'folder', 'glob', 'name'])
@pytest.mark.parametrize('finished', [False, True])
def test_one_rule_for_a_text_that_changed(call, tmp_path, monkeypatch, kind, finished):
    d = folder_of(tmp_path/'d', pseudo_text())
    (tmp_path/'f.txt').write_text(pseudo_text())
    what = dict(file=tmp_path/'f.txt', folder=d, glob=d/'*.txt', name='count')[kind]
    run = begin(call, what, tmp_path/'r')
    if finished: assert call('train', what, '--run', run, '--quiet')[0] == 0
    copy = tmp_path/'copy'
    shutil.copytree(run, copy)
    assert call('train', what, '--run', copy, '--quiet')[0] == 0
    if kind == 'name': what = 'pydocs'
    for o in tmp_path/'f.txt', d/'a.txt': o.write_text(o.read_text()[::-1])
    status,out,err = call('train', what, '--run', run)
    assert status == 1 and out == '' and 'not the text' in one_sentence(err) and 'another folder' in err
    assert call('train', '--run', run, '--quiet')[0] == 0


def test_the_same_text_under_another_name_goes_on(call, tmp_path):
    for o in 'ab': (tmp_path/o).write_text(pseudo_text())
    run = begin(call, tmp_path/'a', tmp_path/'r')
    assert call('train', tmp_path/'b', '--run', run, '--quiet')[0] == 0


# A finished run

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    d = tmp_path_factory.mktemp('runs')/'r'
    assert main(['train', 'count', '--run', str(d), '--steps', '20', '--seed', '1', '--quiet', *TINY]) == 0
    return d


@pytest.mark.parametrize('args', [['--seed', 99], ['--n-hid', 17], ['--steps', 21], ['--minutes', 1], ['--epochs', 1],
                                  ['--lr', .5], ['--valid-pct', .3], ['--preset', 't4-hour'], ['--from', 'q']])
def test_other_settings_for_a_finished_run_are_refused(call, run, args):
    status,out,err = call('train', 'count', '--run', run, '--json', *args)
    assert status == 1 and out == '' and 'was begun with' in one_sentence(err) and '--from' in err


def test_json_says_whether_it_trained(call, tmp_path):
    line = 'train', 'count', '--run', tmp_path/'r', '--steps', 20, '--seed', 1, '--quiet', '--json', *TINY
    first,second = (json.loads(call(*line)[1]) for _ in range(2))
    assert first['trained'] is True and second['trained'] is False
    assert {k:v for k,v in first.items() if k != 'trained'} == {k:v for k,v in second.items() if k != 'trained'}


# Output that cannot be written

@pytest.mark.parametrize('more', [[], ['--quiet'], ['--json']])
def test_a_reader_that_leaves_does_not_stop_a_training(call, tmp_path, more):
    "The reading end is closed before the first line"
    r,w = os.pipe()
    os.close(r)
    p = subprocess.run([*COMMAND, 'train', 'count', '--run', tmp_path/'r', '--steps', '40', *TINY, *more], stdout=w,
                       stderr=subprocess.PIPE, text=True)
    os.close(w)
    d = json.loads(call('info', tmp_path/'r', '--json')[1])
    assert d['finished'] and d['step'] == 40
    assert p.returncode == (1 if more == ['--json'] else 0)
    assert 'Traceback' not in p.stderr and 'Exception ignored' not in p.stderr
    if not more or more == ['--quiet']: assert p.stderr == ''


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='this system has no /dev/full')
@pytest.mark.parametrize('where', ['stdout', 'stderr', 'both'])
def test_a_full_disk_behind_the_output_does_not_stop_a_training(call, tmp_path, where):
    with open('/dev/full', 'w') as full:
        streams = {o: full if where in (o, 'both') else subprocess.PIPE for o in ('stdout', 'stderr')}
        p = subprocess.run([*COMMAND, 'train', 'count', '--run', tmp_path/'r', '--steps', '40', *TINY],
                           **streams, text=True)
    d = json.loads(call('info', tmp_path/'r', '--json')[1])
    assert d['finished'] and d['step'] == 40
    if where == 'stdout': assert p.returncode == 1 and 'No space left' in one_sentence(p.stderr)
    if where == 'stderr': assert p.returncode == 0


def test_a_sample_that_nobody_reads_ends(run):
    p = subprocess.run(f'{sys.executable} -m charrnn_fa sample {run} -n 1000000000 | head -c 5', shell=True,
                       capture_output=True, text=True, timeout=120)
    assert len(p.stdout) == 5 and p.stderr == ''


FIT = """
import sys, warnings
from charrnn_fa.core import OutputWarning
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.learner import char_learner
from charrnn_fa.callback.progress import ProgressLines
from fastai.callback.progress import ProgressCallback
for how in 'bar','lines','bare':
    learn = char_learner(CharDataLoaders.from_corpus('count', bs=8, seq_len=16, seed=1, device='cpu'), \
n_hid=16, emb_sz=8, head_sz=0, precision='fp32')
    if how != 'bar': learn.remove_cbs(ProgressCallback)
    if how == 'lines': learn.add_cb(ProgressLines(0))
    with warnings.catch_warnings(): # what was shown in another fit is shown again
        warnings.simplefilter('default', OutputWarning)
        learn.fit(2, 1e-2)
    print('steps', how, learn.steps_done, len(learn.dls.train), file=sys.stderr)
"""


def test_fits_in_python_go_on_without_output():
    "With fastai's bar, with our lines, and with neither"
    r,w = os.pipe()
    os.close(r)
    p = subprocess.run([sys.executable, '-c', FIT], stdout=w, stderr=subprocess.PIPE, text=True)
    os.close(w)
    said = re.findall(r'^steps (\w+) (\d+) (\d+)$', p.stderr, re.M)
    assert [o for o,_,_ in said] == ['bar', 'lines', 'bare'] and all(int(done) == 2*int(n) for _,done,n in said)
    assert p.stderr.count('cannot be written') == 3 and 'Traceback' not in p.stderr, p.stderr


# What a terminal would obey

EVIL = '\x1b]0;owned\x07\x9b31m'


def shown(*args, answer=None):
    "What a command writes to a terminal, and its status; `answer` is typed at once"
    import fcntl
    import termios
    ours,theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('4H', 24, 200, 0, 0))
    pid = command(*args, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    out,end = b'',time.monotonic()+120
    if answer: os.write(ours, answer.encode())
    try:
        while time.monotonic() < end:
            if not select.select([ours], [], [], 1)[0]: continue
            try: piece = os.read(ours, 65536)
            except OSError: break
            if not piece: break
            out += piece
        status,pid = ended(pid),None
        return status,out.decode()
    finally:
        if pid: os.kill(pid, signal.SIGKILL); ended(pid)
        os.close(ours)


@pytest.fixture(scope='module')
def evil(tmp_path_factory):
    "A run over a text with control characters, that names a corpus with some"
    d = tmp_path_factory.mktemp('evil')
    (d/'t.txt').write_text((EVIL + '0123456')*100, encoding='utf-8')
    run = d/'r'
    assert main(['train', str(d/'t.txt'), '--run', str(run), '--steps', '10', '--seed', '1', '--quiet', *TINY]) == 0
    with_settings(run, lambda s: s['info'].update(corpus=EVIL))
    return d


@pytest.mark.parametrize('command', ['info {d}/r', 'sample {d}/r -n 300 --temperature 9 --seed 1',
                                     'train --run {d}/new {d}/t.txt --steps 10', 'eval {d}/r --corpus {d}/t.txt'])
def test_a_terminal_gets_nothing_that_it_would_obey(evil, tmp_path, command):
    command = command.format(d=evil)
    if 'train' in command: command = command.replace(f'{evil}/new', str(tmp_path/'new')) + ' ' + ' '.join(TINY)
    status,out = shown(*command.split())
    assert status == 0 and not set(EVIL) & set(out.replace('0', '').replace(';', '')) & set('\x1b\x07\x9b'), repr(out)
    if 'eval' not in command: assert '\\x1b' in out or '\\x9b' in out


def test_a_pipe_gets_the_text_as_it_is(evil):
    out = output_of('sample', evil/'r', '-n', 300, '--temperature', 9, '--seed', 1)
    assert '\x1b' in out and '\\x1b' not in out
    told = output_of('info', evil/'r') # is for people, in a pipe too
    assert '\x1b' not in told and r'\x1b]0;owned' in told


@pytest.mark.parametrize('name', ['-dash', 'a\u202eb', "it's\x1b[31m\n2"])
def test_a_command_that_is_told_can_be_pasted_whatever_the_name(call, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'t.txt').write_text(pseudo_text())
    out = call('train', 't.txt', f'--run={name}', '--steps', 2, '--seed', 1, '--quiet', *TINY)[1]
    told = out.partition('let it write with: charrnn ')[2].strip()
    assert told and not set('\u202e\x1b') & set(out)
    assert subprocess.run(['bash', '-c', f'{sys.executable} -m charrnn_fa {told} -n 5'], timeout=120).returncode == 0


def test_a_message_shows_control_characters(call, tmp_path):
    assert '\x1b' not in one_sentence(call('info', tmp_path/'a\x1b[31m\nb')[2])


# A stranger's run, and secrets

@pytest.fixture
def stranger(call, long_run, server):
    "A run without its text that names a URL"
    server.answers['/t.txt'] = pseudo_text().encode()
    with_settings(long_run, lambda s: s['info'].update(corpus=f'{server.url}/t.txt'))
    return long_run


def test_a_url_of_a_run_is_not_fetched_unasked(call, stranger, server, home):
    for args in ['train', '--run', stranger], ['eval', stranger]:
        err = one_sentence(call(*args)[2])
        assert server.url in err and '--corpus' in err and server.asked == []
    assert call('train', f'{server.url}/t.txt', '--run', stranger, '--quiet')[0] == 0 and server.asked == ['/t.txt']


@pytest.mark.parametrize('answer,asked', [('n\n', []), ('\n', []), ('y\n', ['/t.txt'])])
def test_a_url_of_a_run_is_asked_for_on_a_terminal(stranger, server, home, answer, asked):
    status,out = shown('train', '--run', stranger, '--quiet', answer=answer)
    assert server.url in out and server.asked == asked and (status == 0) == bool(asked), out


def test_secrets_of_a_url_are_neither_kept_nor_said(call, server, home, tmp_path):
    server.answers['/t.txt'] = pseudo_text().encode()
    url = server.url.replace('//', '//me:hunter2@') + '/t.txt?sig=s3cret'
    said = call('train', url, '--run', tmp_path/'r', '--steps', 10, '--quiet', *TINY)
    assert said[0] == 0
    said += (call('info', tmp_path/'r') + call('train', 'count', '--run', tmp_path/'r')
             + call('train', 'count', '--run', 's3://me:hunter2@b/r?sig=s3cret'))
    kept = b''.join(o.read_bytes() for o in (tmp_path/'r').iterdir())
    for secret in 'hunter2', 's3cret': assert secret not in str(said) and secret.encode() not in kept
    assert f'{server.url}/t.txt' in call('info', tmp_path/'r')[1]


@pytest.mark.parametrize('bad', [dict(corpus=5), dict(corpus=None), dict(encoding=[]), dict(n_steps='x'),
                                 dict(n_steps=-1), dict(n_steps=True), dict(minutes='1', n_steps=None),
                                 dict(epochs={}), dict(preset=7), {'from': 3}, dict(valid_pct=7)])
def test_other_kinds_in_the_info_of_a_run(call, long_run, tmp_path, bad):
    with_settings(long_run, lambda s: s['info'].update(bad))
    for args in (['train', '--run', long_run], ['train', tmp_path/'t.txt', '--run', long_run, '--quiet'],
                 ['eval', long_run], ['eval', long_run, '--corpus', tmp_path/'t.txt'], ['info', long_run]):
        status,_,err = call(*args)
        if status: one_sentence(err)


# Ctrl-C

INTERRUPTING = """import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler) # ignored by what runs in the background
class Finder:
    def find_spec(self, name, *args):
        if name == os.environ['STOP_AT']: signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize('module', ['importlib.metadata', 'numpy', 'charrnn_fa.options', 'charrnn_fa.command.train',
                                    'torch'])
def test_ctrl_c_while_modules_are_imported(tmp_path, module):
    "From the first module of the command to those that a command imports later"
    (tmp_path/'sitecustomize.py').write_text(INTERRUPTING)
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    p = subprocess.run([*COMMAND, 'train', 'count', '--run', tmp_path/'r', '--steps', '2', *TINY], text=True,
                       capture_output=True, env={**os.environ, 'PYTHONPATH':path, 'STOP_AT':module})
    assert (p.returncode, p.stdout, p.stderr) == (130, '', 'charrnn: stopped.\n')


def test_the_command_starts_where_ctrl_c_is_heard():
    "`charrnn` is the same as `python -m charrnn_fa`"
    import configparser
    from charrnn_fa import __main__
    settings = configparser.ConfigParser()
    settings.read(os.path.join(os.path.dirname(__file__), '../settings.ini'))
    assert settings['DEFAULT']['console_script'] == 'charrnn=charrnn_fa.__main__:main'
    assert callable(__main__.main)


# A folder that is gone

def test_a_current_directory_that_is_gone(tmp_path, run):
    "PyTorch cannot compute there, and ends the process with words of its own"
    gone = tmp_path/'gone'
    line = f'mkdir {gone} && cd {gone} && rmdir {gone} && exec {sys.executable} -m charrnn_fa'
    env = {**os.environ, 'PYTHONPATH':os.getcwd()}
    for args in f'sample {run}', f'info {run}', 'train pydocs --run r', 'demo', f'train count --run {tmp_path}/r --steps 1':
        p = subprocess.run(['bash', '-c', f'{line} {args}'], capture_output=True, text=True, env=env)
        assert p.returncode == 1 and p.stdout == '' and 'change to another one: cd' in one_sentence(p.stderr)
    p = subprocess.run(['bash', '-c', f'{line} train --help'], capture_output=True, text=True, env=env)
    assert p.returncode == 0 and 'example' in p.stdout


# Values that cannot be

@pytest.mark.parametrize('args,says', [
    ('train count --run {d}/new --n-hid 99999999999999999999999', '--n-hid is 9999'),
    ('train count --run {d}/new --emb-sz 99999999999999999999999', '--emb-sz is 9999'),
    ('train count --run {d}/new --head-sz 99999999999999999999999', '--head-sz is 9999'),
    ('train count --run {d}/new --n-layers 1001 --n-hid 4', '--n-layers is 1001'),
    ('train count --run {d}/new --valid-pct nan', '--valid-pct is nan'),
    ('train {d}/t.txt --run {d}/new --encoding nonsense', 'nonsense'),
    ('train count count --run {d}/new', 'count'),
    ('train count --corpus count --run {d}/new', 'not allowed'),
    ('train count --run {d}/new\0', 'run'),
    ('sample s3://bucket/r', 'copy'),
    ('eval s3://bucket/r', 'copy'),
    ('info s3://bucket/r', 'copy'),
    ('sample {run} --prompt ЖЖ', 'leave it out of --prompt'),
    ('sample {run} --prompt ЖЯ', 'leave them out of --prompt'),
    ('sample {run} --temperature nan', 'temperature'),
    ('sample {run} --temperature inf', 'temperature'),
    ('sample {run} --top-p nan', '--top-p is'),
    ('sample {run} --min-p nan', '--min-p is'),
    ('sample {run} -n 99999999999999999999999', '-n is 9999'),
    ('sample {run} --top-k -1', '--top-k is'),
    ('sample {run} --stop= -n 5', 'empty'),
    ('sample {run} --seed 1180591620717411303424', '--seed is'),
    ('eval {run} --context nan', 'carry'),
    ('eval {run} --context -5', 'carry'),
    ('eval {run} --context 2.5', 'carry'),
    ('eval {run} --encoding nonsense --corpus {d}/t.txt', 'nonsense'),
    ('eval {run} --corpus=', 'empty'),
    ('train count --run= --steps 2', "--run: '' is no folder"),
    ('train count --run {d}/new --steps 2 --from=', "--from: '' is no folder"),
    ('train {d}/t.txt --run {d}/new --steps 2 --encoding=', "--encoding: '' is no encoding"),
    ('eval {run} --encoding= --corpus {d}/t.txt', "--encoding: '' is no encoding"),
    ('draw faces --run= --steps 2', "--run: '' is no folder"),
    ('demo --run=', "--run: '' is no folder"),
    ('sample ', "DIR: '' is no folder"),
    ('train count --run {d}/new --n-hid nan', "--n-hid: 'nan' is no whole number"),
    ('train count --run {d}/new --lr high', "--lr: 'high' is no number"),
    ('train count --run {d}/new --minutes=--', "--minutes: '--' is no number"),
    ('train count --run {d}/new --tie true', "--tie: 'true' is neither 'yes' nor 'no'"),
    ('train count --run {d}/new --valid-pct 1e-320', 'another --valid-pct.'),
    ('train count --run {d}/new --tie yes --emb-sz 8', '--tie yes needs an --emb-sz equal to --head-sz'),
    ('train {d}/t.txt --run {d}/new --steps 2 --seed -1', '--seed is -1'),
    ('draw faces --run {d}/new -n=--', "--n: '--' is no whole number"),
    ('sample {run} -n 1e400', "-n: '1e400' is no whole number"),
    ('sample {run} --temperature -inf', '--temperature needs a value'),
    ('sample {run} --temperature=-inf', '--temperature is -inf'),
    ('sample {run} --prompt -x', '--prompt=-x'),
    ('eval {run} --context 0', 'goes into --corpus.'),
    ('train - --run {d}/new', 'standard input is /dev/stdin.'),
    ('train ' + 'To-be-or-not-to-be-'*20 + ' --run {d}/new', 'or a file that holds it.'),
    ('doctor {run} --seconds soon', "--seconds: 'soon' is no number"),
])
def test_values_that_cannot_be_get_one_sentence(call, tmp_path, run, args, says):
    (tmp_path/'t.txt').write_text(pseudo_text())
    status,out,err = call(*args.format(d=tmp_path, run=run).split(' '))
    assert (status not in (0, None) and out.count('\n') <= 2 and says in one_sentence(err) and 'unknown=' not in err
            and not (tmp_path/'new').exists())


def test_a_number_of_thousands_of_digits_is_told_in_one_line_of_them(call, run):
    assert len(one_sentence(call('sample', run, '-n', '9'*5000)[2])) < 200


def test_a_tied_matrix_needs_no_width(call, tmp_path):
    "As in Python, where tie=True alone makes the embedding as wide as what it is tied to"
    line = 'train count --steps 2 --quiet --n-hid 16 --head-sz 12 --bs 4 --seq-len 16 --precision fp32 --tie yes'
    assert call(*line.split(), '--run', tmp_path/'r')[0] == 0
    assert runs.Run(tmp_path/'r').preset.emb_sz == 12


@pytest.mark.parametrize('content', [b'one\r\ntwo\r\n'*99, b'a text\n'*99 + b'\0', gzip.compress(b'a text\n'*99)],
                         ids=['crlf', 'nul', 'gzip'])
def test_the_remedy_for_an_odd_text_can_be_pasted(call, tmp_path, monkeypatch, content):
    "It names the file, whatever that is called, and gives one that has nothing odd"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'my text.txt').write_bytes(content)
    err = one_sentence(call('train', 'my text.txt', '--run', 'r', '--steps', 1, '--quiet', *TINY)[2])
    subprocess.run(re.search('(?:tr|gunzip) .*> NEW.txt', err)[0], shell=True, check=True)
    assert call('train', 'NEW.txt', '--run', 's', '--steps', 1, '--quiet', *TINY)[2] == '' and ' 1 NUL characters' not in err


@pytest.mark.parametrize('args,says', [(['help'], "'help' is none of 'train', 'sample'"),
                                       (['train', '--run', 'r', '--precision', 'fp8'], "'fp8' is none of 'fp32'")])
def test_a_word_that_is_none_of_a_few(call, args, says):
    assert says in one_sentence(call(*args)[2]).replace('of train, sample', "of 'train', 'sample'").replace('of fp32', "of 'fp32'")


def test_a_number_of_many_windows_is_one_window(call, run):
    assert json.loads(call('eval', run, '--context', '9'*30, '--json')[1])['n_chars'] == 1999


def test_no_bar_where_nobody_watches(call, server, home, tmp_path):
    server.answers['/t.txt'] = pseudo_text().encode()
    assert call('train', f'{server.url}/t.txt', '--run', tmp_path/'r', '--steps', 10, *TINY)[2] == ''
    shutil.rmtree(home)
    assert call('eval', tmp_path/'r', '--corpus', f'{server.url}/t.txt')[2] == ''


def test_no_bar_for_drawings_where_nobody_watches(call, server, home, tmp_path, monkeypatch):
    monkeypatch.setattr('charrnn_fa.text.quickdraw.quickdraw_url', server.url)
    server.answers['/cat.ndjson'] = b'{"drawing": [[[0, 9], [0, 9]]]}\n'*1200
    assert call('draw', 'quickdraw:cat', '--run', tmp_path/'r', '--steps', 2, '-n', 1)[2] == ''
