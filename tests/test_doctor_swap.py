"""The swap: what learns badly for no reason that has a name is still found, and the part that it lies in is named"""
import pytest
from planted.unnamed import UNNAMED

from charrnn_fa import doctor

QUICK = 'foreign_targets',


def z5(report): return next((o for o in report.findings if o.id == 'Z5'), None)


@pytest.mark.parametrize('name', [pytest.param(o, marks=[] if o in QUICK else pytest.mark.hunt) for o in UNNAMED])
def test_the_part_is_named(name):
    part,make = UNNAMED[name]
    report = doctor.diagnose(**make(), seconds=600)
    found = z5(report)
    assert found and found.evidence['part'] == part, report
    assert found.certainty == ('weak' if part == 'model' else 'strong'), found
    tried = found.evidence.get('tried')
    assert tried is None or tried['after'] < tried['before'], tried


@pytest.mark.hunt
@pytest.mark.parametrize('name', UNNAMED)
def test_its_healthy_twin_has_no_finding(name): assert not doctor.diagnose(**UNNAMED[name][1](fault=False), seconds=600)
