#!/usr/bin/env python
"""The head pod's preStop hook (`d1ray-drain`): runs driven from this node save a checkpoint before it goes.

Each gets SIGTERM, as from a person, so that it ends with status 143 and its job counts as failed: a RayJob
then tries again, on another cluster. (`ray job stop` would count it as finished.) Waits until they have
ended, at most RAY_JOB_STOP_WAIT_TIME_S. The dashboard to ask is at RAY_API_SERVER_ADDRESS.
"""

import os
import signal
import sys
import time

from ray.job_submission import JobStatus, JobSubmissionClient


def running(client: JobSubmissionClient) -> list[int]:
    """Process ids of the drivers of running jobs. KubeRay's are on the head: they ask for no resources."""
    return [
        int(job.driver_info.pid)
        for job in client.list_jobs()
        if job.status == JobStatus.RUNNING and job.driver_info is not None
    ]


def main() -> None:
    end = time.monotonic() + float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "60"))
    client = JobSubmissionClient(os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"))
    for pid in running(client):
        os.kill(pid, signal.SIGTERM)
    while left := running(client):
        if time.monotonic() > end:
            sys.exit(f"d1ray-drain: {left} did not end in time; the runs go on from their last checkpoint")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
