"`charrnn`, which is `python -m charrnn_fa`; Ctrl-C is answered from the first of its imports on"
import sys


def main()->int: # Exit status
    "The command of the line"
    try:
        from .cli import main
        return main()
    except KeyboardInterrupt:
        print('charrnn: stopped.', file=sys.stderr)
        return 130


if __name__ == '__main__': raise SystemExit(main())
