//! The rules of a framebuffer of our own, as fbdev has them (fbmem.c, and what drivers do in its place): which modes there
//! are, what a program's wish becomes, what is shown of the memory. Pure state.
