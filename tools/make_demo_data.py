"Sample images for `make demo`, made once: crops and a pan of photographs that scikit-learn and matplotlib ship."
import shutil
import sys
from pathlib import Path

from lightly_curate.data.sample_data import make_sample_data

if __name__ == '__main__':
    folder = Path(sys.argv[1])
    unfinished = folder.with_name(f'{folder.name}-unfinished')
    if not folder.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        make_sample_data(unfinished)
        unfinished.rename(folder)
