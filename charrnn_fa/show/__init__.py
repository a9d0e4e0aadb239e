"Pictures of what a model knows"
from .drawings import drawings, nearest
from .lens import Watch, lens
from .losses import losses
from .memory import memory
from .neurons import Found, find_units, neurons, properties
from .picture import Picture
from .quantize import page_model
from .samples import Live, temperature
from .share import share
from .surprise import CharInterpretation, surprise

__all__ = ['CharInterpretation', 'Found', 'Live', 'Picture', 'Watch', 'drawings', 'find_units', 'lens', 'losses', 'memory',
           'nearest', 'neurons', 'page_model', 'properties', 'share', 'surprise', 'temperature']
