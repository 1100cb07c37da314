//! `libvidcompat.so`, for LD_PRELOAD: what a CUSE node cannot do for a program.
//!
//! The program opens our node itself and keeps the kernel's fd: permission, poll, dup, fork, passing on and close stay
//! the kernel's. Nothing here remembers a file. A call that may concern a node of ours is recognised by its device number
//! at that moment ([`node`]), does its work by asking the daemon ([`link`]), and everything else is the next library's
//! ([`next`]), untouched.
//!
//! [`entry`] has the symbols and no decisions; [`video`] has the ioctls, [`map`] mmap and [`seek`] lseek; [`adopt`] makes the program's
//! memory the device's. What they do runs under [`guard::guard`]; the program's own call of the next library never does.
//!
//! Rules for every function that a program can reach: nothing runs before the first call (no constructor: what
//! `.init_array` has is std's, which keeps argc and argv); nothing allocates, and nothing locks but the table of
//! adoptions; errno is the call's own or left alone; a panic ends in the plain call; a daemon that is missing, old or dead
//! means the plain call. Our own system calls are rustix's, which are no calls of libc: nobody else's preload sees them,
//! they are no cancellation points, and they leave errno alone.
#![deny(unsafe_code)]
// Tests have no symbols of ours: they would stand before libc's in the test itself.
#![cfg_attr(test, allow(dead_code, clippy::unwrap_used))]

mod adopt;
#[allow(unsafe_code)]
mod entry;
mod guard;
mod link;
mod map;
#[allow(unsafe_code)]
mod next;
mod node;
mod redirect;
mod seek;
#[allow(unsafe_code)]
mod sys;
#[cfg(test)]
mod testing;
mod video;
