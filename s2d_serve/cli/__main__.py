"""`python -m s2d_serve.cli`: what `accelerate launch -m` starts."""

from s2d_serve.cli import main

main()
