"""``python -m xai_abn``: the command line."""

from xai_abn.cli.main import main

main()
