from .designs import claims as claims
from .designs import published as published
from .designs import rank_by_size as rank_by_size
from .designs import search as search
from .designs import to_yaml as to_yaml
from .widget import ArchitectureExplorer as ArchitectureExplorer
