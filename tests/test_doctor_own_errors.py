"""An error of the doctor's own costs what it was in, and not the report"""
import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from charrnn_fa import doctor

errors,exact,diagnosis = (importlib.import_module(f'charrnn_fa.doctor.{o}') for o in ('errors', 'exact', 'diagnose'))


@pytest.fixture
def given():
    "A network that reads letters, one of which is never trained on"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
    ids = torch.randint(9, (4, 4, 13))
    batches = [(o[:,:-1], o[:,1:]) for o in ids]
    return dict(model=model, batches=batches,
                loss_func=lambda s, y: F.cross_entropy(s.flatten(0, 1), y.flatten(), ignore_index=3),
                trials=False)


def fails(*args, **kwargs): raise ZeroDivisionError('of no use')


@pytest.mark.parametrize('name', ['check_reach', 'check_units', 'check_scores', 'check_batches', 'check_amount'])
def test_a_probe_that_stumbles(given, monkeypatch, name):
    monkeypatch.setattr(errors, 'raises_own_errors', False)
    monkeypatch.setattr(exact if hasattr(exact, name) else diagnosis, name, fails)
    report = doctor.diagnose(**given)
    assert 'L5' in [o.id for o in report.findings]
    said, = [o for o in report.skipped if 'of no use' in o]
    assert ("an error of the doctor's own, please report it: ZeroDivisionError in fails" in said
            and said in str(report).replace('\n', ' '))


@pytest.mark.parametrize('name', ['check_first_bad', 'check_leaf'])
def test_before_the_probes(given, monkeypatch, name):
    monkeypatch.setattr(errors, 'raises_own_errors', False)
    monkeypatch.setattr(exact if hasattr(exact, name) else diagnosis, name, fails)
    assert any('of no use' in o for o in doctor.diagnose(**given).skipped)


def test_a_trial_that_stumbles(given, monkeypatch):
    def _trials(*args):
        yield 'the first',[]
        fails()
    monkeypatch.setattr(errors, 'raises_own_errors', False)
    monkeypatch.setattr(diagnosis, 'trial_findings', _trials)
    report = doctor.diagnose(**{**given, 'trials': True})
    assert 'the first' in report.checked and 'L5' in [o.id for o in report.findings]
    assert any(o.startswith('short trainings (an error') for o in report.skipped)


def test_an_error_that_cannot_be_explained(given, monkeypatch):
    "Is told as it is"
    monkeypatch.setattr(errors, 'raises_own_errors', False)
    monkeypatch.setattr(errors, 'explain', fails)
    given['batches'] = [(x, y[:2]) for x,y in given['batches']]
    finding, = doctor.diagnose(**given).findings
    assert finding.id == 'E1' and 'Expected input batch_size' in finding.message


def test_tests_see_them(given, monkeypatch):
    monkeypatch.setattr(exact, 'check_units', fails)
    with pytest.raises(ZeroDivisionError): doctor.diagnose(**given)
