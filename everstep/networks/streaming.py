"""Token-by-token generation with the compiled step."""

from __future__ import annotations

import torch
from torch import Tensor

from everstep.data import Tokenizer
from everstep.data.text.decoding import as_read
from everstep.decode.decoder import Decoder
from everstep.decode.sampling import StepFn
from everstep.errors import ConfigError
from everstep.networks.token_model import TokenModel
from everstep.state import State
from everstep.stream import Stream

WARM = 64
"""Steps in PyTorch before the step is compiled, which takes a second if it is not cached."""


class StreamedStep:
    """The `StepFn` of a model in eval mode; on a CPU, from the 64th step on, by the compiled step of `everstep.Stream`.

    The state is passed like that of any step function. As long as each call receives the state that the last one
    returned, nothing is copied.
    """

    def __init__(self, model: TokenModel):
        self._model, self._count = model, 0
        self._stream: Stream | None = None
        self._held: State = None

    def __call__(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """log p of the next tokens (batch, V) in nats after tokens (batch,), and the new state."""
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
    """A decoder that continues the text `given` from the initial state.

    Raises:
        DataError: the text has a symbol that the vocabulary lacks.
        ConfigError: the text is empty, and the vocabulary has no begin symbol.
    """
    step = StreamedStep(model) if model.streams else model.step
    return stepped_decoder(step, model.initial_state(1), tokenizer, given, model.embedding.weight.device)


def stepped_decoder(
    step: StepFn, state: State, tokenizer: Tokenizer, given: str, device: torch.device | str = "cpu"
) -> Decoder:
    """A decoder of a step function and its initial state; see `token_decoder`."""
    ids = tokenizer.encode(as_read(given), line_end=False).tolist()
    begin = [] if tokenizer.begin_id is None else [tokenizer.begin_id]
    if not begin + ids:
        raise ConfigError("generate: this vocabulary has neither <eos> nor newline to begin with; give a prompt")
    return Decoder(
        step=step,
        state=state,
        prompt=torch.tensor(begin + ids, device=device),
        end=tokenizer.eos_id,
        begins=len(begin),
        unknown=0 if tokenizer.unk_id is None else ids.count(tokenizer.unk_id),
        never=() if tokenizer.unk_id is None else (tokenizer.unk_id,),
    )
