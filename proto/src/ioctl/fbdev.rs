//! The ioctls of a framebuffer (`linux/fb.h`, fb_chrdev.c), whose numbers say neither size nor direction.
