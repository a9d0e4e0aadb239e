"""The swap: what learns badly for no reason that has a name is still found, and the part that it lies in is named"""
import pytest
from planted.unnamed import UNNAMED

from charrnn_fa import doctor

# The programs whose part is named; of the others too little is lost, or each of several parts in their place is a cure
NAMED = """cosine_head mean_of_states softmax_gates renormed_embeddings corrupted_inputs random_labels foreign_targets
    shrinking_steps only_the_mean only_the_largest clipped_weights noise_on_weights""".split()
LEAST = 0.15 # nats by which the swap itself asks a cure to be better


def test_enough_programs_are_named_rightly():
    assert {*NAMED} <= {*UNNAMED} and len({*NAMED}) >= 10
    assert len({UNNAMED[o][0] for o in NAMED}) >= 4, "parts of several kinds"


def swapped(name, fault=True):
    report = doctor.diagnose(**UNNAMED[name][1](fault), seconds=600)
    return report,next((o for o in report.findings if o.id == 'Z5'), None)


@pytest.mark.parametrize('name', NAMED)
def test_the_part_is_named(name):
    report,found = swapped(name)
    assert found, report
    part = UNNAMED[name][0]
    assert found.evidence['part'] == part and found.certainty == ('weak' if part == 'model' else 'strong'), found
    tried = found.evidence.get('tried')
    assert tried is None or tried['after'] < tried['before']-LEAST, tried


@pytest.mark.parametrize('name', NAMED[::3])
def test_its_healthy_twin_has_no_finding(name):
    report,_ = swapped(name, fault=False)
    assert not report, report
