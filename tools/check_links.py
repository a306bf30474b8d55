"Find links of a folder of HTML pages that lead nowhere."
import re
from pathlib import Path

LINK = re.compile(r'<\w+\b[^<>]*?\s(?:href|src)="([^"]+)"')


def broken_links(root: Path) -> list[str]:
    found = []
    for html in sorted(root.rglob('*.html')):
        text = re.sub(r'<(script|style)\b.*?</\1>', '', html.read_text(encoding='utf-8'), flags=re.S)
        for link in sorted(set(LINK.findall(text))):
            if re.match(r'\w+:|//', link): continue
            file, _, anchor = link.partition('#')
            target = html if not file else (html.parent/file).resolve()
            if not target.exists(): found.append(f'{html}: {link} does not exist')
            elif anchor and target.suffix == '.html' and f'id="{anchor}"' not in target.read_text(encoding='utf-8'):
                found.append(f'{html}: no heading {link}')
    return found
