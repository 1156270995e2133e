"""How a model is adapted: which of its weights learn, or which few are added that do. To add a method, write
its function and a line in METHODS.

Heads for the task's labels, and whatever else the base's folder has no weights for, learn with every method.
Learning rates are where a search begins; a source says so where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from isoflop.adapting.parts import (
    depths,
    linear_layers,
    model_type,
    new_parameters,
    pretrained_parts,
    stacks,
)
from isoflop.errors import AdaptError
from isoflop.tasks.protocol import BOTH, DECODER, ENCODER, SPEECH, Base

if TYPE_CHECKING:
    from isoflop.adapting.records import AdaptConfig

FULL = "full"
LAYERS = 2  # that last-layers trains, where its options do not say
WIDTH = 64  # of a bottleneck: Houlsby et al. try 8 to 256 (section 3.2)
VIRTUAL_TOKENS = 20  # Lester et al., section 3.2: little is gained by more
RANK = 8

# How peft names what a model of transformers is for, by the end of its class's name.
PROMPTED: Mapping[str, str] = {
    "ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS", "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}  # fmt: skip

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """One way to adapt."""

    name: str
    lr: float  # where a search begins
    lr_source: str
    merges: bool  # into a plain model of the base's architecture
    apply: Callable[[nn.Module, Base, set[str], Options], nn.Module]  # of the new parameters' names
    fits: Callable[[nn.Module, Base], bool]
    says: str


def prepared(model: nn.Module, config: AdaptConfig, base: Base) -> nn.Module:
    """The model with what the method adds; only what learns requires gradients.

    Raises AdaptError for a method that is unknown, does not fit the model, or does not know its options.
    """
    from peft.utils import ModulesToSaveWrapper

    method = method_of(config.method)
    if not method.fits(model, base):
        others = ", ".join(name for name, other in METHODS.items() if other.fits(model, base))
        raise AdaptError(
            f"the method {method.name} does not fit {type(model).__name__} ({model_type(model)})",
            hint=f"methods that do: {others}",
        )
    new = new_parameters(model, base.folder)
    parameters = dict(model.named_parameters())
    heads = [parameters[name] for name in sorted(new)]
    try:
        made = method.apply(model, base, new, config.method_options)
    except (TypeError, ValueError) as error:
        if isinstance(error, AdaptError):
            raise
        raise AdaptError(
            f"the method {method.name} cannot be applied to {model_type(model)}: "
            f"{str(error).splitlines()[0]}",
            hint="see the options of the method, or choose another",
        ) from None
    for weight in heads:
        weight.requires_grad_(True)
    for module in made.modules():
        if isinstance(module, ModulesToSaveWrapper):  # peft's copy of a head learns, not the head
            module.original_module.requires_grad_(False)
    return made


def merged(model: nn.Module) -> nn.Module:
    """A plain model of the base's architecture. Raises AdaptError for a method that stays beside the base."""
    from peft import PeftModel

    if any(isinstance(module, Bottleneck) for module in model.modules()):
        raise AdaptError("adapters are layers of their own and cannot be merged", hint="save them beside it")
    if not isinstance(model, PeftModel):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise AdaptError(
            "vectors before the input, or before keys and values, are no weights of a plain model",
            hint="save them beside it",
        )
    plain: nn.Module = model.merge_and_unload()
    return plain


def method_of(name: str) -> Method:
    """The method of that name. Raises AdaptError for another."""
    if name == AS_IS.name:
        return AS_IS
    if name not in METHODS:
        raise AdaptError(f"{name!r} is no method", hint=f"one of: {', '.join(METHODS)}")
    return METHODS[name]


class Bottleneck(nn.Module):
    """x + W_up gelu(W_down x), the identity at first (Houlsby et al., arXiv 1902.00751, section 2.1).

    One after each block, rather than two in it as theirs: outputs of blocks have one form in every
    architecture, and Pfeiffer et al. (arXiv 2005.00247) find one as good.
    """

    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(d, width), nn.Linear(width, d)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x_btd: Tensor) -> Tensor:
        added: Tensor = self.up(nn.functional.gelu(self.down(x_btd)))
        return x_btd + added


def _full(model: nn.Module, base: Base, new: set[str], options: Options) -> nn.Module:
    _no_more(options)
    return model


def _probe(model: nn.Module, base: Base, new: set[str], options: Options) -> nn.Module:
    _no_more(options)
    return model.requires_grad_(False)


def _decoder(model: nn.Module, base: Base, new: set[str], options: Options) -> nn.Module:
    """All but the encoder, and what both share."""
    _no_more(options)
    model.get_encoder().requires_grad_(False)  # type: ignore[operator]
    return model


def _last_layers(model: nn.Module, base: Base, new: set[str], options: Options) -> nn.Module:
    """The top blocks, and what comes after them."""
    layers = options.get("layers", LAYERS)
    _no_more(options, "layers")
    found, top = depths(model)
    for name, weight in model.named_parameters():
        weight.requires_grad_(weight.requires_grad and found[name] > top - 1 - layers)
    return model


def _adapters(model: nn.Module, base: Base, new: set[str], options: Options) -> nn.Module:
    width = options.get("width", WIDTH)
    _no_more(options, "width")
    model.requires_grad_(False)
    for _, part in pretrained_parts(model):
        for stack in stacks(part).values():
            for block in stack:
                block.add_module("bottleneck", Bottleneck(part.config.hidden_size, width))
                block.register_forward_hook(_after_block)
    return model


def _after_block(block: nn.Module, given: object, out: Any) -> Any:
    bottleneck: Any = block.bottleneck
    return (bottleneck(out[0]), *out[1:]) if isinstance(out, tuple) else bottleneck(out)


def _tuned(config_class: str, **defaults: Any) -> Callable[..., nn.Module]:
    """A method of peft that changes layers: by default all linear ones of the trunk (Dettmers et al., arXiv
    2305.14314, section 4: what it takes to match full training)."""

    def apply(model: nn.Module, base: Base, new: set[str], options: Options) -> nn.Module:
        import peft

        given: dict[str, Any] = {**defaults, **options}
        if config_class != "IA3Config":  # its layers are of two kinds, which peft knows by architecture
            given.setdefault("target_modules", linear_layers(model, new))
        made: nn.Module = peft.get_peft_model(model, getattr(peft, config_class)(**given))
        return made

    return apply


def _prompted(config_class: str) -> Callable[..., nn.Module]:
    """A method of peft that puts vectors before the input, or before the keys and values of each layer."""

    def apply(model: nn.Module, base: Base, new: set[str], options: Options) -> nn.Module:
        import peft

        given = {"num_virtual_tokens": VIRTUAL_TOKENS, "task_type": _purpose(model), **options}
        if config_class == "PromptEncoderConfig":
            given.setdefault("encoder_hidden_size", base.config.hidden_size)
        _check_room(base, given["num_virtual_tokens"])
        made: nn.Module = peft.get_peft_model(model, getattr(peft, config_class)(**given))
        return made

    return apply


def _check_room(base: Base, tokens: int) -> None:
    """Raises AdaptError where inputs and vectors together have more positions than the model."""
    most = getattr(base.config, "max_position_embeddings", None)
    if most and base.max_length + tokens > most:
        raise AdaptError(
            f"{tokens} vectors before inputs of {base.max_length} tokens are more than the {most} positions "
            f"of {base.folder}",
            hint=f"give --max-length {most - tokens}",
        )


def _purpose(model: nn.Module) -> str | None:
    return next((kind for end, kind in PROMPTED.items() if type(model).__name__.endswith(end)), None)


def _any(model: nn.Module, base: Base) -> bool:
    return True


def _has_linear(model: nn.Module, base: Base) -> bool:
    return bool(linear_layers(model, new_parameters(model, base.folder)))


def _has_both(model: nn.Module, base: Base) -> bool:
    return base.kind in (BOTH, SPEECH) and hasattr(model, "get_encoder")


def _has_blocks(model: nn.Module, base: Base) -> bool:
    return bool(stacks(model))


def _has_width(model: nn.Module, base: Base) -> bool:
    """Blocks, all of one width."""
    parts = [part for _, part in pretrained_parts(model)]
    widths = [getattr(part.config, "hidden_size", None) for part in parts]
    return bool(stacks(model)) and all(isinstance(width, int) for width in widths)


def _ia3_knows(model: nn.Module, base: Base) -> bool:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

    return model_type(model) in KNOWN


def _takes_prefix(model: nn.Module, base: Base) -> bool:
    """Keys and values given before the input's: of text; not in encoder-decoders under a head of labels."""
    purpose = _purpose(model)
    if base.kind == BOTH:
        return purpose == "SEQ_2_SEQ_LM"
    return purpose is not None and base.kind in (ENCODER, DECODER)


def _takes_prompt(model: nn.Module, base: Base) -> bool:
    """Vectors given for the input's: not where outputs go with tokens, nor where a decoder's head of labels
    has to tell a text's last token."""
    writes = _purpose(model) in ("CAUSAL_LM", "SEQ_2_SEQ_LM")
    return _takes_prefix(model, base) and (writes or (_purpose(model) == "SEQ_CLS" and base.kind == ENCODER))


ASSUMED = "assumption"

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(FULL, 5e-5, "Devlin et al., arXiv 1810.04805, appendix A.3: 2e-5 to 5e-5", True, _full, _any,
               "all weights (Howard and Ruder, arXiv 1801.06146)"),
        Method("lora", 5e-4, "Hu et al., arXiv 2106.09685, table 9: 4e-4 to 5e-4 for most tasks", True,
               _tuned("LoraConfig", r=RANK, lora_alpha=2 * RANK), _has_linear,
               "an added product of two thin matrices (Hu et al., arXiv 2106.09685)"),
        Method("dora", 5e-4, ASSUMED + ": LoRA's", True,
               _tuned("LoraConfig", r=RANK, lora_alpha=2 * RANK, use_dora=True), _has_linear,
               "LoRA of the direction, beside the magnitude (Liu et al., arXiv 2402.09353)"),
        Method("adalora", 1e-3, "Zhang et al., arXiv 2303.10512, appendix: 5e-4 to 2.2e-3 by task", True,
               _tuned("AdaLoraConfig", init_r=12, target_r=RANK, lora_alpha=2 * RANK, total_step=1),
               _has_linear, "LoRA whose rank goes where it counts (Zhang et al., arXiv 2303.10512)"),
        Method("adapters", 3e-4, "Houlsby et al., arXiv 1902.00751, section 3.2: 3e-5 to 3e-3", False,
               _adapters, _has_width, "a bottleneck after each block (Houlsby et al., arXiv 1902.00751)"),
        Method("ia3", 3e-3, "Liu et al., arXiv 2205.05638, with Adafactor", True, _tuned("IA3Config"),
               _ia3_knows, "factors of keys, values and feed-forward units (Liu et al., arXiv 2205.05638)"),
        Method("prefix", 5e-3, ASSUMED, False, _prompted("PrefixTuningConfig"), _takes_prefix,
               "keys and values put before every layer's (Li and Liang, arXiv 2101.00190)"),
        Method("prompt", 3e-2, ASSUMED + ": a tenth of the 0.3 of Lester et al. with Adafactor", False,
               _prompted("PromptTuningConfig"), _takes_prompt,
               "vectors put before the input (Lester et al., arXiv 2104.08691)"),
        Method("p-tuning", 1e-3, ASSUMED, False, _prompted("PromptEncoderConfig"), _takes_prompt,
               "vectors before the input that a small network makes (Liu et al., arXiv 2103.10385)"),
        Method("decoder", 5e-5, ASSUMED + ": that of all weights", True, _decoder, _has_both,
               "all but the encoder"),
        Method("last-layers", 1e-4, ASSUMED, True, _last_layers, _has_blocks,
               "the top blocks, and what comes after them"),
        Method("probe", 1e-3, ASSUMED, True, _probe, _any, "the head alone, on the base's features"),
    )
}  # fmt: skip


AS_IS = Method(
    "as-is", 0.0, "nothing learns", True, _probe, lambda model, base: False,
    "the base as it is, of a model that no training made better",
)  # fmt: skip


def _no_more(options: Options, *known: str) -> None:
    """Raises AdaptError for options that the method has not."""
    if unknown := sorted(set(options) - set(known)):
        raise AdaptError(
            f"{', '.join(unknown)} is no option of this method",
            hint=f"its options: {', '.join(known) or 'none'}",
        )
