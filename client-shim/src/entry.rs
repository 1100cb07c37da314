//! The symbols that stand before libc's.
