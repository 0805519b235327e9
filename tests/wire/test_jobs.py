"""Jobs name the results that they may end with, and every result is named."""

from collections import Counter

import pytest

from pegaflow.wire.jobs import Done, Job, PagesDiffer, Result

from .samples import MESSAGES, sample

JOBS = [cls for cls in MESSAGES if issubclass(cls, Job)]
RESULTS = [cls for cls in MESSAGES if issubclass(cls, Result)]
SHARED = (Done, PagesDiffer)
"""Results of several jobs."""


@pytest.mark.parametrize("job", JOBS, ids=lambda cls: cls.__name__)
def test_a_job_names_its_results(job: type[Job[Result]]) -> None:
    assert job.RESULTS and all(result in RESULTS for result in job.RESULTS)
    own = [result for result in job.RESULTS if result not in SHARED]
    assert len(own) <= 1
    assert [result.TAG for result in own] in ([], [job.TAG + 100])


def test_every_result_is_of_one_job() -> None:
    named = Counter(result for job in JOBS for result in job.RESULTS)
    assert named.keys() == set(RESULTS)
    assert [result for result in RESULTS if named[result] > 1] == list(SHARED)


@pytest.mark.parametrize("cls", RESULTS, ids=lambda cls: cls.__name__)
def test_what_failed_is_not_ok(cls: type[Result]) -> None:
    assert sample(cls).ok == (cls not in SHARED), "the sample of a status is NO_SPACE"
