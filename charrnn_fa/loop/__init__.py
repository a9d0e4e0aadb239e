"fastai's training loop, with a memory that goes from batch to batch and a start at any batch"
from ..callback.rows import OneRowPerChar
from .learner import CharLearner
from .events import inner_events, listens
from . import memory
from .batches import is_away
from .fit import check_callbacks, check_rate, closes_itself
from . import look, quiet, summary

__all__ = ['CharLearner', 'OneRowPerChar', 'check_callbacks', 'check_rate', 'closes_itself', 'inner_events', 'is_away',
           'listens']
