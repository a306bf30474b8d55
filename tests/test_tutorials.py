"The tool that runs the tutorials says of each what became of it, and fails when one fails."
import json

import pytest
import run_tutorials
from lightly_curate.run.jobs import check_parameters


@pytest.fixture
def tutorials(tmp_path, monkeypatch):
    "A function that writes a tutorial of one parameter and one cell; the tool looks for tutorials and real images there."
    monkeypatch.setattr(run_tutorials, 'ROOT', tmp_path)
    monkeypatch.setattr(run_tutorials, 'DATA', tmp_path/'data')
    folder = tmp_path/'nbs'/'tutorials'
    folder.mkdir(parents=True)

    def write(name: str, parameter: str, code: str):
        cells = [{'cell_type': 'code', 'id': str(i), 'metadata': {'tags': tags}, 'source': source, 'outputs': [], 'execution_count': None}
                 for i, (tags, source) in enumerate([(['parameters'], parameter), ([], code)])]
        kernel = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
        (folder/f'{name}.ipynb').write_text(json.dumps({'cells': cells, 'metadata': kernel, 'nbformat': 4, 'nbformat_minor': 5}))

    return write


def run(monkeypatch, *words: str) -> int:
    monkeypatch.setattr('sys.argv', ['run_tutorials.py', *words])
    return run_tutorials.main()


def test_ran_and_failed(tutorials, tmp_path, monkeypatch, capsys):
    tutorials('good', 'n: int = 1', 'import os\nassert n == 1 and not os.listdir()')
    assert run(monkeypatch, '--keep', str(tmp_path/'kept')) == 0
    assert capsys.readouterr().out.startswith('ran     good (as it is)') and (tmp_path/'kept'/'good-0.ipynb').is_file()
    tutorials('bad', 'n: int = 1', 'n/0')
    assert run(monkeypatch, 'bad') == 1
    out = capsys.readouterr().out
    assert out.startswith('failed  bad') and 'ZeroDivisionError' in out


def test_real_images(tutorials, tmp_path, monkeypatch, capsys):
    "Skipped, visibly, without them; with them the tutorial gets their folder."
    tutorials('real', "data_dir: str = 'elsewhere'", 'from pathlib import Path\nassert Path(data_dir, "here.txt").is_file()')
    assert run(monkeypatch) == 0
    assert 'skipped real (data_dir=DATA/): no real images' in capsys.readouterr().out
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'here.txt').touch()
    assert run(monkeypatch) == 0
    assert capsys.readouterr().out.startswith('ran     real')


def test_unknown_name(tutorials, monkeypatch, capsys):
    with pytest.raises(SystemExit): run(monkeypatch, 'none')
    assert 'there is no tutorial none' in capsys.readouterr().err


def test_table_names_tutorials_and_their_parameters(root):
    "What the tool would pass is known to the notebooks."
    for name, runs in run_tutorials.RUNS.items():
        notebook = root/'nbs'/'tutorials'/f'{name}.ipynb'
        for parameters in runs: check_parameters(notebook, parameters)
