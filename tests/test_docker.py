"The container without docker: what the Dockerfile promises, and its entry run on the three container paths."
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MOUNTS = ('input_dir', 'shared_dir', 'output_dir')
ENTER = '''
set -e
mount -t tmpfs tmpfs /home
mkdir /home/input_dir /home/shared_dir /home/output_dir
mount --bind "$1/output_dir" /home/output_dir
for name in input_dir shared_dir; do
    mount --bind "$1/$name" /home/$name
    mount -o remount,bind,ro /home/$name
done
mount -t tmpfs -o noexec,nosuid,nodev tmpfs /tmp
findmnt --raw --noheadings --output TARGET | while read -r place; do
    case $place in /proc*|/sys*|/dev*|/tmp|/home/output_dir) ;; *) mount -o remount,bind,ro "$place" ;; esac
done
for place in / /home "$2"; do if touch "$place/sealed" 2>/dev/null; then echo "$place can be written"; exit 9; fi; done
cd /home
shift 2
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --ambient-caps=-all "$@"
'''


@pytest.fixture(scope='module')
def dockerfile(root) -> str: return (root/'Dockerfile').read_text()


def entrypoint(dockerfile: str) -> list[str]: return json.loads(re.search(r'^ENTRYPOINT (.*)', dockerfile, re.M)[1])


def test_last_stage(dockerfile):
    "Slim, nothing built in it, not root, three mount points below its working folder, one entry."
    last = dockerfile[dockerfile.rindex('\nFROM '):]
    assert re.search(r'FROM python:3\.\d+-slim', last)
    assert 'pip' not in last and 'apt' not in last
    assert re.search(r'^USER (?!0|root)', last, re.M) and 'WORKDIR /home\n' in last
    assert all(f'/home/{o}' in last for o in MOUNTS)
    assert entrypoint(dockerfile) == ['lightly-curate'] and 'CMD' not in last


def test_build_context_has_what_setup_reads(root):
    kept = {o[1:] for o in (root/'.dockerignore').read_text().splitlines() if o.startswith('!')}
    assert {'lightly_curate', 'nbs/jobs', 'settings.ini', 'setup.py', 'README.md', 'LICENSE'} <= kept
    assert all((root/o).exists() for o in kept)


def mounted(folder: Path, words: list[str]) -> list[str] | None:
    "The command as with `--read-only --tmpfs /tmp --cap-drop=ALL --security-opt=no-new-privileges`, on the container paths; None where that cannot be."
    needed = (sys.prefix, sys.base_prefix, str(Path(__file__).parent), str(folder))
    if not shutil.which('unshare') or any(o.startswith('/home/') for o in needed): return None
    package = Path(__file__).resolve().parent.parent/'lightly_curate'
    enter = ['unshare', '--mount', '--map-root-user', 'bash', '-c', ENTER, 'enter', str(folder), str(package)]
    probe = subprocess.run([*enter, 'true'], capture_output=True, stdin=subprocess.DEVNULL)
    return [*enter, *words] if probe.returncode == 0 else None


@pytest.mark.smoke
def test_entry_on_the_container_paths(dockerfile, sample_folder, tmp_path):
    "The words of `docker run IMAGE ...`: nothing but /tmp and the output can be written, no rights, a home folder that does not exist yet."
    for name in MOUNTS[1:]: (tmp_path/name).mkdir()
    (tmp_path/'input_dir').symlink_to(sample_folder)
    program = Path(sys.executable).with_name(entrypoint(dockerfile)[0])
    words = [str(program), 'stopping_condition.n_samples=0.3', 'run_directory=run', 'n_example_images=2']
    inside = mounted(tmp_path, words)
    command = inside or [*words, *(f'{o}={tmp_path/o}' for o in MOUNTS)]
    home = Path('/tmp/curate') if inside else tmp_path/'not-there-yet'
    caches = {'HOME': home, 'MPLCONFIGDIR': home/'matplotlib', 'NUMBA_CACHE_DIR': home/'numba'}
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                         env=os.environ | {k: str(v) for k, v in caches.items()})
    assert out.returncode == 0, out.stdout[-2000:] + out.stderr[-4000:]
    run = tmp_path/'output_dir/run'
    for made in ('report.pdf', 'report.json', 'filenames/sampled_filenames.txt', 'config/config.yaml'):
        assert (run/made).stat().st_size > 0
    if inside: assert '/home/input_dir' in (run/'config/config.yaml').read_text()


def test_readme_shows_the_original_commands_with_our_image(root):
    text = (root/'README.md').read_text()
    assert '-v INPUT_DIR:/home/input_dir:ro' in text and 'docker build -t lightly-curate .' in text
    assert 'lightly/sampling' not in text
