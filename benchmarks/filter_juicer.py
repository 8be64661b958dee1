"""Data-Juicer's own video filters for `filter.py`, which starts this with the Python that Data-Juicer is installed in.

Reads lines of JSON (paths of clips) and answers each with a line: seconds of processor by filter, each filter in a pass
of its own over all clips, as Data-Juicer runs them. Its text filter
needs EasyOCR's weights, its aesthetics those of a CLIP; neither can be had without network, so they are left out.
"""

from __future__ import annotations

import json
import os
import sys
import time

import cv2  # type: ignore[import-not-found]
from data_juicer.ops.filter.video_aspect_ratio_filter import VideoAspectRatioFilter  # type: ignore[import-not-found]
from data_juicer.ops.filter.video_duration_filter import VideoDurationFilter  # type: ignore[import-not-found]
from data_juicer.ops.filter.video_motion_score_filter import VideoMotionScoreFilter  # type: ignore[import-not-found]
from data_juicer.ops.filter.video_resolution_filter import VideoResolutionFilter  # type: ignore[import-not-found]
from data_juicer.utils.constant import Fields  # type: ignore[import-not-found]

cv2.setNumThreads(1)
FILTERS = {
    "duration": VideoDurationFilter(video_backend="av"),  # its default wants ffprobe
    "resolution": VideoResolutionFilter(),
    "aspect": VideoAspectRatioFilter(),
    "motion": VideoMotionScoreFilter(),
}
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the library prints is no answer
for line in sys.stdin:
    took = {}
    for name, judge in FILTERS.items():
        start = time.process_time()
        for path in json.loads(line):
            sample = judge.compute_stats_single({"videos": [path], Fields.stats: {}, Fields.meta: {}})
            judge.process_single(sample)
        took[name] = time.process_time() - start
    answers.write(json.dumps(took) + "\n")
    answers.flush()
