"""Layer layouts of decoders that attend to an encoder's output."""

from kvmodel.errors import ModelError
from kvmodel.fields import Fields
from kvmodel.layers import Block, CrossAttention
from kvmodel.layouts import Blocks, by_types
from kvmodel.shape import MOST_LAYERS, Shape


def decoder_layers(shape: Shape) -> int:
    """Layers of the decoder: `num_decoder_layers`, `decoder_layers`, else as many as the encoder's."""
    for name in ("num_decoder_layers", "decoder_layers"):
        given = shape.fields.optional_count(name, MOST_LAYERS)
        if given is not None:
            return given
    return shape.fields.count("num_hidden_layers", MOST_LAYERS)


def encoder_decoder(shape: Shape) -> Blocks:
    """Self-attention and cross-attention in every decoder layer, of one geometry.

    An input has at most `encoder_tokens` (BART's positions, Whisper's 1500), where the config sets a limit.
    """
    cross = CrossAttention(
        shape.kv_heads, shape.head_dim, shape.head_dim, shape.fields.optional_count("encoder_tokens")
    )
    return tuple(Block((*block.caches, cross)) for block in by_types(shape, lambda _: False))


def t5gemma(shape: Shape) -> Blocks:
    """Self-attention with windows in every other layer from the first on, cross-attention in all."""
    cross = CrossAttention(shape.kv_heads, shape.head_dim, shape.head_dim)
    period = shape.fields.count("sliding_window_pattern", MOST_LAYERS)
    return tuple(Block((*block.caches, cross)) for block in by_types(shape, lambda index: (index + 1) % period != 0))


def mllama(shape: Shape) -> Blocks:
    """Cross-attention alone in the layers `cross_attention_layers` names: those keep no text.

    An image has at most `max_num_tiles` tiles of (size / patch)^2 + 1 positions (`vision_config`).
    """
    named = shape.fields.items("cross_attention_layers")
    if named is None:
        raise ModelError("cross_attention_layers", "is missing")
    crossing = set()
    for index, number in enumerate(named):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < shape.layers:
            raise ModelError(f"cross_attention_layers[{index}]", f"is not one of {shape.layers} layers")
        crossing.add(number)
    text = Block((shape.full(),))
    cross = Block((CrossAttention(shape.kv_heads, shape.head_dim, shape.head_dim, _image_tokens(shape)),))
    return tuple(cross if index in crossing else text for index in range(shape.layers))


def _image_tokens(shape: Shape) -> int | None:
    section = Fields(shape.outer, aliases={}, defaults={}).section("vision_config")
    vision = Fields(section, aliases={}, defaults={"image_size": 448, "patch_size": 14, "max_num_tiles": 4})
    if not section:
        return None
    patches = vision.count("image_size", 2**20) // vision.count("patch_size", 2**20)
    return vision.count("max_num_tiles", 2**20) * (patches * patches + 1)
