"What keeps a network from learning"
from .ladder import Ladder, ladder
from .report import Finding, Report
from .shapes import explain
from .diagnose import diagnose

__all__ = ['Finding', 'Ladder', 'Report', 'diagnose', 'explain', 'ladder']
