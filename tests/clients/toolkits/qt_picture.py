#!/usr/bin/python3
"""Shows a picture with Qt in the whole screen, until its standard input ends:
qt_picture.py FILE.png -platform linuxfb:fb=/dev/fbN
"""
import os
import sys

from PyQt5.QtCore import QSocketNotifier
from PyQt5.QtGui import QPainter, QPixmap
from PyQt5.QtWidgets import QApplication, QWidget


class Window(QWidget):
    def __init__(self, picture):
        super().__init__()
        self.picture = QPixmap(picture)

    def paintEvent(self, event):
        QPainter(self).drawPixmap(0, 0, self.picture)


application = QApplication(sys.argv)
window = Window(sys.argv[1])
window.showFullScreen()
notifier = QSocketNotifier(0, QSocketNotifier.Read)
notifier.activated.connect(lambda: os.read(0, 4096) or application.quit())
sys.exit(application.exec_())
