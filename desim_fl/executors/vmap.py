"""Waiting jobs trained together: when one is needed, those that wait are batched with it by ``torch.func.vmap``.

Results agree with the inline executor's within a tolerance, not bit for bit, and so depend on which jobs shared a
group. That follows from the timeline alone: a group is the job that is needed and the ``width - 1`` others, in order of
(due, id), that were submitted, not released and not trained at that instant of virtual time. A second run gives the
same bits, whatever the machine does meanwhile, and in any number of processes.
"""

from __future__ import annotations

import heapq
import multiprocessing
from time import perf_counter  # provenance only: real seconds never enter virtual time
from typing import TYPE_CHECKING, Any

from desim_fl.errors import JobError, LawError
from desim_fl.executors.inline import InlineExecutor, Wall, checked

if TYPE_CHECKING:
    from desim_fl.core import Job, Model, Outcome, Promise
    from desim_fl.executors.lanes import Lanes
    from desim_fl.learning.batched import Batched
    from desim_fl.learning.task import Task


class VmapExecutor:
    """Trains groups of at most ``width`` jobs, in this process or in up to ``lanes`` others.

    ``batched`` is ``None`` where the model or the task cannot be batched; then, as for single jobs, everything is
    trained one by one, exactly as inline, and ``reason`` says why. ``groups`` are the sizes of the groups so far.
    ``wall`` holds a job's share of its group's real seconds.
    """

    exact = False
    name = "vmap"

    def __init__(self, task: Task, width: int, lanes: int = 1) -> None:
        self.task, self.width = task, width
        self.batched, self.reason = _batched(task, width, lanes)
        self.groups: list[int] = []
        self._single = InlineExecutor(task, self.name)
        self._waiting: dict[int, tuple[int, int, Job]] = {}  # by job: due, id, job
        self._alone: dict[int, Job] = {}  # to be trained by themselves
        self._trained: dict[int, Outcome] = {}

    @property
    def wall(self) -> list[Wall]:
        """Real seconds of each job."""
        return self._single.wall

    def submit(self, job: Job, due: int) -> None:
        """Let the job wait."""
        if job.id in self._waiting or job.id in self._alone or job.id in self._trained:
            raise LawError(f"job {job.id} was submitted twice")
        if self.batched is None or not job.work.steps:
            self._alone[job.id] = job
        else:
            self._waiting[job.id] = (due, job.id, job)

    def collect(self, job: Job, steps: int) -> Outcome:
        """Return a job's outcome, training its group if it was not trained yet; an early report is a group of its own."""
        if job.id in self._waiting and steps == job.work.steps:
            self._train(job)
        outcome = self._trained.pop(job.id, None)
        if outcome is not None and steps == job.work.steps:
            return outcome
        known = self._waiting.pop(job.id, None) or self._alone.pop(job.id, None) or outcome
        if known is None:
            raise LawError(f"job {job.id} is not waiting here: never submitted, released, or collected before")
        return self._by_itself(job, steps)

    def _by_itself(self, job: Job, steps: int) -> Outcome:
        self._single.submit(job, 0)
        return self._single.collect(job, steps)

    def _group(self, job: Job) -> list[Job]:
        """Take the job and those that share its group out of what waits."""
        del self._waiting[job.id]
        others = heapq.nsmallest(self.width - 1, self._waiting.values(), key=lambda entry: entry[:2])
        for _, number, _ in others:
            del self._waiting[number]
        return [job, *(other for _, _, other in others)]

    def _train(self, job: Job) -> None:
        """Train the group of a job; members that cannot be trained together are left for themselves."""
        group = self._group(job)
        self.groups.append(len(group))
        if len(group) > 1 and self._tried(job, group):
            return
        self._alone.update((member.id, member) for member in group)

    def _tried(self, job: Job, group: list[Job]) -> bool:
        """Train a group at once; ``False`` where that fails, and then nothing has changed."""
        from desim_fl.learning.batched import out_of_memory  # noqa: PLC0415  (a task without torch needs none)

        assert self.batched is not None
        begin = perf_counter()
        try:
            outcomes = self.batched.train([(member, member.work.steps or 0) for member in group])
        except JobError as error:  # a lane died, which must not happen to this process too
            why = f"training {len(group)} jobs at once: {str(error.__cause__).splitlines()[0]}"
            raise JobError(job.id, job.client, job.version, self.name, why) from error
        except Exception as error:
            if getattr(error, "memory", False) or out_of_memory(error):
                why = f"no memory to train {len(group)} jobs at once; executor.width = {max(1, len(group) // 2)} needs less"
                raise JobError(job.id, job.client, job.version, self.name, why) from error
            return False  # one of them is at fault, and is named when it is needed
        share = (perf_counter() - begin) / len(group)
        for member, outcome in zip(group, outcomes, strict=True):
            self._trained[member.id] = checked(member, outcome, member.work.steps or 0, self.name)
            self.wall.append(Wall(member.id, member.client, share))
        return True

    def release(self, job: Job) -> None:
        """Forget a job; an outcome that nobody collected is thrown away."""
        self._waiting.pop(job.id, None)
        self._alone.pop(job.id, None)
        self._trained.pop(job.id, None)

    def ahead(self) -> Any:
        """Return what a resumed run needs besides the jobs in flight: who was trained already, and who goes alone."""
        return dict(self._trained), tuple(self._alone)

    def take_up(self, ahead: Any) -> None:
        """Go on from there, with the jobs in flight submitted."""
        trained, alone = ahead
        for number in (*trained, *alone):
            entry = self._waiting.pop(number, None)
            if number not in trained and entry is not None:
                self._alone[number] = entry[2]
            elif number in trained:
                self._alone.pop(number, None)
        self._trained.update(trained)

    def evaluate(self, model: Model) -> Promise:
        """Score a version beside training where there are lanes, else now."""
        beside = getattr(self.batched, "evaluate", self._single.evaluate)
        return beside(model)

    def close(self) -> None:
        """Forget everything, and end the lanes."""
        for known in (self._waiting, self._alone, self._trained):
            known.clear()
        self._single.close()
        if self.batched is not None:
            self.batched.close()


def _batched(task: Any, width: int, lanes: int) -> tuple[Batched | Lanes | None, str]:
    """Find out how to batch the task's jobs; says what came of it."""
    if width == 1:
        return None, "trained one by one: width = 1"
    if not hasattr(task, "module"):
        return None, "trained one by one: the task has no network"
    from desim_fl.executors.lanes import Lanes  # noqa: PLC0415  (a task without torch needs none)
    from desim_fl.learning.batched import HAND, Batched  # noqa: PLC0415
    from desim_fl.learning.trial import examine  # noqa: PLC0415

    verdict = examine(task)
    if verdict.traits is None:
        return None, f"trained one by one: {verdict.why}"
    told = f"up to {width} jobs at once" + (f", {verdict.why}" if verdict.why else "")
    useful = min(lanes, -(-width // HAND)) if task.device.type == "cpu" else 1
    if useful > 1 and not multiprocessing.current_process().daemon:  # a worker itself may not start others
        return Lanes(task, verdict.traits, useful), f"{told}, in {useful} processes"
    return Batched(task, verdict.traits), told
