//! mmap on a node of ours: the daemon says what to map instead.

use std::ffi::{c_int, c_void};

use rustix::fd::{AsRawFd, OwnedFd};
use vidcompat_proto::Errno;
use vidcompat_proto::shim::{Answer, Ask};

use crate::guard::guard;
use crate::link::Link;
use crate::sys;

/// What the program wants mapped; where to is its own affair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) fd: c_int,
    /// Bytes.
    pub(crate) offset: u64,
    /// Bytes, as asked: not whole pages.
    pub(crate) length: usize,
    /// `PROT_*`
    pub(crate) prot: c_int,
    /// `MAP_*`
    pub(crate) flags: c_int,
}

/// mmap of `wanted`, where `call` is the program's own mmap, of any fd and offset.
///
/// The kernel is asked first. It has its own reasons to refuse (an address, a length, an fd that is not open for it), the
/// same as for the real node, and only then finds that a CUSE node has no mmap: `ENODEV`, before it has unmapped anything
/// (`do_mmap`, mm/mmap.c). So nobody else's mmap costs more than a comparison.
pub(crate) fn map(wanted: Wanted, call: impl Fn(c_int, u64) -> *mut c_void) -> *mut c_void {
    map_or(wanted, call, || Link::of(sys::program_fd(wanted.fd)?))
}

/// What the daemon has for the program, and from where; or the errno.
type Found = Result<(OwnedFd, u64), Errno>;

fn map_or(
    wanted: Wanted,
    call: impl Fn(c_int, u64) -> *mut c_void,
    link: impl Fn() -> Option<Link>,
) -> *mut c_void {
    let before = sys::errno();
    let mapped = call(wanted.fd, wanted.offset);
    if mapped != libc::MAP_FAILED || sys::errno() != libc::ENODEV {
        return mapped;
    }
    match guard(|| ask(&link()?, wanted)) {
        Some(Some(Ok((file, offset)))) => {
            sys::set_errno(before);
            let mapped = call(file.as_raw_fd(), offset);
            guard(|| drop(file));
            mapped
        }
        Some(Some(Err(errno))) => {
            sys::set_errno(errno.raw());
            libc::MAP_FAILED
        }
        // As without us: ENODEV.
        Some(None) | None => mapped,
    }
}

/// `None`: there is no answer, or none that helps.
fn ask(link: &Link, wanted: Wanted) -> Option<Found> {
    let ask = Ask::Map {
        offset: wanted.offset,
        length: wanted.length as u64,
        prot: sys::bits(wanted.prot),
        flags: sys::bits(wanted.flags),
    };
    match link.ask(ask) {
        Ok((Answer::Map { offset }, Some(file))) => Some(Ok((file, offset))),
        Ok((Answer::Errno(errno), _)) => Some(Err(errno)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::ffi::{c_int, c_void};
    use std::fs::File;
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};

    use rustix::pipe::pipe;
    use vidcompat_proto::Errno;
    use vidcompat_proto::shim::{Answer, Ask};

    use super::{Wanted, map, map_or};
    use crate::sys;
    use crate::testing::{Fake, without_allocating};

    const WANTED: Wanted = Wanted {
        fd: 1_000_000,
        offset: 0x1_8000,
        length: 614_400,
        prot: libc::PROT_READ | libc::PROT_WRITE,
        flags: libc::MAP_SHARED,
    };
    const ASK: Ask = Ask::Map {
        offset: 0x1_8000,
        length: 614_400,
        prot: 3,
        flags: 1,
    };
    const BEFORE: i32 = 4711;

    /// What the kernel says of a CUSE node, and of others that it is mapped at 4096 times the offset.
    fn kernel(fd: c_int, offset: u64) -> *mut c_void {
        if fd == WANTED.fd {
            sys::set_errno(libc::ENODEV);
            return libc::MAP_FAILED;
        }
        assert!(
            rustix::io::fcntl_getfd(sys::program_fd(fd).unwrap()).is_ok(),
            "it is open"
        );
        std::ptr::without_provenance_mut(usize::try_from(offset).unwrap() * 4096)
    }

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn the_daemons_file_is_mapped_from_its_offset_and_closed() {
        let (reader, writer) = pipe().unwrap();
        let fake = Fake::answering(ASK, Answer::Map { offset: 5 }, Some(writer));
        let link = fake.link();
        sys::set_errno(BEFORE);
        let mapped = without_allocating(|| map_or(WANTED, kernel, || Some(link)));
        assert_eq!(mapped.addr(), 5 * 4096);
        assert_eq!(sys::errno(), BEFORE);
        drop(fake);
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0));
    }

    #[test]
    fn what_the_kernel_says_of_the_file_is_the_answer() {
        let fake = Fake::answering(ASK, Answer::Map { offset: 0 }, Some(null()));
        let calls = RefCell::new(Vec::new());
        let call = |fd: c_int, offset: u64| {
            calls.borrow_mut().push((fd == WANTED.fd, offset));
            sys::set_errno(if fd == WANTED.fd {
                libc::ENODEV
            } else {
                libc::EAGAIN
            });
            libc::MAP_FAILED
        };
        assert_eq!(map_or(WANTED, call, || Some(fake.link())), libc::MAP_FAILED);
        assert_eq!(sys::errno(), libc::EAGAIN);
        assert_eq!(*calls.borrow(), [(true, WANTED.offset), (false, 0)]);
    }

    #[test]
    fn the_daemons_errno_is_the_programs() {
        let fake = Fake::answering(ASK, Answer::Errno(Errno::EINVAL), None);
        assert_eq!(map_or(WANTED, kernel, || Some(fake.link())), libc::MAP_FAILED);
        assert_eq!(sys::errno(), libc::EINVAL);
    }

    #[test]
    fn without_a_daemon_or_with_nonsense_it_is_as_without_us() {
        for answer in [Answer::Nothing, Answer::Yes] {
            let fake = Fake::answering(ASK, answer, None);
            assert_eq!(map_or(WANTED, kernel, || Some(fake.link())), libc::MAP_FAILED);
            assert_eq!(sys::errno(), libc::ENODEV);
        }
        let fake = Fake::answering(ASK, Answer::File { close_on_exec: true }, Some(null()));
        assert_eq!(map_or(WANTED, kernel, || Some(fake.link())), libc::MAP_FAILED);
        assert_eq!(sys::errno(), libc::ENODEV);
        let nobody = Fake::nobody();
        assert_eq!(map_or(WANTED, kernel, || Some(nobody.link())), libc::MAP_FAILED);
        assert_eq!(sys::errno(), libc::ENODEV);
    }

    #[test]
    fn other_errors_and_other_files_are_none_of_our_affair() {
        let call = |_: c_int, _: u64| {
            sys::set_errno(libc::EACCES);
            libc::MAP_FAILED
        };
        let nobody = || panic!("asked");
        assert_eq!(map_or(WANTED, call, nobody), libc::MAP_FAILED);
        assert_eq!(sys::errno(), libc::EACCES);
        let file = null();
        let wanted = Wanted {
            fd: file.as_fd().as_raw_fd(),
            ..WANTED
        };
        let call = |_: c_int, _: u64| {
            sys::set_errno(libc::ENODEV);
            libc::MAP_FAILED
        };
        assert_eq!(map(wanted, call), libc::MAP_FAILED);
        assert_eq!(sys::errno(), libc::ENODEV);
    }
}
