"""Search the selective-kernel network that is most accurate within a latency, on your data.

edge-sk search --arch sk_mobilenetv2_1.0 --data digits --budget 1.15 --trials 60 --output runs/search

A trial is a name that train.py, export.py and compare.py take. Its file is measured against the plain network's first;
what is beyond the budget is never trained. The others are trained for a few epochs and ranked on held-out training
images; those whose learning curve falls behind are stopped. The best are then trained in full, over seeds, and tested
beside the default network. The same command goes on after Ctrl-C or a kill. More processes help a search when they
run it with --finalists 0; with --storage and the URL of a database they may be on other machines (docs/search.md).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError, require, script  # isort: skip (before torch: Ctrl-C)
from rich.console import Console
from rich.live import Live
from rich.table import Column, Table

from edge_sk.files import atomic_write, check_output, write_text
from edge_sk.manifest import manifest
from edge_sk.reading import read_json, short
from edge_sk.training.data import count_classes, open_split
from edge_sk.training.loop import Report
from edge_sk.training.recipe import FREE, settings
from edge_sk.training.run import MANIFEST, Row, read_csv, saved_manifest
from recipes.experiments.comparison import points, verdict
from recipes.markdown_tables import markdown_table
from recipes.planning import file_name, load_recipe, recipe_name
from recipes.runs import train
from recipes.searching import Ruler, Space, Tables, default_name, front, plain_name, read_space

RECIPES = Path(__file__).resolve().parent
# Of a process, in seconds: how often it says that it is alive, and after which silence its trial is another's.
HEARTBEAT, GRACE = 15, 60
# How often the trial of a process that was stopped is taken up again: it may be what ends the processes.
RETRIES = 5
# To open the storage: processes that start together may both make its tables, and one of them fails.
ATTEMPTS = 3
# A learning curve is compared with those of so many networks, in its second half but not before this epoch.
PRUNE_FROM_TRIALS, PRUNE_FROM_EPOCH = 5, 2
# Networks proposed in a row that were tried before or are too slow, after which the space counts as searched.
SKIPPED = 100
# Of the budget: added up from single stages, latencies are a few per cent wrong.
MARGIN = 1.05
ROWS = 15  # of the live table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    p = argparse.ArgumentParser(
        prog="edge-sk search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--arch", required=True, help="sk_NAME of the zoo, timm:NAME or torchvision:NAME, without options")
    p.add_argument("--data", default="digits", help="as for train.py (default: digits)")
    p.add_argument("--recipe", help="as for train.py (default: by data and architecture)")
    p.add_argument("--set", metavar="K=V", nargs="+", action="extend", default=[], help="recipe fields")
    p.add_argument("--space", metavar="FILE", help="YAML that narrows what is searched (docs/search.md)")
    p.add_argument("--budget", type=float, help="largest latency, of the plain network's (default: that of --arch)")
    p.add_argument("--costs", nargs="+", metavar="KERNELS=FILE", help="latencies from tables of deploy/unit_costs.py")
    p.add_argument(
        "--trials", type=int, default=60, metavar="N", help="networks to try, by all processes (default: 60)"
    )
    p.add_argument("--finalists", type=int, default=3, metavar="N", help="networks to train in full (default: 3)")
    p.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N", help="of those (default: 0 to 4)"
    )
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="finalists' runs at once (default: 1)")
    p.add_argument(
        "--storage", metavar="URL", help="of the study, postgresql+psycopg://HOST/NAME (default: in --output)"
    )
    p.add_argument("--output", required=True, type=Path, metavar="DIR", help="its last part is the study's name")
    args = p.parse_args(argv)
    if args.budget is not None and not 0 < args.budget < 100:
        raise InputError(f"--budget {args.budget:g} is not a share of the plain network's latency, for instance 1.15")
    for name, value, least in (
        ("--trials", args.trials, 1),
        ("--finalists", args.finalists, 0),
        ("--jobs", args.jobs, 1),
    ):
        if not least <= value <= 100_000:
            raise InputError(f"{name} {value} must be at least {least} and at most 100000")
    return args


def ranking(recipe: str, overrides: Sequence[str], space: Space) -> list[str]:
    """Overrides of a recipe for the trainings that rank: fewer epochs, and the test set is not read."""
    full = load_recipe(recipe, overrides).schedule
    warmup = full.warmup_epochs * min(1.0, space.epochs / full.epochs)
    shorter = [f"schedule.epochs={space.epochs}", f"schedule.warmup_epochs={warmup:g}", "checkpoint.evaluate_every=1"]
    # A cosine ends within any number of epochs; milestones would lie behind them.
    return [*overrides, *shorter, "schedule.name=cosine", "schedule.milestones=[]", f"data.holdout={space.holdout}"]


def open_study(url: str, name: str, described: dict[str, Any]) -> Any:
    """The study of a name, made if there is none.

    Optuna prunes studies of one objective only. So the objective is accuracy, and latency is a constraint: it is known
    before a network is trained, and one beyond the budget needs no training. The front is read off all trials.

    Raises:
        InputError: The storage cannot be opened, or its study is another search.
    """
    import optuna
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    try:
        shown = make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        raise InputError(
            "--storage is not the URL of a database, for instance postgresql+psycopg://HOST/NAME"
        ) from None
    study: Any = None
    for attempt in range(ATTEMPTS):
        try:
            storage = optuna.storages.RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {},
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=_try_again(),
            )
            warmup = max(PRUNE_FROM_EPOCH, described["space"]["epochs"] // 2)
            pruner = optuna.pruners.MedianPruner(n_startup_trials=PRUNE_FROM_TRIALS, n_warmup_steps=warmup)
            study = optuna.create_study(
                storage=storage, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
            )
            break
        except (SQLAlchemyError, ImportError, RuntimeError) as error:
            if attempt + 1 == ATTEMPTS:
                raise InputError(f"--storage {shown} cannot be opened: {short(error)}") from None
            time.sleep(1)
    described = json.loads(json.dumps(described))
    if "search" not in study.user_attrs:
        study.set_user_attr("search", described)
    saved = study.user_attrs["search"]
    if different := [key for key in described if saved.get(key) != described[key]]:
        was, now = (short(one.get(different[0]), 100) for one in (saved, described))
        raise InputError(f"the study {name} in {shown} has {different[0]} {was}, not {now}: give another --output")
    return study


def _try_again() -> Any:
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    return RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)


@dataclasses.dataclass
class Search(Report):
    """One process's part of a search: the objective of its trials, and what it shows of all of them."""

    study: Any  # Optuna's
    space: Space
    ruler: Ruler | Tables
    budget: float
    recipe: str
    overrides: list[str]  # of the trainings that rank
    args: argparse.Namespace
    command: list[str]  # for the record

    def __post_init__(self) -> None:
        self._skipped, self._seen, self._trial = 0, set[int](), None
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def run(self) -> None:
        """Try networks until the study has as many as asked for, or the space no more."""
        with self._live if self._console.is_terminal else contextlib.nullcontext():
            while len(self.tried()) < self.args.trials and self._skipped < SKIPPED:
                self.study.optimize(self, n_trials=1, gc_after_trial=True)
                self._show(ended=True)
                write_text(self.args.output / "search.json", json.dumps(self.record(), indent=1) + "\n")
        if self._skipped == SKIPPED:
            self._console.print(f"the last {SKIPPED} networks proposed were tried before or are too slow: it ends here")

    def tried(self) -> list[Any]:
        """Trials that ended, without repetitions."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if _ended(trial)]

    def __call__(self, trial: Any) -> float:
        """Measure a network, and train it if it keeps the budget: accuracy on held-out training images, in per cent."""
        try:
            return self._try(trial)
        except KeyboardInterrupt:
            _try_again()(self.study, self.study.get_trials(deepcopy=False)[trial.number])
            raise

    def _try(self, trial: Any) -> float:
        from optuna import TrialPruned

        params = {key: trial.suggest_categorical(key, values) for key, values in self.space.choices().items()}
        name = self.space.name(params)
        trial.set_user_attr("name", name)
        estimate = self._estimate(params)
        too_slow = estimate > MARGIN * self.budget and "ratio" not in trial.user_attrs
        if too_slow and "latency" not in trial.constraints:
            trial.set_constraint("latency", estimate - self.budget)
        if too_slow or self._taken(name, trial.number):
            self._skipped += 1
            raise TrialPruned
        self._skipped, self._seen, self._trial = 0, set(), trial
        folder = self.args.output / "trials" / file_name(name)
        try:
            if "ratio" not in trial.user_attrs:
                trial.set_user_attr("ratio", self.ruler.ratios(name)[name])
            if "latency" not in trial.constraints:
                trial.set_constraint("latency", trial.user_attrs["ratio"] - self.budget)
            if trial.user_attrs["ratio"] > self.budget:
                raise TrialPruned
            self._show()
            for row in read_csv(folder):
                self._note(row)
            data = {"recipe": self.recipe, "data": self.args.data}
            return train(name, folder, 0, self.overrides, **data, device=None, report=self)["val_top1"]
        except InputError as error:
            if not (folder / MANIFEST).is_file() or not saved_manifest(folder)["diverged"]:
                raise
            trial.set_user_attr("diverged", str(error))
            raise TrialPruned from None

    def _estimate(self, params: Mapping[str, Any]) -> float:
        """Latency by what single stages were measured to add to the plain network's; the gate's width counts little."""
        measured = {"host": self.args.arch, "sk_units": self.space.sk_units[0], "act": self.space.act[0]}
        if params != {**params, **measured}:
            return 1.0
        known = {trial.user_attrs["name"]: trial.user_attrs["ratio"] for trial in self.tried()}
        singles = self.space.singles()
        added = (known.get(self.space.name(singles[chosen]), 1.0) - 1 for chosen in params.items() if chosen in singles)
        return 1 + sum(added)

    def _taken(self, name: str, number: int) -> bool:
        """Whether another trial has tried the network, or tries it: of two under way, the earlier one does."""
        for _ in range(10 * GRACE):
            others = [one for one in self.study.get_trials(deepcopy=False) if one.number != number]
            earlier = [one for one in others if one.state.name == "RUNNING" and one.number < number]
            if any(one.user_attrs.get("name") == name for one in (*filter(_ended, others), *earlier)):
                return True
            now = datetime.datetime.now()
            unnamed = [one.datetime_start for one in earlier if "name" not in one.user_attrs and one.datetime_start]
            if all((now - began).total_seconds() > GRACE for began in unnamed):  # killed, if there is one
                break
            time.sleep(0.1)  # another process is about to name its network
        return False

    def epoch(self, row: Row) -> None:
        """Judge the learning curve behind an epoch."""
        from optuna import TrialPruned

        self._note(row)
        self._show()
        if self._trial is not None and self._trial.should_prune():
            raise TrialPruned

    def _note(self, row: Row) -> None:
        # A training that goes on from a checkpoint may go through an epoch again.
        if self._trial is not None and row["epoch"] not in self._seen:
            self._seen.add(int(row["epoch"]))
            self._trial.report(row["val_top1"], int(row["epoch"]))

    def _show(self, *, ended: bool = False) -> None:
        """Show the trials under way and the best; where stderr is no terminal, the one that ended."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if "ratio" in trial.user_attrs]
        tried = sorted(filter(_ended, trials), key=lambda trial: -(_top1(trial) or 0))
        if not self._console.is_terminal:
            if ended and self._trial is not None and not self._skipped:
                line = self._cells(trials[[one.number for one in trials].index(self._trial.number)])
                self._console.print(f"{len(tried)}/{self.args.trials}  {'  '.join(line)}", markup=False)
            return
        title = f"{len(tried)} of {self.args.trials} networks, latency at most {self.budget:.3f} of the plain one's"
        # Folded, a long name can still be copied.
        table = Table(Column("network", overflow="fold"), "latency", "top-1 %", "epochs", "", title=title)
        for trial in [*(one for one in trials if one.state.name == "RUNNING"), *tried][:ROWS]:
            table.add_row(*self._cells(trial))
        self._live.update(table, refresh=True)

    def _cells(self, trial: Any) -> list[str]:
        top1 = _top1(trial)
        shown = [trial.user_attrs["name"], f"{trial.user_attrs['ratio']:.3f}", "-" if top1 is None else f"{top1:.2f}"]
        return [*shown, f"{trial.last_step or 0}/{self.space.epochs}", self._outcome(trial)]

    def _outcome(self, trial: Any) -> str:
        if trial.user_attrs["ratio"] > self.budget:
            return "beyond the budget"
        if "diverged" in trial.user_attrs:
            return "diverged"
        return {"COMPLETE": "trained", "PRUNED": "stopped"}.get(trial.state.name, "under way")

    def record(self) -> dict[str, Any]:
        """What is known of the trials, best first, and the front of those that were trained to the end."""
        trials = [
            {
                "name": trial.user_attrs["name"],
                "ratio": trial.user_attrs["ratio"],
                "top1": _top1(trial),
                "outcome": self._outcome(trial),
                "epochs": trial.last_step or 0,
                "number": trial.number,
            }
            for trial in self.tried()
        ]
        trials.sort(key=lambda one: -(one["top1"] or -1))
        trained = [(one["name"], one["ratio"], one["top1"]) for one in trials if one["outcome"] == "trained"]
        found = {"budget": self.budget, "front": front(trained), "trials": trials}
        return self.study.user_attrs["search"] | found | manifest(self.command)


def _ended(trial: Any) -> bool:
    return trial.state.name in ("COMPLETE", "PRUNED") and "ratio" in trial.user_attrs


def _top1(trial: Any) -> float | None:
    """Accuracy after the last epoch that was trained."""
    return None if trial.last_step is None else round(trial.intermediate_values[trial.last_step], 4)


def test_finalists(
    record: dict[str, Any], names: Sequence[str], args: argparse.Namespace, recipe: str, ruler: Ruler
) -> None:
    """Train networks in full, compare them with the first, measure their files together, and add it to the record."""
    folder = args.output / "finalists"
    command = [sys.executable, str(RECIPES / "compare.py"), "--arch", *names, "--seeds", *map(str, args.seeds)]
    command += ["--recipe", recipe, "--data", args.data, "--output", str(folder), "--jobs", str(args.jobs)]
    process = subprocess.Popen([*command, "--set", *args.set] if args.set else command, stdout=subprocess.DEVNULL)
    try:
        if code := process.wait():
            raise InputError(f"not all finalists were trained (exit code {code}); the same command goes on with them")
    finally:
        process.terminate()
        process.wait()
    ratios, judged = ruler.ratios(*names), {one["name"]: one["ratio"] for one in record["trials"]}
    record["finalists"] = read_json(folder / "compare.json")["networks"]
    record["finalists_measured"] = ruler.where
    for entry in record["finalists"]:
        entry |= {"ratio": ratios[entry["arch"]], "ratio_in_the_search": judged.get(entry["arch"])}


def summary(record: dict[str, Any]) -> str:
    """The finalists as a table, with their latencies, and whether one of them beats the default network."""
    entries, rows = record["finalists"], []
    for entry in entries:
        judged = entry["ratio_in_the_search"]
        ratio = f"{entry['ratio']:.3f}" + (f" (search: {judged:.3f})" if judged else "")
        gain = points(entry) if "difference" in entry else "-"
        rows.append([f"`{entry['arch']}`", ratio, f"{entry['top1']:.2f}", gain])
    header = ["network", "latency", "top-1 %, mean", "to the first, points [95 % CI]"]
    better = [entry["arch"] for entry in entries[1:] if verdict(entry) == "better"]
    found = f"better than the default: {', '.join(better)}" if better else "none is shown to be better than the default"
    return (
        f"Latency as a share of {plain_name(record['arch'])}'s; test accuracy. The first network is the default.\n\n"
        f"{markdown_table(header, rows, 'lrrr')}\n\n"
        f"Of the networks within the budget of {record['budget']:.3f}, {found}. "
        "Intervals are over seeds, and not corrected for the number of networks.\n"
    )


def plot(record: dict[str, Any], target: Path) -> None:
    """Draw accuracy on held-out images against latency, with the front and the budget; marks for the untrained."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    by_outcome = {one["outcome"]: [] for one in record["trials"]}
    for one in record["trials"]:
        by_outcome[one["outcome"]].append(one)
    trained = by_outcome.pop("trained", [])
    axes.plot([one["ratio"] for one in trained], [one["top1"] for one in trained], "o", label="trained", alpha=0.7)
    best = [one for name in record["front"] for one in record["trials"] if one["name"] == name]
    axes.step([one["ratio"] for one in best], [one["top1"] for one in best], where="post", label="front")
    axes.axvline(record["budget"], color="grey", linestyle="--", label="budget")
    left, right = min([1.0, *(one["ratio"] for one in trained)]), 1.2 * record["budget"]
    for (outcome, some), marker in zip(sorted(by_outcome.items()), "|x+", strict=False):
        shown = [one["ratio"] for one in some if one["ratio"] <= right]
        far = f", {len(some) - len(shown)} of them out of the picture" if len(shown) < len(some) else ""
        place = {"transform": axes.get_xaxis_transform(), "label": f"{outcome}: {len(some)}{far}"}
        axes.plot(shown, [0.03] * len(shown), marker, color="grey", **place)
    axes.set(xlabel="latency, of the plain network's", ylabel="top-1 on held-out training images (%)")
    axes.set_xlim(left - 0.02, right)
    axes.margins(y=0.15)
    axes.set_title(f"{record['arch']} on {record['data']}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with atomic_write(target) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Search, train the finalists, write the record and the plot."""
    args = parse(argv)
    for module in ("optuna", "matplotlib"):
        require(module, extra="search", needed_for="a search")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both leave the trial to be taken up again
    start, recipe = read_space(args.space, args.arch), args.recipe or recipe_name(args.arch, args.data)
    overrides = ranking(recipe, args.set, start.space)
    ranked = load_recipe(recipe, overrides)
    classes = count_classes(args.data, open_split(args.data, "train", ranked.data).classes, ranked.data)
    check_output(args.output)
    ruler = Ruler(
        plain_name(args.arch), classes=classes, data=ranked.data, space=start.space, folder=args.output / "files"
    )
    judge = Tables(args.costs, start) if args.costs else ruler
    described = {"arch": args.arch, "data": args.data, "space": start.space.model_dump(mode="json")}
    described |= {"recipe": {key: value for key, value in settings(ranked).items() if key not in FREE}}
    described |= {"--budget": args.budget, "latencies": judge.where}
    url = args.storage or f"sqlite:///{(args.output / 'study.db').resolve()}"
    study = open_study(url, args.output.resolve().name, described)
    default = default_name(args.arch)
    if "budget" not in study.user_attrs:
        budget = args.budget or judge.ratios(default)[default]
        if "budget" not in study.user_attrs:  # another process may have measured it in this minute
            if start.default:
                # Measured again, noise might put it beyond a budget that is its own latency.
                attributes = {} if args.budget else {"ratio": budget}
                study.enqueue_trial(start.default, user_attrs=attributes, skip_if_exists=True)
            singles = [*start.space.singles().values()] if start.space.hosts == [args.arch] else []
            for params in singles if len(singles) <= args.trials / 2 else []:
                study.enqueue_trial(params, skip_if_exists=True)
            # Last, so that a process that was killed before it begins anew; another may have settled it meanwhile.
            if "budget" not in study.user_attrs:
                study.set_user_attr("budget", budget)
    command = ["recipes/search.py", *(sys.argv[1:] if argv is None else argv)]
    if args.storage:  # it may hold a password
        command = [part.replace(args.storage, "URL") for part in command]
    search = Search(study, start.space, judge, study.user_attrs["budget"], recipe, overrides, args, command)
    search.run()
    record = search.record()
    plot(record, args.output / "search.png")
    if args.finalists:
        known = {default, ruler.plain, start.space.name(start.default) if start.default else default}
        best = [one["name"] for one in record["trials"] if one["outcome"] == "trained" and one["name"] not in known]
        test_finalists(record, [default, ruler.plain, *best[: args.finalists]], args, recipe, ruler)
        write_text(args.output / "search.md", summary(record))
        print(summary(record))
    write_text(args.output / "search.json", json.dumps(record, indent=1) + "\n")
    print(f"{args.output}: search.json, search.png{', search.md' if args.finalists else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
