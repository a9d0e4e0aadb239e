"Every public name, for notebooks: `from charrnn_fa.all import *`"
from fastai.basics import *
from .corpus import *
from .vocab import *
from .data import *
from .models import *
from .optim import *
from .generate import *
from .evaluate import *
from .precision import *
from .presets import *
from .schedule import *
from .loop import *
from .learner import *
from .runs import *
