//! The functions that the program would have reached without us: libc's, or those of another preloaded library.
