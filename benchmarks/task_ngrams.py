"""What n-grams with logistic regression make of a classification task, by the part of a text that is read.

    python benchmarks/task_ngrams.py .demo-tasks/data/spam .demo-tasks/data/reviews-zh

The cheapest peer of a pretrained encoder: scikit-learn on one core, the splits that `isoflop adapt` draws.
Texts are read whole, their first 600 characters, or the first and the last 300.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from isoflop.adapting.inputs import TEST, TRAIN, Sources
from isoflop.progress import Silent
from isoflop.tasks import task_of

MOST = 600  # characters
READ: dict[str, Callable[[str], str]] = {
    "whole": lambda text: text,
    f"first {MOST}": lambda text: text[:MOST],
    f"both ends, {MOST // 2} each": lambda text: (
        text if len(text) <= MOST else f"{text[: MOST // 2]} {text[-(MOST // 2) :]}"
    ),
}
GRAMS = {"word": (1, 2), "char_wb": (2, 5)}
FEATURES = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="+")
    args = parser.parse_args()
    print("| data | grams | read | macro F1 |\n|---|---|---|---|")
    for data in args.data:
        rows, _ = Sources([data]).read(task_of("classification"), {}, 0, [], Silent())
        for grams, sizes in GRAMS.items():
            for name, read in READ.items():
                vectors = TfidfVectorizer(
                    analyzer=grams, ngram_range=sizes, min_df=2, sublinear_tf=True, max_features=FEATURES
                )
                train = vectors.fit_transform([read(text) for text in rows[TRAIN]["text"]])
                test = vectors.transform([read(text) for text in rows[TEST]["text"]])
                model = LogisticRegression(C=100, max_iter=1000).fit(train, rows[TRAIN]["label"])
                found = f1_score(rows[TEST]["label"], model.predict(test), average="macro")
                print(f"| {data.name} | {grams} {sizes} | {name} | {found:.4f} |", flush=True)


if __name__ == "__main__":
    main()
