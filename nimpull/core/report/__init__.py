"""What a run did, as one value in three sizes: the report file, the termination message, the closing line.

``contents`` is what a report holds, ``document`` its JSON, ``sentences`` its
words for people, ``termination`` what a pod leaves behind. :mod:`nimpull.wiring.report_writer` writes them
down; the contract is ``nimpull/report.schema.json``.
"""
