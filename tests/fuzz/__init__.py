"""What a guest or a frontend may say, made by a fuzzer that sees which calls each input leads to.

`python -m tests.fuzz rings --seconds 600 --found build/fuzz/rings` goes on until an input breaks
something, which it then leaves as a file there; `test_fuzz.py` has each target go on for a while,
beside the fuzzer of the C part. libFuzzer has a brother for Python, atheris: it takes half a minute
to instrument what is imported, before it tries anything.
"""
