"A killed run resumes, to the bit"
from .callback import Checkpoint

__all__ = ['Checkpoint']
