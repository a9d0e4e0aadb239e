"Every public name, for notebooks: `from charrnn_fa.all import *`"
from fastai.basics import *
from .corpus import *
from .data import *
from .models import *
from .optim import *
from .generate import *
from .learner import *
from .runs import *
