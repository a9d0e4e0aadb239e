"""Some of the programs with planted faults, and some healthy ones; `make doctor-bench` looks at all of them"""
import io

import pytest
from planted import all_programs

from charrnn_fa import doctor
from charrnn_fa.doctor.registry import arrange
from charrnn_fa.doctor.watch import Doctor

PROGRAMS = {p.name:p for p in all_programs()}
FAULTY = """copies_its_input fortran_order awd_targets_equal_inputs everything_lower_case mean_state_for_all_rows
    entropy_bonus_in_the_loss descent_that_keeps_gradients rate_zero_for_the_body awd_accumulates_a_million functional_dropout_always_on
    eval_in_the_step state_thrown_away softmax_of_the_softmax awd_without_model_resetter
    sampling_overwrites_the_state ours_on_a_page retain_graph_and_p_data""".split()
HEALTHY = "min_char_rnn burn_in masks_beside log_softmax_and_nll watched_ours".split()


def found(p, trials=True):
    "Ids of the findings, those that are causes, for a program"
    made = p.make()
    if 'watch' not in made: return [o.id for o in doctor.diagnose(**made, seconds=600, trials=trials).findings]
    cb = Doctor(file=io.StringIO())
    made['watch'](made['learn'], [cb])
    return [o.id for o in arrange(cb.findings)]


@pytest.mark.parametrize('name', FAULTY)
def test_the_planted_fault_comes_first(name):
    "Of these faults, without short trainings"
    p = PROGRAMS[name]
    ids = found(p, trials=False)
    assert ids and ids[0] in p.ids+p.also, ids


@pytest.mark.parametrize('name', HEALTHY)
def test_a_healthy_program_has_no_finding(name): assert found(PROGRAMS[name]) == []
