"""Pytest plugin: the energy of docs/guides/add-an-energy.md is in the union, as its section 2 says.

For a pytest of its own, `-p tests.energies.energy_of_the_guide`: the union must have it before anything imports it.
"""

import re
import sys
from types import ModuleType

from edlm.energies import kinds
from tests.paths import PROJECT

PAGE = PROJECT / "docs" / "guides" / "add-an-energy.md"
module = ModuleType("bigram")
sys.modules[module.__name__] = module
network, configuration, *_ = re.findall(r"<!-- runs -->\n```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
exec(compile(network + configuration, str(PAGE), "exec"), module.__dict__)
kinds.EnergyConfig |= module.BigramEnergyConfig
