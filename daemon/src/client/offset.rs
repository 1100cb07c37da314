//! From where does a waiting call read, or where to does it write? CUSE does not say: a READ or WRITE of pread(2) looks as
//! one of read(2) does (fs/fuse/cuse.c, `cuse_read_iter`).
//!
//! The offset is one of the call's arguments, which stand in `/proc/TID/syscall`. What comes by another way than one of
//! these system calls (io_uring, aio) is taken for read(2) or write(2).

use super::blocking::blocked_call;

/// Where a system call has its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    number: u64,
    /// Which argument it is, from 0.
    argument: usize,
    /// Its upper half is the next argument.
    halves: bool,
    /// All ones mean: there is none (preadv2).
    may_lack: bool,
}

const fn call(number: u64, argument: usize, halves: bool, may_lack: bool) -> Call {
    Call {
        number,
        argument,
        halves,
        may_lack,
    }
}

/// pread64, pwrite64, preadv, pwritev, preadv2, pwritev2 of 64-bit programs, then those of 32-bit ones. A number of one kind
/// is in the other kind no call that reads or writes a file, so the numbers tell whose they are.
#[cfg(target_arch = "x86_64")]
const CALLS: [Call; 12] = [
    call(17, 3, false, false),
    call(18, 3, false, false),
    call(295, 3, false, false),
    call(296, 3, false, false),
    call(327, 3, false, true),
    call(328, 3, false, true),
    call(180, 3, true, false),
    call(181, 3, true, false),
    call(333, 3, true, false),
    call(334, 3, true, false),
    call(378, 3, true, true),
    call(379, 3, true, true),
];

/// Those of aarch64 and, behind them, of arm32, where a pair of halves begins with an even register.
#[cfg(not(target_arch = "x86_64"))]
const CALLS: [Call; 12] = [
    call(67, 3, false, false),
    call(68, 3, false, false),
    call(69, 3, false, false),
    call(70, 3, false, false),
    call(286, 3, false, true),
    call(287, 3, false, true),
    call(180, 4, true, false),
    call(181, 4, true, false),
    call(361, 3, true, false),
    call(362, 3, true, false),
    call(392, 3, true, true),
    call(393, 3, true, true),
];

/// Each is some 20 ms of looking at a thread that runs.
const PATIENCE: usize = 100;

/// The offset that thread `tid`, blocked in reading or writing, has given; `None`: it reads or writes where the file is, or
/// that cannot be found out.
#[must_use]
pub fn given_offset(tid: u32) -> Option<u64> {
    // A busy machine may leave a thread without a processor before it has gone to sleep in its call, and for long; bytes
    // at another place than it has said would be worse than waiting.
    let call = (0..PATIENCE).find_map(|_| blocked_call(tid))?;
    parse(&call)
}

fn parse(text: &str) -> Option<u64> {
    let mut words = text.split_ascii_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    let found = CALLS.iter().find(|call| call.number == number)?;
    let mut argument = words
        .skip(found.argument)
        .map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    let first = argument.next()??;
    let offset = if found.halves {
        let second = argument.next()??;
        (first & 0xffff_ffff) | (second << 32)
    } else {
        first
    };
    // What is negative the kernel has refused, but for preadv2's.
    let lacks = found.may_lack && offset == u64::MAX;
    if lacks { None } else { Some(offset) }
}

#[cfg(test)]
mod tests {
    use super::{CALLS, given_offset, parse};

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn offsets_are_read_from_the_calls_that_have_one() {
        let rest = "0x3 0x7ffd00001000 0x1000 0x100000010 0x7 0x0 0x7ffd0000 0x7f00";
        for number in [17, 18, 295, 296, 327, 328] {
            assert_eq!(
                parse(&format!("{number} {rest}")),
                Some(0x1_0000_0010),
                "{number}"
            );
        }
        for number in [180, 181, 333, 334, 378, 379] {
            assert_eq!(
                parse(&format!("{number} {rest}")),
                Some(0x7_0000_0010),
                "{number}"
            );
        }
        // read, write, readv, writev of both kinds; not in a call; running.
        for number in ["0", "1", "19", "20", "3", "4", "145", "146", "-1", "running"] {
            assert_eq!(parse(&format!("{number} {rest}")), None, "{number}");
        }
        let none = "0x3 0x7ffd00001000 0x1 0xffffffffffffffff 0xffffffff 0x0 0x7ffd0000 0x7f00";
        assert_eq!(parse(&format!("327 {none}")), None);
        assert_eq!(parse(&format!("379 {none}")), None);
        assert_eq!(parse("17 0x3 0x1"), None);
    }

    #[test]
    fn no_two_calls_have_one_number() {
        for call in CALLS {
            assert_eq!(
                CALLS.iter().filter(|other| other.number == call.number).count(),
                1
            );
        }
    }

    #[test]
    fn a_thread_that_is_not_there_has_given_none() {
        assert_eq!(given_offset(u32::MAX), None);
    }
}
