"""Programs as people write them, healthy or with a fault written in, for the doctor to look at

A fault is written into a program, not derived from what a check measures: nothing here knows how the doctor works.
`PYTHONPATH=tests python -m planted` lists them; `benchmarks/doctor_bench.py` lets the doctor and others look at them.
"""
from dataclasses import dataclass
from functools import wraps
from importlib import import_module

from . import parts

PROGRAMS = []
MODULES = 'data_and_shapes', 'recurrence_and_loss', 'optimisation', 'state_and_sampling', 'pairs', 'healthy'


@dataclass
class Program:
    "A program, and what is wrong with it"
    name: str    # Of the function that makes it
    ids: tuple   # Of the catalogue: what was planted; none for a healthy program
    also: tuple  # Other ids that name the same fault rightly
    kind: str    # 'by hand', 'torch.nn', 'AWD-LSTM' or 'ours'
    make: object # () -> a dictionary, see `program`


def program(ids='', kind='torch.nn', also='', seed=0):
    """Enter a function that makes a program, with the random seed to call it with. It returns a dictionary with

    - what `doctor.diagnose` takes: `learn`; or `model`, `dls`, `loss_func` and perhaps `opt`; or `step_function`, `model`
      and `batches`, and perhaps `opt`; with any of them `sample`, a function of (model, prompt, n) that gives prompt and
      text, and `text`, the corpus;
    - or `learn` and `watch`, a function of the Learner and a list of callbacks that trains for a few seconds: for the
      `Doctor` callback.
    """
    def enter(f):
        @wraps(f)
        def make():
            parts.seed(seed)
            return f()
        PROGRAMS.append(Program(f.__name__, tuple(ids.split()), tuple(also.split()), kind, make))
        return make
    return enter


def all_programs():
    "All of them, in order"
    for o in MODULES: import_module(f'{__name__}.{o}')
    assert len({p.name for p in PROGRAMS}) == len(PROGRAMS), "two programs have one name"
    return PROGRAMS
