"Rules for each notebook that nbdev does not check: prints every fault with its cell, exit 1 if there is one."
import ast
import json
import re
import sys
from pathlib import Path

from notebooks import Notebook, read_notebooks

MAX_EXPORT, MAX_BODY, MAX_JOB_CELLS, MAX_OUTPUT_BYTES = 60, 30, 12, 150_000
OUR_MOUNTS = r'/home/(?!input_dir|shared_dir|output_dir)'
ABSOLUTE = re.compile(rf'(?<![\w.:/-])(?:{OUR_MOUNTS}|/(?:root|tmp|work|opt|Users|mnt|var)/|[A-Z]:\\Users)')
MAGIC = re.compile(r'^[%!].*$', re.M)


def check_shape(nb: Notebook):
    head = nb.cells[0][2].splitlines() if nb.cells else []
    if len(head) < 3 or not head[0].startswith('# ') or head[1].strip() or not head[2].startswith('> '):
        yield f'{nb.name}: the first cell must be "# name", an empty line, "> one sentence"'
    n_lines = sum(len([o for o in s.splitlines() if o.strip() and not o.startswith('#|')]) for _, s in nb.exported)
    n_words = sum(len(re.sub(r'```.*?```', '', s, flags=re.S).split()) for _, o, s in nb.cells
                  if o['cell_type'] == 'markdown')
    if n_words < n_lines: yield f'{nb.name}: {n_words} words of prose for {n_lines} exported lines, need 100 per 100'


def check_cells(nb: Notebook):
    for i, _, source in nb.code:
        try: body = ast.parse(MAGIC.sub('pass', source) if MAGIC.match(source) else source).body
        except SyntaxError as e:
            yield f'{nb.name} cell {i}: {e}'
            continue
        imports = [isinstance(o, (ast.Import, ast.ImportFrom)) for o in body]
        if any(imports) and not all(imports): yield f'{nb.name} cell {i}: imports mixed with other code'
        for o in ast.walk(ast.Module(body, [])):
            if isinstance(o, ast.ImportFrom) and o.names[0].name == '*': yield f'{nb.name} cell {i}: star import'
    for i, source in nb.exported:
        if (n := len([o for o in source.splitlines() if not o.startswith('#|')])) > MAX_EXPORT:
            yield f'{nb.name} cell {i}: export cell of {n} lines, the limit is {MAX_EXPORT}'
        for o in ast.walk(ast.parse(source)):
            if not isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef)): continue
            first = o.body[1 if ast.get_docstring(o) is not None and len(o.body) > 1 else 0]
            if (n := o.end_lineno - first.lineno + 1) > MAX_BODY:
                yield f'{nb.name} cell {i}: body of {o.name} has {n} lines, the limit is {MAX_BODY}'


def check_outputs(nb: Notebook):
    outputs = [(i, json.dumps(o['outputs'], ensure_ascii=False)) for i, o, _ in nb.code if o.get('outputs')]
    if (n := sum(len(text.encode()) for _, text in outputs)) > MAX_OUTPUT_BYTES:
        yield f'{nb.name}: {n} bytes of outputs, the limit is {MAX_OUTPUT_BYTES}'
    for i, text in outputs:
        if 'application/vnd.jupyter.widget' in text: yield f'{nb.name} cell {i}: a widget among the outputs'
        text = re.sub(r'"image/[^"]*": "[^"]*"', '', text)
        if m := ABSOLUTE.search(text):
            yield f'{nb.name} cell {i}: absolute path {text[m.start():m.start() + 30]!r} in an output'


def check_job(nb: Notebook):
    n = sum('parameters' in o['metadata'].get('tags', []) for _, o, _ in nb.cells)
    if n != 1: yield f'{nb.name}: {n} cells tagged "parameters", need exactly 1'
    if len(nb.code) > MAX_JOB_CELLS: yield f'{nb.name}: {len(nb.code)} code cells, the limit is {MAX_JOB_CELLS}'
    if nb.exported: yield f'{nb.name}: a job exports nothing'
    if any(o.get('outputs') for _, o, _ in nb.code): yield f'{nb.name}: a job is committed without outputs'


def faults(root: Path) -> list[str]:
    nbs = read_notebooks(root)
    found = [o for nb in nbs for check in (check_cells, check_outputs) for o in check(nb)]
    return found + [o for nb in nbs for o in (check_job(nb) if nb.is_job else check_shape(nb))]


if __name__ == '__main__':
    out = faults(Path.cwd())
    print('\n'.join(out) or 'notebooks: ok')
    sys.exit(bool(out))
