"""A pretrained classifier becomes an Attention Branch Network on unlabelled photos.

``loop`` takes the steps, with ``losses`` and ``draws``; ``map_check`` tells on photos held out whether the map is the
right way up; ``run`` is the whole, with its ``settings``, ``student`` and ``folder``.
"""
