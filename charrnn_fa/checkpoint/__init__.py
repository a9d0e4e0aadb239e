"A killed run comes back, to the bit"
from .callback import Checkpoint

__all__ = ['Checkpoint']
