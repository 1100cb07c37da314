//! `libvidcompat.so`, for LD_PRELOAD: what a CUSE node cannot do for a program.
//!
//! The program opens our node itself and keeps the kernel's fd: permission, poll, dup, fork, passing on and close stay
//! the kernel's. Nothing here remembers a file. A call that may concern a node of ours is recognised by its device number
//! at that moment ([`node`]), does its work by asking the daemon ([`link`]), and everything else is the next library's
//! ([`next`]), untouched.
//!
//! Rules for every function that a program can reach: nothing runs before the first call (no constructor); nothing
//! allocates, and nothing locks but the table of adoptions; errno is the call's own or left alone; a panic ends in the
//! plain call; a daemon that is missing, old or dead means the plain call.
#![deny(unsafe_code)]

mod adopt;
#[allow(unsafe_code)]
mod entry;
mod link;
#[allow(unsafe_code)]
mod next;
mod node;
