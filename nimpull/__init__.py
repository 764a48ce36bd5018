"""nimpull puts the right NIM model profile onto a volume: whole, verified, and says what it did.

A pure core decides, thin edges act, and :mod:`nimpull.job` tells the story.

===========  ==============================================  =========================================
layer        modules                                         may import
===========  ==============================================  =========================================
cli          ``nimpull.cli``                                 job and everything below; the only printer
job          ``nimpull.job`` (the story), ``nimpull.wiring`` edges, core; the only builder of edges
             (builds and wires the edges)
edges        ``settings`` (reads the environment),           core only, never each other
             ``detect`` (NVML, PCI), ``sources`` (URI ->
             listing -> location), ``transport`` (opens
             sockets), ``fetch`` (plan -> bytes),
             ``store`` (renames and fsyncs),
             ``progress``, ``pictures`` (pages to look
             at), ``clock``
core         ``nimpull.core``                                errors; values in, values out: no os,
                                                             socket, time, logging, open()
errors       ``nimpull.errors``                              nothing
===========  ==============================================  =========================================

The table is enforced by the import contracts in ``pyproject.toml``.
"""

__version__ = "0.1.0"
