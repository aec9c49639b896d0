import subprocess
import sys

SCRIPT = """
from concurrent.futures import ProcessPoolExecutor
from echox.core.processes import spawn_context

print("the script runs", __file__, flush=True)
process = spawn_context().Process(target=print, args=("a process runs",))
process.start()
process.join()
with ProcessPoolExecutor(1, spawn_context()) as pool:
    print(pool.submit(abs, -3).result(), __spec__, __file__)
"""


def test_a_script_without_a_guard_is_run_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert run.stdout == f"the script runs {script}\na process runs\n3 None {script}\n", run.stderr
