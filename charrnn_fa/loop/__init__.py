"fastai's training loop, with a hidden state that goes from batch to batch and a start at any batch"
from .learner import CharLearner
from .batches import inner_events
from .fit import check_callbacks
from .predict import OneRowPerChar
from . import contexts

__all__ = ['CharLearner', 'OneRowPerChar', 'check_callbacks', 'inner_events']
