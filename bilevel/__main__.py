"""`python -m bilevel`: the demo."""

from bilevel.demo import main

if __name__ == "__main__":
    main()
