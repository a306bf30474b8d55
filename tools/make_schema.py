"Write the JSON Schemas of report.json, compare.json and manifest.json beside the notebooks, where people find them: python tools/make_schema.py"
import json
from pathlib import Path

from lightly_curate.report.comparison import COMPARISON_SCHEMA, COMPARISON_VERSION
from lightly_curate.report.report import REPORT_SCHEMA, SCHEMA_VERSION
from lightly_curate.run.manifest import MANIFEST_SCHEMA, MANIFEST_VERSION

NBS = Path(__file__).resolve().parent.parent/'nbs'
SCHEMAS = {NBS/f'report-{SCHEMA_VERSION}.schema.json': REPORT_SCHEMA, NBS/f'compare-{COMPARISON_VERSION}.schema.json': COMPARISON_SCHEMA,
           NBS/f'manifest-{MANIFEST_VERSION}.schema.json': MANIFEST_SCHEMA}


def schema_text(schema: dict) -> str:
    "A schema as it is published."
    return json.dumps(schema, indent=1) + '\n'


if __name__ == '__main__':
    for path, schema in SCHEMAS.items():
        path.write_text(schema_text(schema), encoding='utf-8')
        print(path)
