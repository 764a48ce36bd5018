"""Pages to look at: a report, and what runs on which hardware. Each is one file, without script or network.

Everything from elsewhere is escaped by the templates; pictures are SVG that takes its colours from the page.
"""

from nimpull.pictures.matrix import Cell, Matrix, Row, matrix_of
from nimpull.pictures.page import matrix_page, report_page

__all__ = ["Cell", "Matrix", "Row", "matrix_of", "matrix_page", "report_page"]
