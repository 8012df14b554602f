"""Engines that caption the items of a job: Triton servers, Ray, or this process."""
