"Pictures of what a network knows"
from .drawings import drawings, nearest
from .interpret import CharInterpretation
from .lens import lens
from .losses import losses
from .memory import memory
from .neurons import Found, find_units, neurons, properties
from .page import Picture
from .rounded import page_model
from .share import share
from .surprise import surprise
from .temperature import temperature
from .watch import Live, Watch

__all__ = ['CharInterpretation', 'Found', 'Live', 'Picture', 'Watch', 'drawings', 'find_units', 'lens', 'losses',
           'memory',
           'nearest', 'neurons', 'page_model', 'properties', 'share', 'surprise', 'temperature']
