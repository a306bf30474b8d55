"Write the JSON Schema of report.json beside the notebooks, where people find it: python tools/make_schema.py"
import json
from pathlib import Path

from lightly_curate.report.report import REPORT_SCHEMA, SCHEMA_VERSION

PATH = Path(__file__).resolve().parent.parent/'nbs'/f'report-{SCHEMA_VERSION}.schema.json'


def schema_text() -> str:
    "The schema as it is published."
    return json.dumps(REPORT_SCHEMA, indent=1) + '\n'


if __name__ == '__main__':
    PATH.write_text(schema_text(), encoding='utf-8')
    print(PATH)
