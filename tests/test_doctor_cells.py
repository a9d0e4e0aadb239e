"""Errors of cells, and of layers that get one vector, are explained as those of whole layers are"""
import pytest
import torch
from torch import nn

from charrnn_fa.doctor.shapes import explain

gru,lstm,rnn = nn.GRUCell(8, 16),nn.LSTMCell(8, 16),nn.LSTM(8, 16, batch_first=True)
row = torch.zeros(4, 8)


def told(f):
    "What is said of the error in which `f` ends"
    with pytest.raises(Exception) as e: f()
    return explain(e.value)


@pytest.mark.parametrize('id,said,fix,f', [
    ('S8', 'made for vectors of 8, and gets 9', 'nn.GRUCell(9, n_hid)', lambda: gru(torch.zeros(4, 9))),
    ('S6', 'has 4 rows, and what meets it has 5', 'zeros(len(x), n_hid)', lambda: gru(row, torch.zeros(5, 16))),
    ('S6', 'has 4 rows, and what meets it has 5', 'zeros(len(x), n_hid)', lambda: lstm(row, (torch.zeros(5, 16),)*2)),
    ('S8', '15 numbers for each row, and the cell 16 units', 'zeros(len(x), 16)', lambda: gru(row, torch.zeros(4, 15))),
    ('S7', 'is a pair (h, c)', 'out, (h, c) = rnn(x)', lambda: lstm(row, torch.zeros(4, 16))),
    ('S7', 'is a pair (h, c)', 'out, (h, c) = rnn(x)', lambda: rnn(torch.zeros(4, 7, 8), torch.zeros(1, 4, 16))),
    ('S8', 'vectors of 5 and was made for 16', 'nn.Linear(5, 65)', lambda: nn.Linear(16, 65)(torch.zeros(5))),
    ('S8', 'made for vectors of 8, and gets 9', 'nn.LayerNorm(9)', lambda: nn.LayerNorm(8)(torch.zeros(2, 9))),
    ('S4', 'one with 4 and one with 5', 'print(a.shape', lambda: torch.zeros(3, 4).__setitem__(0, torch.zeros(5))),
])
def test_other_words_for_sizes_that_do_not_meet(id, said, fix, f):
    found = told(f)
    assert found.id == id and said in found.message and fix in found.fix, found


def test_another_index_is_no_state():
    rnns = torch.zeros(1, 4)
    assert told(lambda: rnns[1]).id == 'D12'


@pytest.mark.parametrize('state,id', [(torch.zeros(2, 3, 8), 'S7'), ((torch.zeros(2, 8), torch.zeros(2, 8)), 'S6')])
def test_a_state_of_one_tensor_is_told_from_one_without_rows(state, id):
    "PyTorch has the same words for both"
    assert told(lambda: nn.LSTM(4, 8, 2, batch_first=True)(torch.zeros(3, 5, 4), state)).id == id
