"""Classification of the nodes of parse trees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from everstep.data.tree_batches import NONE, TreeBatch, TreeBatches
from everstep.errors import ConfigError
from everstep.learn.objective import Loss
from everstep.networks.answers import OneOf
from everstep.networks.compositions_by_name import check_trees
from everstep.networks.tree_classifier import TreeClassifier, TreeLossSection, TreeNetworkSection, tree_losses
from everstep.runs.labelled_answers import read_classes, written_classes
from everstep.runs.recipe import Recipe
from everstep.runs.task import NOTHING_ELSE, Asked, Prediction, Progress, Purpose, Say, Task
from everstep.runs.tree_data import Trees, TreeSection, read_words, written_words
from everstep.runs.tree_export import ExportsTrees
from everstep.runs.tree_figures import PARSED, TREE_MEANING, tree_figures
from everstep.runs.tree_predictions import to_score, tree_pictures, tree_predictions, unlabelled
from everstep.runs.tree_rivals import tree_rivals
from everstep.state import State
from everstep.storage.files import replace_file


class TreeRecipe(Recipe):
    """The recipe: labelled trees, a network over trees, −log p of the classes."""

    data: TreeSection = TreeSection()
    model: TreeNetworkSection = TreeNetworkSection()
    objective: TreeLossSection = TreeLossSection()

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Weights selected by a measure of trees that are not built."""
        yield from super().disagreements()
        if (select := (self.train.select or "").removeprefix("valid.")) in PARSED and not self.model.parses:
            yield "train.select", f"expected model.parses=true beside it; got {select}"


class TreeClassification(ExportsTrees, Task[TreeRecipe]):
    """Predicts the class of a sentence and of each of its phrases, such as their sentiment."""

    Recipe = TreeRecipe
    files = ("words.json", "classes.json")
    unit = "node"
    scores = frozenset({"accuracy", "macro_f1", "node_accuracy", *PARSED})
    shown = ("accuracy", "node_accuracy", "parsed_accuracy", "loss")
    meaning = TREE_MEANING
    understands = frozenset({"format"})
    reads = {"predict": "trees.txt"}
    words: dict[str, int]
    classes: tuple[str, ...]

    def problems(self) -> Iterator[str]:
        """A composition or a tracker that cannot be created."""
        try:
            self.recipe.model.network(self.code.find)
        except ConfigError as error:
            yield str(error)

    def prepare(self) -> None:
        """Find the classes and the words of the training trees."""
        self.classes, self.words = self.trees.classes(), self.trees.words()

    def ready(self, say: Say) -> None:
        """Report the trees of every split."""
        for line in [*self.summary(), *self.trees.told(self.ids, self.answers)]:
            say(line)
        cell = self.recipe.model.composition(self.code.find)
        for split in self.splits():
            check_trees(cell, self.trees.trees(split), f"data.{split}", self.recipe.model.parses)

    def save(self, run: Path) -> None:
        """Write `words.json` and `classes.json`."""
        replace_file(run / "words.json", written_words(self.words))
        replace_file(run / "classes.json", written_classes(self.classes))

    def open(self, run: Path) -> None:
        """Read the files of `save`."""
        self.words, self.classes = read_words(run / "words.json"), read_classes(run / "classes.json")

    @cached_property
    def trees(self) -> Trees:
        """The trees of the recipe."""
        return Trees(self.recipe.data, self.recipe.seed)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word."""
        return {word: number for number, word in enumerate(self.words)}

    @cached_property
    def answers(self) -> OneOf:
        """The possible answers for a node."""
        return OneOf(self.classes, self.recipe.data.merge, self.recipe.objective.label_smoothing)

    def splits(self) -> tuple[str, ...]:
        """train, valid and test, as far as the recipe names them."""
        return self.trees.splits()

    def model(self) -> TreeClassifier:
        """A new model: embedding, composition, softmax."""
        return TreeClassifier(list(self.words.values()), self.answers, self.recipe.model, self.code.find)

    def batches(self, split: str, model: Any, purpose: Purpose) -> TreeBatches:
        """Batches of trees; for training, of trees with a class to learn."""
        given = self.trees.trees(split)
        if purpose != "learn":
            return to_score(self.trees.coded(given, self.ids, self.answers))
        roots = self.recipe.objective.nodes == "roots"
        coded = self.trees.coded(given, self.ids, self.answers, learn=True, roots=roots)
        learned = [one for one in coded if (one.targets != NONE).any()]
        return TreeBatches(learned, self.recipe.train.batch_size, seed=self.recipe.seed)

    def objective(self, model: Any, batch: TreeBatch, state: State) -> Iterator[Loss]:
        """−log p(class) of every labelled node."""
        return tree_losses(model, batch)

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Accuracy, macro-F1 and nats of the roots, the measures of each class, and the accuracy of all nodes."""
        return tree_figures(model, self.trees.coded(self.trees.trees(split), self.ids, self.answers), progress)

    def validate(self, model: Any) -> dict[str, float]:
        """The main measures of the split "valid"."""
        found = self.metrics(model, "valid")
        return {name: found[name] for name in ("loss", *sorted(self.scores)) if name in found}

    def digest(self, split: str) -> str:
        """A digest of words, labels and children."""
        return self.trees.digest(split)

    def summary(self) -> list[str]:
        """Lines on trees, classes and vocabulary."""
        return self.trees.summary(self.classes, self.words)

    def asked_lines(self, verb: str) -> str:
        """Trees, or sentences if the model parses."""
        tree = "One tree per line, such as (2 (2 a) (3 (3 good) (2 film)))"
        return f"{tree}, or one sentence per line." if self.recipe.model.parses else f"{tree}."

    def predict(self, model: Any, lines: Iterable[str], asked: Asked = NOTHING_ELSE) -> Iterator[Prediction]:
        """label<TAB>probability of each tree or, if the model parses, sentence; or the tree with predicted labels."""
        return tree_predictions(model, lines, self.trees, self.ids, asked)

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """Baselines without trees, fitted on the phrases of the training trees."""
        phrases = self.recipe.objective.nodes == "all"
        return tree_rivals(self.trees, self.ids, self.answers, split, phrases, quick)

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """The user's trees, or some held-out trees, with the predicted class of every node."""
        given = self.trees.trees(self.splits()[-1]) if text is None else unlabelled(self.trees.of(text))
        return tree_pictures(model, given, self.trees.coded(given, self.ids, self.answers), out)
