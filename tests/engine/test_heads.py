import torch
from torch import nn

from s2d_serve.engine.heads import ExitHeads, Translator
from s2d_serve.training.student import new_translator
from tests.engine.tiny import tiny_model


def weights(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def test_an_exit_without_translator_uses_the_bases_own_norm() -> None:
    norm = nn.RMSNorm(8)
    head = weights(20, 8)
    heads = ExitHeads(norm, head, (None,))
    hidden = weights(3, 8)
    assert torch.allclose(heads.logits(0, hidden), norm(hidden) @ head.T, atol=1e-6)
    assert heads.greedy(heads.logits(0, hidden)) == (norm(hidden) @ head.T).argmax(-1).tolist()


def test_only_ids_of_the_vocabulary_are_drafted() -> None:
    heads = ExitHeads(nn.Identity(), weights(20, 8), (None,), vocabulary=[3, 7, 11])
    logits = heads.logits(0, weights(5, 8))
    assert logits.shape == (5, 3)
    assert set(heads.greedy(logits)) <= {3, 7, 11}
    whole = heads.over_all_ids(logits[0])
    assert whole.shape == (20,)
    assert whole.argmax().item() == heads.greedy(logits[:1])[0]
    assert torch.isfinite(whole).nonzero()[:, 0].tolist() == [3, 7, 11]


def test_a_new_translator_does_what_the_bases_norm_does() -> None:
    model = tiny_model("llama", seed=1)
    translator: Translator = new_translator(model, 16)
    hidden = weights(4, 64)
    assert torch.allclose(translator(hidden), model.model.norm(hidden), atol=1e-5)
