"Each comparison on which exactness rests, turned round: the choice must change somewhere."
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1]/'nbs'/'50_select'/'51_coreset.ipynb'
FLIPS = {
    'sieve tightened instead of loosened': ('(1 + (d + 8)*ROUNDING)', '(1 - (d + 8)*ROUNDING)'),
    'sieve without its margin for tiny values': ('*ROUNDING) + TINY', '*ROUNDING)'),
    'sieve turned round': ('newest) < loosened', 'newest) > loosened'),
    'larger bounds come later': ('return bound > place[0]', 'return bound < place[0]'),
    'of equal bounds the higher row comes first': ('and row <= place[1])', 'and row >= place[1])'),
    'the last candidate is left out': ('and row <= place[1])', 'and row < place[1])'),
    'the last of equally far rows is chosen': ('bounds[row] > bounds[farthest]', 'bounds[row] >= bounds[farthest]'),
    'nearest instead of farthest': ('bounds[row] > bounds[farthest]', 'bounds[row] < bounds[farthest]'),
    'ends at min_distance, not below': ('gap < min_distance or gap', 'gap <= min_distance or gap'),
    'ends below coverage_distance, not at it': ('or gap <= coverage_distance', 'or gap < coverage_distance'),
    'chosen rows stay in the game': ('        bounds[farthest] = -1\n', ''),
    'slack of the products with the wrong sign': ('(norm - bound)/2 - 4*(d + 8)', '(norm - bound)/2 + 4*(d + 8)'),
    'no slack': ('(norm - bound)/2 - 4*(d + 8)', '(norm - bound)/2 - 0*(d + 8)'),
    'groups of products turned round': ('if best[a] < limits[a]: continue', 'if best[a] > limits[a]: continue'),
    'products turned round': ('if products[j, a] < limits[a]: continue', 'if products[j, a] > limits[a]: continue'),
    'worst of a group instead of the best': ('best[a] = max(best[a], products[j, a])', 'best[a] = min(best[a], products[j, a])'),
    'one tied candidate too few': ('np.count_nonzero(values > bound) - 1]', 'np.count_nonzero(values > bound) - 2]'),
    'the probe of a neighbour turned round': ('rough_distance(x[row], centre) <', 'rough_distance(x[row], centre) >'),
    'the newest choices are taken for seen': ('seen[part[a]] = stop\n', 'seen[part[a]] = stop + 1\n'),
    'rows that missed choices count as up to date': ('late = candidates[(seen[candidates] < way.n_chosen)',
                                                     'late = candidates[(seen[candidates] > way.n_chosen)'),
    'copies of chosen rows stop the refresh of others': ('& (bounds[candidates] > 0)]', '& (bounds[candidates] < 0)]'),
}


def notebook_as_script() -> str:
    cells = [''.join(o['source']) for o in json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells'] if o['cell_type'] == 'code']
    return re.sub(r'^(#\|.*|from __future__.*)$', '', '\n'.join(cells), flags=re.M)


def run(source: str, folder: Path) -> subprocess.CompletedProcess:
    script = folder/'coreset_notebook.py'
    script.write_text(source, encoding='utf-8')
    command = [sys.executable, '-W', 'ignore', str(script)]
    return subprocess.run(command, env={'MPLBACKEND': 'agg', 'PATH': ''}, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_notebook_runs_as_script(tmp_path):
    "Otherwise the flips below would fail for another reason."
    done = run(notebook_as_script(), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize('flip', FLIPS)
def test_each_comparison_matters(flip, tmp_path):
    old, new = FLIPS[flip]
    source = notebook_as_script()
    assert source.count(old) == 1, f'{old!r} comes {source.count(old)} times'
    try:
        done = run(source.replace(old, new), tmp_path)
    except subprocess.TimeoutExpired:
        return  # it goes on for ever, which no one would overlook
    assert done.returncode == 1 and 'Error' in done.stderr, done.stderr[-2000:]
