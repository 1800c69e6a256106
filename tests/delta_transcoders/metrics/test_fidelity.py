import pytest
import torch

from delta_transcoders.metrics.fidelity import Fidelity


def test_the_change_itself_half_of_it_and_what_is_across():
    change = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    fidelity = Fidelity(4)
    across = torch.tensor([[0.0, 3.0], [4.0, 0.0]])
    for group, delta in enumerate((change, change / 2, across, torch.zeros(2, 2))):
        for token in range(2):  # in two batches
            fidelity.update(group, delta[token : token + 1], change[token : token + 1])
    found = {name: values.tolist() for name, values in fidelity.compute().items()}
    assert found["cos"][:3] == pytest.approx([1, 1, 0])
    assert found["cos"][3] != found["cos"][3]  # nothing has no direction
    assert found["unexplained"] == pytest.approx([0, 0.25, 2, 1])
    assert found["norm_ratio"] == pytest.approx([1, 0.5, 1, 0])
