"fastai's own `Learner` over our loaders"
import pytest
import torch
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn

from charrnn_fa.errors import CharRNNError
from charrnn_fa.learner import char_learner
from charrnn_fa.loop import OneRowPerChar
from charrnn_fa.text.data import CharDataLoaders

class Plain(nn.Module):
    "Scores, and no state"
    def __init__(self, n):
        super().__init__()
        self.emb,self.rnn,self.decoder = nn.Embedding(n, 8),nn.GRU(8, 8, batch_first=True),nn.Linear(8, n)
    def forward(self, x): return self.decoder(self.rnn(self.emb(x))[0])


def over_text():
    dls = CharDataLoaders.from_text('To be, or not to be. '*40, bs=4, seq_len=8, seed=1)
    return Learner(dls, Plain(len(dls.vocab)), loss_func=CrossEntropyLossFlat())


def test_get_preds_over_our_loaders_is_told_how():
    "It ended in `'list' object has no attribute 'softmax'`; `predict` and `Interpretation` call it too"
    learn = over_text()
    with learn.no_bar():
        for f in (learn.get_preds, lambda: learn.predict('To be'), lambda: Interpretation.from_learner(learn)):
            with pytest.raises(CharRNNError, match='OneRowPerChar'): f()
        probs,y,losses = learn.get_preds(with_loss=True, cbs=OneRowPerChar())
        assert torch.equal(y, learn.dls.valid.ids[1:].long()) and len(probs) == len(y)
        assert torch.allclose(losses, -probs[range(len(y)), y].log(), atol=1e-4)


def test_a_learner_that_was_loaded_says_that_it_has_no_text(tmp_path):
    "It trained on nothing and showed `nan`"
    over_text().export(tmp_path/'x.pkl')
    with pytest.warns(UserWarning): learn = load_learner(tmp_path/'x.pkl')
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(CharRNNError, match='no two characters'): learn.fit(1)


def test_interpretation_says_where_to_look():
    "It took the number of a character for that of a document: an `IndexError`, or another text"
    learn = char_learner(CharDataLoaders.from_text('To be, or not to be. '*40, bs=4, seq_len=8, seed=1), n_hid=8)
    with learn.no_bar():
        found = ClassificationInterpretation.from_learner(learn)
        for f in found.plot_top_losses, found.show_results:
            with pytest.raises(CharRNNError, match=r'show.CharInterpretation.from_learner\(learn\).worst_lines\(\)'): f(3)
        assert found.confusion_matrix().sum() == len(learn.dls.valid.ids)-1 and found.most_confused()
        found.print_classification_report()
