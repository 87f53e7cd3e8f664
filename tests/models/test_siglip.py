"""The shared vision tower against torch's own implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from rdbcl_jax.models import siglip
from rdbcl_jax.models.decoder import Decoder, DecoderConfig
from rdbcl_jax.models.text_only import TextModelConfig
from rdbcl_jax.models.weights import WeightMap
from tests.models.oracle import worst

SIZES = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=20,
    patch_size=4,
)
TEXT = DecoderConfig(8, 1, 8, 8, 1, 1, 8, 1e4, False, False, 1e-6, True)
PLACE = "vision_model"


class Seeing(Decoder):
    """A tower beside a decoder that nobody asks."""

    @property
    def weights(self):
        shapes = siglip.kernel_shapes(PLACE, TOWER)
        return WeightMap(self.stacks, {PLACE: PLACE}, shapes=shapes)

    def modules(self):
        return siglip.modules(self, PLACE, TOWER)


CONFIG = transformers.SiglipVisionConfig(**SIZES, vision_use_head=False)
TOWER = siglip.siglip_config(CONFIG.to_dict())
MODEL = Seeing(TextModelConfig(TEXT, (), None))


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    model = transformers.SiglipVisionModel(CONFIG).eval()
    for parameter in model.parameters():
        scale = 0.1 if parameter.ndim == 1 else 0.5 * parameter.shape[-1] ** -0.5
        parameter.data += scale * torch.randn_like(parameter)
    return model


def ours(model, value=lambda parameter: parameter):
    """The torch model's parameters, or another `value` of each, in our structure."""
    tensors = {
        name if name.startswith(PLACE) else f"{PLACE}.{name}": value(parameter).detach().numpy()
        for name, parameter in model.named_parameters()
    }

    def read(path, shape):
        source = MODEL.weights.source_of((PLACE, *(k.key for k in path)), shape.shape)
        whole = (slice(None),) * (len(shape.shape) - source.stacked)
        layers = [source.read(tensors.pop(name), whole) for name in source.names]
        return jnp.asarray(np.stack(layers) if source.stacked else layers[0])

    params = jax.tree_util.tree_map_with_path(read, MODEL.abstract_params()[PLACE])
    assert not tensors
    return {PLACE: params}


@pytest.mark.parametrize("after", [None, (3,), (2, 0, 3)])
def test_vectors_and_gradients(tower, after):
    pictures = np.random.default_rng(0).normal(size=(2, 3, 20, 20)).astype(np.float32)
    pixels = siglip.cut(pictures, TOWER.patch_size)
    positions = np.broadcast_to(np.arange(25), (2, 25))
    patches = siglip.Patches(pixels, positions, np.ones((2, 25), bool))
    width = 24 * len(after or (3,))
    weights = np.random.default_rng(1).normal(size=(2, 25, width)).astype(np.float32)

    @jax.jit
    def run(params, patches):
        found = siglip.encode(MODEL, PLACE, params, patches, after=after)
        return jnp.sum(found * weights), found

    params = ours(tower)
    gradients, found = jax.grad(run, has_aux=True)(params, patches)
    out = tower(torch.tensor(pictures), output_hidden_states=True)
    expected = out.last_hidden_state
    if after is not None:
        expected = torch.cat([out.hidden_states[depth] for depth in after], -1)
    assert worst(found, expected.detach().numpy()) <= 1e-5
    tower.zero_grad(set_to_none=False)
    (expected * torch.tensor(weights)).sum().backward()

    def gradient(parameter):
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    errors = jax.tree.map(worst, gradients, ours(tower, gradient))
    # a key's bias shifts every score of a query alike: its gradient is rounding
    del errors[PLACE]["encoder"]["layers"]["self_attn"]["k_proj"]["bias"]
    assert max(jax.tree.leaves(errors)) <= 1e-4


def test_patches_that_are_not_real_change_no_other(tower):
    rng = np.random.default_rng(2)
    pixels = rng.normal(size=(1, 25, TOWER.patch_dim)).astype(np.float32)
    mask, positions = np.arange(25)[None] < 15, np.arange(25)[None]
    params = ours(tower)

    def run(pixels, positions, mask):
        patches = siglip.Patches(pixels, positions, mask)
        return np.asarray(siglip.encode(MODEL, PLACE, params, patches))

    alone = run(pixels[:, :15], positions[:, :15], mask[:, :15])
    pixels[:, 15:] = 1e3
    assert worst(run(pixels, positions, mask)[:, :15], alone) <= 1e-5


def test_cut_is_the_convolutions_order():
    picture = torch.arange(2 * 3 * 9 * 14, dtype=torch.float32).reshape(2, 3, 9, 14)
    expected = torch.nn.functional.unfold(picture[..., :8, :12], 4, stride=4).mT
    np.testing.assert_array_equal(siglip.cut(picture.numpy(), 4), expected)
