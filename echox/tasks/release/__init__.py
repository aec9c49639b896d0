"""The stages S2T, T2C and Echo in the released form, on released weights."""

from echox.tasks.release.echo import ReleaseEchoTask, ReleaseEchoTaskConfig
from echox.tasks.release.joint import ReleaseJointTask, ReleaseJointTaskConfig
from echox.tasks.release.s2t import ReleaseTextTask
from echox.tasks.release.spoken import ReleaseTextConfig
from echox.tasks.release.t2c import ReleaseUnitsConfig, ReleaseUnitsTask

__all__ = [
    "ReleaseEchoTask",
    "ReleaseEchoTaskConfig",
    "ReleaseJointTask",
    "ReleaseJointTaskConfig",
    "ReleaseTextConfig",
    "ReleaseTextTask",
    "ReleaseUnitsConfig",
    "ReleaseUnitsTask",
]
