"""Errors in the processes of a loader say what was wrong there; batches without targets"""
import pytest
import torch
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Learner
from torch import nn

from charrnn_fa import doctor

ids = torch.arange(3000) % 9
ragged = [(ids[i:i+20+i%3], ids[i+1:i+21+i%3]) for i in range(0, 2900, 20)]


class Lost:
    "A data set that is wrong about its length"
    def __len__(self): return 50
    def __getitem__(self, i): return {}['row of the text']


def of_torch(data): return torch.utils.data.DataLoader(data, batch_size=8, num_workers=1)


def of_fastai(data): return DataLoaders.from_dsets(data, data, bs=8, device='cpu', num_workers=1).train


@pytest.mark.parametrize('dl,said', [
    (of_torch(ragged), 'RuntimeError: stack expects each tensor to be equal size'),
    (of_fastai(ragged), 'RuntimeError: Error when trying to collate the data into batches'),
    (of_torch(Lost()), "KeyError: 'row of the text'"),
    (of_fastai(Lost()), "KeyError: 'row of the text'")])
def test_an_error_in_another_process_is_told(dl, said):
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
    f, = doctor.diagnose(model=model, dls=dl, loss_func=nn.CrossEntropyLoss(), trials=False).findings
    assert f.id == 'E2' and said in f.message and 'worker process' not in f.message, f


def test_a_learner_without_targets_is_told_so():
    "It goes through its batches without a word, and takes no step"
    rows = [*ids[:2000].view(-1, 20)]
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
    dls = DataLoaders.from_dsets(rows, rows, bs=8, device='cpu', num_workers=0)
    learn = Learner(dls, model, CrossEntropyLossFlat())
    f = doctor.diagnose(learn, trials=False).findings[0]
    assert (f.id, f.title) == ('O9', 'Batches have no targets') and 'chunk[1:]' in f.fix, f
