"`python -m charrnn_fa` is the command `charrnn`"
from .cli import main

if __name__ == '__main__': raise SystemExit(main())
