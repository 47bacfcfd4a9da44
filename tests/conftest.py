"""One thread for every process that tests start, unless the environment says otherwise, or a test asks for more.

Several processes with several threads each slow one another down on a few cores; so do threads that spin as they wait.
"""

import os

# Here, before torch is imported: it reads them once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
