"""A session whose stages run in this process, without Ray and MLflow."""

from dataclasses import dataclass, field
from pathlib import Path

from edlm.storage import committed, publish
from workflows.stage import Session, StageContext
from workflows.stage_fingerprint import stage_inputs


@dataclass
class LocalSession(Session):
    """Stages in this process, without Ray and MLflow; what trains on workers is trained here by the tests."""

    ran: list[str] = field(default_factory=list)

    def run_stage(self, name, settings, inputs, code, work, versions=None):
        determined = stage_inputs(name, settings, inputs, code, versions)
        output = self.output_of(determined.folder)
        if committed(output) is None:
            folder = Path(self.root, "scratch", determined.folder)
            folder.mkdir(parents=True, exist_ok=True)
            nowhere, workspace = Path(self.root), self.workspace_of(determined.folder)
            context = StageContext(name, folder, workspace, nowhere, "", lambda: None, determined)
            publish(folder, output, work(context))
            self.ran.append(name)
        return output

    def given(self, name, uri):
        return uri
