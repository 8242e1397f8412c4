#!/usr/bin/env bash
# safetensors 0.8.0: a file that does not fit any more, here because of a limit on the size of files (EFBIG, as a full
# disk is ENOSPC).
# Expected: an OSError with its errno, as from Python's open, numpy.save and every other writer, so that code which
# handles a full disk handles this one.
#
# Seen: SafetensorError, which is an Exception and no OSError, has no errno, does not name the file, and has the cause in
# its text alone. At least nothing is left under the file's name.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.3.4
cd "$work"
"$work/venv/bin/python" - <<'PY'
import os
import resource
import signal

import numpy as np
import safetensors
from safetensors import SafetensorError
from safetensors.numpy import save_file

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
weights = np.arange(100_000, dtype=np.float32)


def outcome(write):
    try:
        write()
    except Exception as error:
        return error


plain = outcome(lambda: np.save("weights.npy", weights))
found = outcome(lambda: save_file({"weights": weights}, "weights.safetensors"))
print("numpy", np.__version__, repr(plain))
print("safetensors", safetensors.__version__, repr(found), os.listdir())
assert isinstance(plain, OSError), "this has changed"
assert isinstance(found, SafetensorError) and not isinstance(found, OSError), "this has changed"
assert getattr(found, "errno", None) is None
assert not os.path.exists("weights.safetensors")
PY
