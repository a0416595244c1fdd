import signal

from merging.cli import main

if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `merging/__init__.py`
    signal.signal(signal.SIGINT, signal.default_int_handler)
main()
