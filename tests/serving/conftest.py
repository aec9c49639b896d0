"""A tiny model whose answers have several segments."""

import pytest
from tiny_run import write_run

from echox.inference.load import load_pipeline
from echox.models.segmenting import SegmentRule, SegmentsConfig


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("served") / "run")
    pipeline = load_pipeline(run / "echo" / "final", device="cpu", max_tokens=12, bf16=False)
    pipeline.segments = SegmentsConfig(rule=SegmentRule(threshold=-1.0, window=1))
    return pipeline
