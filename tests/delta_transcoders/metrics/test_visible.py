import pytest
import torch

from delta_transcoders.metrics.visible import LogprobChange, SeenByDictionary


def test_what_a_dictionary_shows_of_a_change():
    change = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    across = torch.tensor([[0.0, 3.0], [4.0, 0.0]])
    base = torch.tensor([[6.0, 8.0], [0.0, 4.0]])
    metric = SeenByDictionary(6)
    for token in (0, 1):  # two batches, of four groups each; the last two have none, and no change
        one = change[token : token + 1].expand(4, -1)
        seen = torch.stack([change[token], change[token] / 2, across[token], torch.zeros(2)])
        metric.update(torch.arange(4), one, seen, base[token : token + 1].expand(4, -1))
    metric.update(torch.tensor([5]), torch.zeros(1, 2), torch.ones(1, 2), base[:1])
    found = {name: values.tolist() for name, values in metric.compute().items()}
    assert found["n_tokens"] == [2, 2, 2, 2, 0, 1]
    assert found["visible_change"][:4] == pytest.approx([1, 0.75, -1, 0])
    assert all(value != value for value in found["visible_change"][4:])
    assert found["change_norm"][:4] == pytest.approx([3.5 / 7] * 4)
    assert found["change_norm"][5] == 0


def test_log_probabilities_change_by_the_plain_mean_over_positions():
    metric = LogprobChange(3, 2)
    metric.update(torch.tensor([0, 2, 0]), torch.tensor([[1.0, -1.0], [5.0, 0.0], [2.0, 0.0]]))
    metric.update(torch.tensor([0]), torch.tensor([[3.0, -2.0]]))
    found = metric.compute()
    assert found["n_positions"].tolist() == [3, 0, 1]
    assert found["mean_change"][[0, 2]].tolist() == [[2, -1], [5, 0]]
    assert found["mean_change"][1].isnan().all()
