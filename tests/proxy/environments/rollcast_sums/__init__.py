"""An environment of verifiers 0.4: four sums. Its own interpreter imports it; see test_verifiers.py."""

import verifiers.v1 as vf


class SumsData(vf.TaskData):
    answer: str = ""


class SumsTask(vf.Task[SumsData]):
    @vf.reward(weight=1.0)
    async def reward(self, trace: vf.Trace) -> float:
        return float(f"It is {self.data.answer}." in str(trace))


class SumsConfig(vf.TasksetConfig):
    num_tasks: int = 4


class SumsTaskset(vf.Taskset[SumsTask, SumsConfig]):
    def load(self) -> list[SumsTask]:
        return [
            SumsTask(SumsData(idx=i, prompt=f"What is {i} + {i}?", answer=str(2 * i)), self.config.task)
            for i in range(self.config.num_tasks)
        ]


__all__ = ["SumsTaskset"]
