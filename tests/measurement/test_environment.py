import json
import subprocess
import sys

import numpy as np

from pocketfit.measurement.environment import environment


def test_environment_is_json_and_says_where_and_with_what():
    found = environment(threads=3)
    assert json.loads(json.dumps(found)) == found
    assert found["threads"] == 3
    assert found["cpu"]
    assert found["versions"]["numpy"] == np.__version__
    assert 1 <= found["cores_usable"] <= found["cores_logical"]


def test_environment_imports_no_heavy_package():
    code = (
        "import sys; from pocketfit.measurement.environment import environment; environment();"
        "print(sorted({'torch', 'onnxruntime', 'ai_edge_litert', 'PIL'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
