"List the programs"
from . import all_programs

for p in all_programs(): print(f"{' '.join(p.ids) or 'healthy':12} {p.kind:9} {p.name}")
