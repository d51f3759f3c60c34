"""One token after another through the compiled step."""

from __future__ import annotations

import torch
from torch import Tensor

from everstep.data import Tokenizer
from everstep.data.text.decoding import as_read
from everstep.decode.decoder import Decoder
from everstep.errors import ConfigError
from everstep.networks.token_model import TokenModel
from everstep.state import State
from everstep.stream import Stream

WARM = 64
"""Steps by PyTorch before a step is compiled, which takes a second where the cache does not hold it."""


class StreamedStep:
    """The `StepFn` of a model in eval mode: on a CPU, from the 64th step on, by the compiled step of `everstep.Stream`.

    The state goes in and out like that of any step function; while each call gets what the last one gave, nothing is
    copied back.
    """

    def __init__(self, model: TokenModel):
        self._model, self._count = model, 0
        self._stream: Stream | None = None
        self._held: State = None

    def __call__(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Tokens (batch,) to log p of the next ones (batch, V) in nats, and the new state."""
        model, stream = self._model, self._stream
        self._count += 1
        if self._count <= WARM or not tokens.is_cpu:
            return model.step(tokens, state)
        if stream is None or stream.batch != len(tokens):
            stream = self._stream = Stream(model.body, len(tokens), state)
        elif state is not self._held:
            stream.state = state
        with torch.inference_mode():
            y = stream(model.embedding(tokens))
            self._held = stream.state
            return model.head.predict(y), self._held


def token_decoder(model: TokenModel, tokenizer: Tokenizer, given: str) -> Decoder:
    """The model ready to go on after a text, from a fresh state.

    Raises:
        DataError: the text has a symbol that the vocabulary lacks.
        ConfigError: there is no text, and no symbol to begin with.
    """
    ids = tokenizer.encode(as_read(given), line_end=False).tolist()
    begin = [] if tokenizer.begin_id is None else [tokenizer.begin_id]
    if not begin + ids:
        raise ConfigError("generate: this vocabulary has neither <eos> nor newline to begin with; give a prompt")
    return Decoder(
        step=StreamedStep(model),
        state=model.initial_state(1),
        prompt=torch.tensor(begin + ids, device=model.embedding.weight.device),
        end=tokenizer.eos_id,
        begins=len(begin),
        unknown=0 if tokenizer.unk_id is None else ids.count(tokenizer.unk_id),
        never=() if tokenizer.unk_id is None else (tokenizer.unk_id,),
    )
