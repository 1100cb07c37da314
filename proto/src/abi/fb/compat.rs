//! The fbdev structs of 32-bit programs (fb_chrdev.c, `fb_compat_ioctl`), which i386 and ARM have alike.
