"""Tests of PegaFlow; a package so that one test may import another's helpers."""
