"""Settings that must be in place before scipy is imported."""

import os

# Array API support is tested throughout; SCIPY_ARRAY_API=0 tests without it, which scikit-learn's
# checks only understand as the variable being absent.
if os.environ.setdefault("SCIPY_ARRAY_API", "1") == "0":
    del os.environ["SCIPY_ARRAY_API"]
