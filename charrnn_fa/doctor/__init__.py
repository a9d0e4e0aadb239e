"What keeps a network from learning"
from .ladder import Ladder, ladder
from .report import Finding, Report
from .shapes import explain
from .diagnose import diagnose
from .watch import Doctor
from . import fit_to_fit, every_step, on_the_way

__all__ = ['Doctor', 'Finding', 'Ladder', 'Report', 'diagnose', 'explain', 'ladder']
