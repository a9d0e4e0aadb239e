"What keeps a network from learning"
from .ladder import Ladder, ladder
from .report import Finding, Report
from .errors import explain
from .diagnose import diagnose
from .watch import Doctor

__all__ = ['Doctor', 'Finding', 'Ladder', 'Report', 'diagnose', 'explain', 'ladder']
