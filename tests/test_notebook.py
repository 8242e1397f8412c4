"""A notebook in a real kernel: classes of its cells, progress on the way, and a result that shows itself."""

from pathlib import Path

import nbclient
import nbformat
import pytest

CLASSES = """
import torch, qatflow
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

class Data(torch.utils.data.Dataset):
    def __init__(self, size):
        self.x = torch.randn(size, 8)
        self.y = self.x[:, :3].argmax(1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]

def right(outputs, target):
    return (outputs.argmax(1) == target).float()

torch.manual_seed(0)
parts = {"calibration": Data(32), "test": Data(100)}
net = Net()
"""
RUN = """
gate = {"max_drop": 0.1, "direction": "higher"}
result = qatflow.quantize(net, parts, metric=right, gate=gate, steps=["equalize"], folder="run")
result
"""
AGAIN = RUN + "print([one.resumed for one in result.candidates if one.stage == 'ptq'])"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning")
def test_a_run_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in (CLASSES, RUN, AGAIN)]
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=300, resources=place).execute()
    told = [
        output["data"]["text/plain"] for output in notebook.cells[1].outputs if output.output_type == "display_data"
    ]
    assert "naive: quantize the model as it is\n" in told
    (shown,) = [output["data"] for output in notebook.cells[1].outputs if output.output_type == "execute_result"]
    assert shown["text/plain"].startswith("<RunResult Net: gate met; ")
    assert "<table>" in shown["text/html"]
    assert (tmp_path / "run" / "report.html").exists()
    streams = "".join(output["text"] for output in notebook.cells[2].outputs if output.output_type == "stream")
    assert "[True]" in streams or "[True, True]" in streams
