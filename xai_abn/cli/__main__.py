"""``python -m xai_abn.cli``: the command, for launchers such as torchrun that start modules."""

from xai_abn.cli.main import main

main()
