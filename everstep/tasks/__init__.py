"""The jobs, one file each: `my_job.py` defines one `Task`, whose name in recipes is `my-job`."""
