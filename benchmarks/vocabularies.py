"""Output layers over large vocabularies: words per second, and perplexity, on text whose words follow Zipf's law.

Speed: forward and backward of a head alone, of 640 targets and 512 features, in turns in one process by the process's
own time, beside `torch.nn.AdaptiveLogSoftmaxWithLoss` and `F.linear` with `F.cross_entropy`; then with the optimizer's
step. Where a full softmax would need gigabytes it gets fewer targets, and the table says how many.

Perplexity: a source whose words depend on the group of the word before. A word has weight 1 / rank; with probability
one half it is any word, else one of the words of a group (rank mod 64), which the group before decides. A network that
is told the group before (an embedding, a tanh layer of 512) learns it with each head from the same words. The entropy
of the source is known, and is the last row. `nats_by_rank` are the mean nats of words of ranks 1 to 9, 10 to 99, and so
on, which say where a head loses. `--bfloat16` trains as `train.precision: auto` does where bfloat16 is
native; steps whose logits would need gigabytes add up gradients of parts.

    python benchmarks/vocabularies.py speed [--words 10000 100000 800000] [--rounds 7] [--json FILE]
    python benchmarks/vocabularies.py perplexity [--words 10000] [--steps 400] [--heads full adaptive …] [--json FILE]
        [--features 512] [--bfloat16]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timing import alternately
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cli.common import prepare as tune_malloc
from everstep.heads import NCE, AdaptiveSoftmax, BlackOut, Categorical, ClassSoftmax, MixtureOfSoftmaxes, SampledSoftmax
from everstep.learn import FitSettings
from everstep.learn.optim import make_optimizer
from everstep.native.processor import name as cpu_name

FEATURES, TARGETS, GROUPS = 512, 640, 64
MOST_LOGITS = 1 << 27
MOST_TOGETHER = 200_000
MAKE: dict[str, Any] = {
    "full": lambda words, features=FEATURES: Categorical(features, words),
    "adaptive": lambda words, features=FEATURES: AdaptiveSoftmax(features, words),
    "sampled": lambda words, features=FEATURES: SampledSoftmax(features, words, sparse=True),
    "nce": lambda words, features=FEATURES: NCE(features, words, sparse=True),
    "blackout": lambda words, features=FEATURES: BlackOut(features, words, sparse=True),
    "classes": lambda words, features=FEATURES: ClassSoftmax(features, words, sparse=True),
    "mixture of 3": lambda words, features=FEATURES: MixtureOfSoftmaxes(features, words, mixtures=3),
}


def zipf(words: int) -> Tensor:
    """p of each word, (words,), float64."""
    p = 1 / torch.arange(1, words + 1, dtype=torch.float64)
    return p / p.sum()


# ------------------------------------------------------------------------------------------------ speed


class TorchFull(nn.Module):
    """What most training loops do."""

    def __init__(self, words: int):
        super().__init__()
        self.linear = nn.Linear(FEATURES, words)

    def objective(self, ys: Tensor, target: Tensor) -> tuple[Tensor, None]:
        return F.cross_entropy(self.linear(ys[0]), target[0], reduction="none"), None


class TorchAdaptive(nn.Module):
    """PyTorch's adaptive softmax."""

    def __init__(self, words: int, cutoffs: list[int]):
        super().__init__()
        self.inside = nn.AdaptiveLogSoftmaxWithLoss(FEATURES, words, cutoffs, div_value=4.0)

    def objective(self, ys: Tensor, target: Tensor) -> tuple[Tensor, None]:
        return -self.inside(ys[0], target[0]).output, None


def step(module: nn.Module, ys: Tensor, target: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    """Forward, backward, and the update."""
    module.zero_grad(set_to_none=True)
    module.objective(ys, target)[0].sum().backward()  # type: ignore[operator]
    if optimizer is not None:
        optimizer.step()


class Trial:
    """A head with its outputs and targets."""

    def __init__(self, name: str, make: Any, p: Tensor):
        words = len(p)
        module = make(words)
        if hasattr(module, "counted"):
            module.counted((p * 10**9).long())
        self.slow = name in ("full", "torch full", "mixture of 3")
        logits = words * (3 if name.startswith("mixture") else 1)
        self.rows = min(TARGETS, max(1, MOST_LOGITS // logits)) if self.slow else TARGETS
        ys = torch.randn(1, self.rows, FEATURES, requires_grad=True)
        target = torch.multinomial(p, self.rows, replacement=True)[None]
        optimizer = make_optimizer(module, FitSettings(max_steps=1))
        self.plain = lambda: step(module, ys, target, None)
        self.updated = lambda: step(module, ys, target, optimizer)

    def report(self, plain: list[float], updated: list[float]) -> dict[str, Any]:
        """Words per second."""
        found: dict[str, Any] = {"targets": self.rows, "words_per_second": self.rows / median(plain)}
        return found | ({"with_update": self.rows / median(updated)} if updated else {})


def speed(words: int, rounds: int, names: list[str]) -> dict[str, Any]:
    """Words per second of every head: in turns, or one after the other where they do not fit into memory together."""
    p = zipf(words)
    makers: dict[str, Any] = {name: MAKE[name] for name in names}
    for parts in ((50, 10, 2.5), (25, 5), (100, 20, 4)):
        cuts = [int(words // part) for part in parts]
        makers[f"torch adaptive {cuts}"] = lambda words, cuts=cuts: TorchAdaptive(words, cuts)
    if words <= MOST_TOGETHER:
        makers["torch full"] = TorchFull
        trials = {name: Trial(name, make, p) for name, make in makers.items()}
        groups = [{n: t for n, t in trials.items() if t.slow == slow} for slow in (True, False)]
    report: dict[str, Any] = {}
    for group in groups if words <= MOST_TOGETHER else ({name: make} for name, make in makers.items()):
        if words > MOST_TOGETHER:  # without updates, whose state is twice the weights
            group = {name: Trial(name, make, p) for name, make in group.items()}
        count = max(2, rounds // 3) if any(trial.slow for trial in group.values()) else rounds
        plain = alternately({n: t.plain for n, t in group.items()}, count, warmup=1, clock=time.process_time)
        updated: dict[str, list[float]] = {}
        if words <= MOST_TOGETHER:
            updated = alternately({n: t.updated for n, t in group.items()}, count, warmup=1, clock=time.process_time)
        report |= {n: trial.report(plain[n], updated.get(n, [])) for n, trial in group.items()}
    return report


# ------------------------------------------------------------------------------------------------ perplexity


class Source:
    """The text: `draw` gives groups before, and words; `nats` is its entropy per word."""

    def __init__(self, words: int):
        self.p, group = zipf(words), torch.arange(words) % GROUPS
        self.mass = torch.zeros(GROUPS, dtype=torch.float64).index_add(0, group, self.p)
        self.then = torch.randperm(GROUPS)
        # of each group before: half of the words are any, half are of the group that follows
        p_any = self.p / 2
        nats = torch.zeros(GROUPS, dtype=torch.float64)
        for before in range(GROUPS):
            g = self.then[before]
            p = torch.where(group == g, p_any + self.p / (2 * self.mass[g]), p_any)
            nats[before] = -(p * p.log()).sum()
        arrivals = torch.zeros(GROUPS, GROUPS, dtype=torch.float64)
        for before in range(GROUPS):
            arrivals[before] = self.mass / 2
            arrivals[before, self.then[before]] += 0.5
        often = torch.full((GROUPS,), 1 / GROUPS, dtype=torch.float64)
        for _ in range(200):
            often = often @ arrivals
        self.nats = float((often * nats).sum())
        self.members = [(group == g).nonzero()[:, 0] for g in range(GROUPS)]
        self.often = often

    def log_p(self, before: Tensor, word: Tensor) -> Tensor:
        """log p of each word after its group before, (number,)."""
        group = word % GROUPS
        again = torch.where(group == self.then[before], 1 / self.mass[group], 0)
        return (self.p[word] * (1 + again) / 2).log()

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Groups before, and words, (number,) each; independent of one another."""
        before = torch.multinomial(self.often, number, replacement=True)
        word = torch.multinomial(self.p, number, replacement=True)
        follows = torch.rand(number) < 0.5
        for g in range(GROUPS):
            rows = (follows & (self.then[before] == g)).nonzero()[:, 0]
            if len(rows):
                members = self.members[g]
                word[rows] = members[torch.multinomial(self.p[members], len(rows), replacement=True)]
        return before, word


class Net(nn.Module):
    """Group → tanh layer → head."""

    def __init__(self, head: nn.Module, features: int):
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(GROUPS, 64), nn.Linear(64, features), head

    def forward(self, before: Tensor) -> Tensor:
        return torch.tanh(self.layer(self.embedding(before)))[None]


def trained(net: Net, texts: list[tuple[Tensor, Tensor]], rows: int, bfloat16: bool) -> float:
    """Train on each text in turn, `rows` words at a time; the CPU seconds."""
    optimizer = make_optimizer(net, FitSettings(max_steps=1))
    began = time.process_time()
    for number, (before, word) in enumerate(texts):
        for group in optimizer.param_groups:
            group["lr"] = 0.004 * (1 - number / len(texts))
        optimizer.zero_grad(set_to_none=True)
        for b, w in zip(before.split(rows), word.split(rows), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = net.head.objective(net(b), w[None])[0].sum() / TARGETS  # type: ignore[operator]
            loss.backward()
        nn.utils.clip_grad_norm_([p for p in net.parameters() if p.grad is not None and not p.grad.is_sparse], 1.0)
        optimizer.step()
    return time.process_time() - began


def by_rank(nats: Tensor, word: Tensor) -> dict[str, float]:
    """The mean of each power of ten of ranks."""
    decade = ((word + 1).double().log10() + 1e-9).floor().long()
    return {str(10 ** int(one)): float(nats[decade == one].mean()) for one in decade.unique()}


def measured(net: Net, before: Tensor, word: Tensor) -> dict[str, Any]:
    """The exact perplexity of words after their groups before."""
    chunk = max(1, min(GROUPS, MOST_LOGITS // net.head.classes // 4))  # type: ignore[operator]
    nats = torch.empty(len(word))
    log_z = torch.zeros(GROUPS)
    with torch.no_grad():
        for groups in torch.arange(GROUPS).split(chunk):  # all that the network is told
            log_p = net.head.predict(net(groups)[0])  # type: ignore[operator]
            rows = ((before >= groups[0]) & (before <= groups[-1])).nonzero()[:, 0]
            nats[rows] = -log_p[before[rows] - groups[0], word[rows]]
            if isinstance(net.head, NCE):
                log_z[groups] = net.head.log_z(net(groups)[0])
    found = {"perplexity": float(nats.mean().exp()), "nats_by_rank": by_rank(nats, word)}
    if isinstance(net.head, NCE):
        found |= {"log_z_mean": float(log_z.mean()), "log_z_rms": float(log_z.square().mean().sqrt())}
    return found


def perplexity(words: int, steps: int, names: list[str], features: int, bfloat16: bool) -> dict[str, Any]:
    """The perplexity on new words after training with each head, and the seconds of training."""
    torch.manual_seed(1)
    source = Source(words)
    texts = [source.draw(TARGETS) for _ in range(steps)]
    held_before, held = source.draw(4096)
    counts = torch.zeros(words, dtype=torch.int64)
    for _, word in texts:
        counts += torch.bincount(word, minlength=words)
    found: dict[str, Any] = {}
    for name in names:
        torch.manual_seed(2)
        net = Net(MAKE[name](words, features), features)
        net.head.counted(counts)  # type: ignore[operator]
        slow = name in ("full", "mixture of 3")
        rows = max(1, MOST_LOGITS // words // (3 if name.startswith("mixture") else 1)) if slow else TARGETS
        seconds = trained(net, texts, min(TARGETS, rows), bfloat16)
        found[name] = {"seconds": seconds, **measured(net.eval(), held_before, held)}
        del net  # before the next one
        print(words, name, found[name], flush=True)
    found["the source"] = {
        "perplexity": float(torch.tensor(source.nats).exp()),
        "nats_by_rank": by_rank(-source.log_p(held_before, held), held),
    }
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "perplexity"])
    parser.add_argument("--words", type=int, nargs="*", default=[10_000, 100_000, 800_000])
    parser.add_argument("--heads", nargs="*", default=list(MAKE))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--features", type=int, default=FEATURES, help="of the tanh layer, for perplexities")
    parser.add_argument("--bfloat16", action="store_true", help="products in bfloat16, for perplexities")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    tune_malloc()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"cpu": cpu_name(), "threads": 1, "torch": torch.__version__}
    for words in given.words:
        if given.what == "speed":
            found = speed(words, given.rounds, given.heads)
        else:
            found = perplexity(words, given.steps, given.heads, given.features, given.bfloat16)
        report[str(words)] = found
        print(words, json.dumps(found, indent=1), flush=True)
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
