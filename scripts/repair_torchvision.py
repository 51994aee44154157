"""Let `import torchvision` succeed where its compiled operators cannot be loaded.

The torchvision wheels on the package index are linked against CUDA. Beside a CPU build of torch their operators do not
load, and `import torchvision` (which transformers and lmms-eval need only for resizing) stops with "operator
torchvision::nms does not exist". Where that happens, and only there, this script puts a small import hook into the
virtual environment it runs in: it declares the two missing operators before torchvision is imported. Declared operators
have a schema and no kernel: calling them still raises.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

HOOK_NAME = "_torchvision_without_cuda"
HOOK = '''"""Declare torchvision's operators before its import (written by scripts/repair_torchvision.py)."""
import importlib.abc
import sys


class _Declare(importlib.abc.MetaPathFinder):
    library = None

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and self.library is None:
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for op in ("nms", "qnms"):
                self.library.define(op + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, _Declare())
'''


def imports_torchvision() -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import torchvision.transforms.v2"], capture_output=True, text=True, check=False
    )


def main() -> int:
    site = Path(sysconfig.get_paths()["purelib"])
    for suffix in (".py", ".pth"):  # of an earlier torch: beside a matching pair the hook would be in the way
        (site / f"{HOOK_NAME}{suffix}").unlink(missing_ok=True)
    attempt = imports_torchvision()
    if attempt.returncode == 0:
        return 0
    if "torchvision::nms" not in attempt.stderr:
        print(attempt.stderr, file=sys.stderr)
        print("error: torchvision cannot be imported; install a torchvision that matches torch", file=sys.stderr)
        return 1
    (site / f"{HOOK_NAME}.py").write_text(HOOK, encoding="utf-8")
    (site / f"{HOOK_NAME}.pth").write_text(f"import {HOOK_NAME}\n", encoding="utf-8")
    repaired = imports_torchvision()
    if repaired.returncode:
        print(repaired.stderr, file=sys.stderr)
        return 1
    print(
        "torchvision: compiled operators not loadable beside this torch; declared without kernels in this environment"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
