__version__ = "0.1.0"


def __getattr__(name: str) -> type:
    "`from lightly_curate import Run`: imported when it is asked for, so that `import lightly_curate` stays quick."
    if name != 'Run': raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from lightly_curate.run.open import Run
    return Run
