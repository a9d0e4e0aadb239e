"Every public name, for notebooks: `from charrnn_fa.all import *`"
from fastai.basics import *
from fastai.callback.progress import *
from fastai.callback.schedule import *
from fastai.callback.tracker import *
from fastai.callback.training import *
from .errors import *
from .output import *
from .text.read import *
from .text.download import *
from .text.corpus import *
from .text.vocab import *
from .text.streams import *
from .text.data import *
from .text.drawings import *
from .models import *
from .optim import *
from .numpy_step import numpy_step
from .generate import *
from .evaluate import *
from .presets import *
from .callback.precision import *
from .callback.schedule import *
from .callback.progress import *
from .callback.contexts import *
from .loop import *
from .learner import *
from . import doctor, learner, show
from .doctor import Doctor
from .run.files import RunError, RunWarning
from .run.model import Run, load_run, save_run, weights_sha256
from .store.mount import StoreError
from .checkpoint.callback import Checkpoint
from .colab import *
