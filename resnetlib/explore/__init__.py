"""Network designs within a budget: search and the interactive explorer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "designs": ["claims", "published", "rank_by_size", "search", "to_yaml"],
        "widget": ["ArchitectureExplorer"],
    },
)
