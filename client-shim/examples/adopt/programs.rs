//! One thread: what programs and malloc do with their memory.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use vidcompat_proto::shim::Outcome;

use crate::link::{self, DAEMON_IS_DEAD};
use crate::memory::{Lender, Memory, PAGE, in_child};
use std::sync::atomic::Ordering;

const LEN: usize = 150 * PAGE;

pub(crate) fn contents_are_kept_both_ways(lender: &Lender) {
    // In the midst of a larger mapping, which is one mapping again in the end.
    let whole = Memory::anonymous(3 * LEN);
    whole.fill(1);
    let memory = whole.part(LEN, LEN);
    let lines = whole.lines();
    for round in 0..3 {
        assert_eq!(memory.adopt(&lender.buffer(LEN)), Outcome::Done);
        assert!(memory.is_adopted() && crate::adopt::any());
        assert_eq!(
            memory.adopt(&lender.buffer(LEN)),
            Outcome::NotOrdinary,
            "it is one already"
        );
        assert!(whole.part(0, LEN).is_ordinary() && whole.part(2 * LEN, LEN).is_ordinary());
        if round == 0 {
            assert!(whole.holds(1));
        }
        whole.fill(round + 2);
        link::lend(memory.addr(), true);
        crate::adopt::reconcile();
        assert!(memory.is_adopted(), "it is lent still");
        if round == 1 {
            assert_eq!(memory.give_back(), Outcome::Done);
        } else {
            memory.freed();
        }
        assert_eq!(whole.lines(), lines);
        assert!(whole.holds(round + 2) && !crate::adopt::any());
        assert_eq!(memory.give_back(), Outcome::Gone);
    }
    // What was never touched is zeros, in a buffer that had something else.
    let buffer = lender.buffer(LEN);
    let (used, untouched) = (Memory::anonymous(LEN), Memory::anonymous(LEN));
    used.fill(9);
    assert_eq!(used.adopt(&buffer), Outcome::Done);
    used.freed();
    assert_eq!(untouched.adopt(&buffer), Outcome::Done);
    assert!((0..LEN).all(|byte| unsafe { untouched.at.add(byte).read_volatile() } == 0));
    untouched.freed();
    used.unmap();
    untouched.unmap();
    whole.unmap();
}

pub(crate) fn ordinary_again_for_every_call(lender: &Lender) {
    let whole = Memory::anonymous(3 * LEN);
    whole.fill(1);
    let memory = whole.part(LEN, LEN);
    let word = memory.word(8);
    let vmsplice = || {
        let mut ends = [0; 2];
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        let ends = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        let vector = libc::iovec {
            iov_base: memory.at.cast(),
            iov_len: PAGE,
        };
        let bytes = unsafe { libc::vmsplice(ends[1].as_raw_fd(), &raw const vector, 1, 0) };
        bytes == PAGE as isize
    };
    let process_vm = || {
        let mut copy = 0u64;
        let (here, there) = (
            libc::iovec {
                iov_base: std::ptr::from_mut(&mut copy).cast(),
                iov_len: 8,
            },
            libc::iovec {
                iov_base: word.cast(),
                iov_len: 8,
            },
        );
        let bytes =
            unsafe { libc::process_vm_readv(libc::getpid(), &raw const here, 1, &raw const there, 1, 0) };
        bytes == 8 && copy == unsafe { word.read() }
    };
    assert_eq!(memory.adopt(&lender.buffer(LEN)), Outcome::Done);
    let heap = matches!(lender, Lender::Heap(_));
    if heap {
        assert!(
            !vmsplice() && !process_vm(),
            "these calls do not tell a dma-buf from memory: the test tells nothing"
        );
    }
    memory.freed();
    assert!(vmsplice() && process_vm() && whole.holds(1));
    // mremap over the borders of what was adopted: it is one mapping.
    let at = unsafe { libc::mremap(whole.at.cast(), whole.len, 2 * whole.len, libc::MREMAP_MAYMOVE) };
    assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    let grown = Memory {
        at: at.cast(),
        len: 2 * whole.len,
    };
    assert!(grown.part(0, whole.len).holds(1) && grown.is_ordinary());
    assert_eq!(
        unsafe { libc::madvise(grown.at.cast(), grown.len, libc::MADV_DONTNEED) },
        0
    );
    assert!((0..grown.len).all(|byte| unsafe { grown.at.add(byte).read_volatile() } == 0));
    grown.unmap();
}

pub(crate) fn what_is_not_ordinary_is_refused(lender: &Lender) {
    use Outcome::{NotOrdinary, Refused};
    let buffer = lender.buffer(LEN);
    let refused = |memory: Memory, outcome| {
        assert_eq!(memory.adopt(&buffer), outcome, "{:?}", memory.lines());
    };
    let good = Memory::anonymous(2 * LEN);
    refused(good.part(8, LEN), NotOrdinary);
    refused(good.part(0, LEN - 8), NotOrdinary);
    refused(good.part(0, 0), NotOrdinary);
    let (read, write) = (libc::PROT_READ, libc::PROT_WRITE);
    refused(Memory::mapped(LEN, read | write, libc::MAP_SHARED), NotOrdinary);
    refused(Memory::mapped(LEN, read, libc::MAP_PRIVATE), NotOrdinary);
    refused(
        Memory::mapped(LEN, libc::PROT_NONE, libc::MAP_PRIVATE),
        NotOrdinary,
    );
    refused(
        Memory::mapped(LEN, read | write | libc::PROT_EXEC, libc::MAP_PRIVATE),
        NotOrdinary,
    );
    // Over the border of two mappings, and over a hole.
    assert_eq!(
        unsafe { libc::mprotect(good.part(LEN, LEN).at.cast(), LEN, read) },
        0
    );
    refused(good.part(LEN / 2 / PAGE * PAGE, LEN), NotOrdinary);
    good.part(LEN, LEN).unmap();
    refused(good.part(PAGE, LEN - PAGE).part(0, LEN - PAGE), Outcome::Done);
    good.part(PAGE, LEN - PAGE).freed();
    refused(
        Memory {
            at: good.part(PAGE, 0).at,
            len: LEN,
        },
        NotOrdinary,
    );
    // brk's heap, the stack, a file, an address that is none.
    let heap = unsafe { libc::sbrk(2 * LEN as isize) } as usize;
    let heap = Memory {
        at: heap.next_multiple_of(PAGE) as *mut u8,
        len: LEN,
    };
    refused(heap, NotOrdinary);
    let stack = [0u8; 64 << 10];
    let at = (std::ptr::from_ref(&stack) as usize).next_multiple_of(PAGE) as *mut u8;
    refused(Memory { at, len: 8 * PAGE }, NotOrdinary);
    let spread = std::thread::scope(|scope| {
        let own = scope.spawn(|| {
            let here = 0u8;
            let at = (std::ptr::from_ref(&here) as usize / PAGE * PAGE) as *mut u8;
            Memory { at, len: PAGE }.adopt(&buffer)
        });
        own.join().unwrap()
    });
    assert_eq!(spread, NotOrdinary, "the stack of the thread that adopts");
    refused(
        Memory {
            at: usize::MAX.wrapping_sub(LEN - 1) as *mut u8,
            len: LEN,
        },
        NotOrdinary,
    );
    // No dma-buf, and one that is too small.
    let memory = good.part(0, LEN);
    memory.fill(3);
    let memfd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"no dma-buf".as_ptr(), 0)) };
    assert_eq!(
        unsafe { libc::ftruncate(memfd.as_raw_fd(), LEN as libc::off_t) },
        0
    );
    assert_eq!(memory.adopt(&memfd), Refused);
    if matches!(lender, Lender::Heap(_)) {
        assert_eq!(memory.adopt(&lender.buffer(LEN - PAGE)), Refused);
    }
    assert!(memory.holds(3) && memory.is_ordinary() && !crate::adopt::any());
}

pub(crate) fn realloc_and_free(lender: &Lender) {
    // Otherwise what was freed last goes to brk's heap the next time.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10) };
    for size in [LEN, LEN + 24, 32 * PAGE] {
        let buffer = lender.buffer(LEN);
        for adopted_still in [false, true] {
            let memory = Memory::aligned(size);
            let pages = memory.part(0, size / PAGE * PAGE);
            memory.part(0, size / 8 * 8).fill(4);
            assert_eq!(pages.adopt(&buffer), Outcome::Done);
            if !adopted_still {
                pages.freed();
            }
            let at = unsafe { libc::realloc(memory.at.cast(), 3 * size) };
            let grown = Memory {
                at: at.cast(),
                len: 3 * size,
            };
            assert!(grown.part(0, size / 8 * 8).holds(4));
            pages.freed();
            assert!(grown.part(0, size / 8 * 8).holds(4));
            grown.part(0, 3 * size / 8 * 8).fill(5);
            unsafe { libc::free(at) };
            assert!(!crate::adopt::any());
            // Freed while adopted, and had again from malloc.
            let memory = Memory::aligned(size);
            assert_eq!(memory.part(0, size / PAGE * PAGE).adopt(&buffer), Outcome::Done);
            unsafe { libc::free(memory.at.cast()) };
            let again = Memory::aligned(size);
            again.part(0, size / 8 * 8).fill(6);
            memory.freed();
            assert!(again.part(0, size / 8 * 8).holds(6));
            unsafe { libc::free(again.at.cast()) };
        }
    }
    assert!(!crate::memory::maps().contains("dmabuf"));
}

pub(crate) fn an_arena_is_used_on(lender: &Lender) {
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 20) };
    let worker = || {
        let buffer = lender.buffer(LEN);
        for round in 0..50 {
            let neighbours = [Memory::aligned(3000), Memory::aligned(LEN), Memory::aligned(5000)];
            let [before, memory, behind] = neighbours;
            before.part(0, 3000).fill(round);
            behind.part(0, 5000).fill(round);
            memory.fill(round);
            assert_eq!(memory.adopt(&buffer), Outcome::Done);
            assert!(memory.holds(round));
            if round % 2 == 0 {
                memory.freed();
                assert!(memory.holds(round) && memory.is_ordinary());
            }
            unsafe { libc::free(memory.at.cast()) };
            // The same bytes again, for something else, while the dma-buf is under them.
            let pieces: Vec<_> = (0..20).map(|_| Memory::aligned(6 * PAGE)).collect();
            for (seed, piece) in pieces.iter().enumerate() {
                piece.fill(100 + seed as u64);
            }
            memory.freed();
            for (seed, piece) in pieces.iter().enumerate() {
                assert!(piece.holds(100 + seed as u64));
                unsafe { libc::free(piece.at.cast()) };
            }
            assert!(before.holds(round) && behind.holds(round));
            unsafe { libc::free(before.at.cast()) };
            unsafe { libc::free(behind.at.cast()) };
            assert!(!crate::memory::maps().contains("dmabuf"));
        }
    };
    std::thread::scope(|scope| scope.spawn(worker).join().unwrap());
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10) };
}

pub(crate) fn what_the_program_has_unmapped_is_its_own(lender: &Lender) {
    let buffer = lender.buffer(LEN);
    // All of it.
    let memory = Memory::anonymous(LEN);
    assert_eq!(memory.adopt(&buffer), Outcome::Done);
    memory.unmap();
    assert_eq!(memory.give_back(), Outcome::Gone);
    assert!(memory.lines().is_empty());
    // All of it, with other memory there now, which is even adopted again.
    let memory = Memory::anonymous(LEN);
    assert_eq!(memory.adopt(&buffer), Outcome::Done);
    let fixed = |memory: Memory| unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        assert_ne!(
            libc::mmap(memory.at.cast(), memory.len, prot, flags, -1, 0),
            libc::MAP_FAILED
        );
    };
    fixed(memory);
    memory.fill(1);
    let second = lender.buffer(LEN);
    assert_eq!(memory.adopt(&second), Outcome::Done);
    assert!(memory.holds(1));
    memory.freed();
    assert!(memory.holds(1) && memory.is_ordinary() && !crate::adopt::any());
    // Three parts of it: one unmapped, one replaced, the rest still a dma-buf in two pieces.
    memory.fill(2);
    assert_eq!(memory.adopt(&buffer), Outcome::Done);
    memory.part(0, 10 * PAGE).unmap();
    fixed(memory.part(50 * PAGE, 10 * PAGE));
    memory.part(50 * PAGE, 10 * PAGE).fill(7);
    memory.part(140 * PAGE, 10 * PAGE).unmap();
    let copy: Vec<u64> = (10 * PAGE..140 * PAGE)
        .step_by(8)
        .map(|byte| unsafe { memory.word(byte).read() })
        .collect();
    memory.freed();
    let now: Vec<u64> = (10 * PAGE..140 * PAGE)
        .step_by(8)
        .map(|byte| unsafe { memory.word(byte).read() })
        .collect();
    assert!(copy == now && memory.part(50 * PAGE, 10 * PAGE).holds(7));
    assert!(memory.is_ordinary() && !crate::adopt::any());
    assert!(
        memory.part(0, 10 * PAGE).lines().is_empty() && memory.part(140 * PAGE, 10 * PAGE).lines().is_empty()
    );
    memory.part(10 * PAGE, 130 * PAGE).unmap();
    // Moved away by mremap: contents stay, and where it was nothing is put.
    let memory = Memory::anonymous(LEN);
    memory.fill(8);
    assert_eq!(memory.adopt(&buffer), Outcome::Done);
    let target = Memory::anonymous(LEN);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let at = unsafe { libc::mremap(memory.at.cast(), LEN, LEN, flags, target.at) };
    assert_eq!(at, target.at.cast());
    memory.freed();
    assert!(target.holds(8) && memory.lines().is_empty() && !crate::adopt::any());
    target.unmap();
}

/// What the program's own mapping has meanwhile, where nobody sees it, must not come back with it.
pub(crate) fn pages_that_nobody_has_asked_for(lender: &Lender) {
    let memory = Memory::anonymous(LEN);
    for (lock, fork) in [(true, false), (true, true), (false, false)] {
        memory.fill(1);
        assert_eq!(memory.adopt(&lender.buffer(LEN)), Outcome::Done);
        if lock {
            assert_eq!(unsafe { libc::mlockall(libc::MCL_CURRENT) }, 0);
        } else {
            read_all_that_can_be_read();
        }
        if fork {
            assert!(in_child(|| assert!(memory.holds(1))));
        }
        memory.fill(2);
        memory.freed();
        assert_eq!(unsafe { libc::munlockall() }, 0);
        assert!(memory.holds(2), "locked: {lock}, forked: {fork}");
        assert!(memory.is_ordinary() && !crate::adopt::any());
    }
    memory.unmap();
}

/// As a debugger that saves the memory.
fn read_all_that_can_be_read() {
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    let mut page = [0; PAGE];
    for line in crate::memory::maps()
        .lines()
        .filter(|line| line.contains(" rw-p "))
    {
        let range = line.split(' ').next().unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        for address in (start..end).step_by(PAGE) {
            let _ = memory.read_at(&mut page, address);
        }
    }
}

/// To another user the daemon says of every token that there is no such session.
pub(crate) fn a_program_that_drops_privileges(lender: &Lender) {
    let memory = Memory::anonymous(LEN);
    memory.fill(1);
    assert_eq!(memory.adopt(&lender.buffer(LEN)), Outcome::Done);
    link::lend(memory.addr(), false);
    assert_eq!(unsafe { libc::seteuid(65534) }, 0);
    crate::adopt::reconcile();
    assert_eq!(unsafe { libc::seteuid(0) }, 0);
    assert!(memory.is_adopted(), "given back while a device may use it");
    crate::adopt::reconcile();
    assert!(memory.is_ordinary() && memory.holds(1) && !crate::adopt::any());
    memory.unmap();
}

pub(crate) fn protection_stays_the_programs(lender: &Lender) {
    let buffer = lender.buffer(LEN);
    for (from, pages, prot, mode) in [
        (0, 150, libc::PROT_READ, "r--p"),
        (20, 30, libc::PROT_READ, "r--p"),
        (20, 30, libc::PROT_NONE, "---p"),
    ] {
        let memory = Memory::anonymous(LEN);
        memory.fill(3);
        assert_eq!(memory.adopt(&buffer), Outcome::Done);
        let part = memory.part(from * PAGE, pages * PAGE);
        assert_eq!(unsafe { libc::mprotect(part.at.cast(), part.len, prot) }, 0);
        memory.freed();
        let lines = part.lines();
        assert!(lines.len() == 1 && lines[0].contains(mode), "{lines:?}");
        let all = libc::PROT_READ | libc::PROT_WRITE;
        assert_eq!(unsafe { libc::mprotect(part.at.cast(), part.len, all) }, 0);
        assert!(memory.holds(3) && memory.is_ordinary());
        memory.unmap();
    }
}

pub(crate) fn the_daemon_dies(lender: &Lender) {
    let memory = Memory::anonymous(LEN);
    memory.fill(3);
    assert_eq!(memory.adopt(&lender.buffer(LEN)), Outcome::Done);
    DAEMON_IS_DEAD.store(true, Ordering::Relaxed);
    crate::adopt::reconcile();
    assert!(!crate::adopt::obey(&link::link()), "nobody can be talked to");
    DAEMON_IS_DEAD.store(false, Ordering::Relaxed);
    assert!(memory.is_ordinary() && memory.holds(3) && !crate::adopt::any());
    memory.unmap();
}

pub(crate) fn errno_and_the_switch(lender: &Lender) {
    let memory = Memory::anonymous(LEN);
    let errno = unsafe { libc::__errno_location() };
    unsafe { errno.write(1234) };
    assert_eq!(memory.adopt(&lender.buffer(LEN)), Outcome::Done);
    memory.freed();
    assert_eq!(memory.part(1, 8).adopt(&lender.buffer(LEN)), Outcome::NotOrdinary);
    assert_eq!(unsafe { errno.read() }, 1234);
    let itself = std::env::current_exe().unwrap();
    let path = match lender {
        Lender::Heap(_) => "/dev/dma_heap/system".to_owned(),
        Lender::Node { node, .. } => {
            let link = format!("/proc/self/fd/{}", node.as_raw_fd());
            std::fs::read_link(link).unwrap().display().to_string()
        }
    };
    for (value, outcome) in [
        ("0", "SwitchedOff"),
        ("off", "SwitchedOff"),
        ("no", "SwitchedOff"),
        ("1", "NotOrdinary"),
        ("", "NotOrdinary"),
    ] {
        let output = std::process::Command::new(&itself)
            .arg(format!("switched-off {path}"))
            .env("VIDCOMPAT_ADOPT", value)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), outcome);
    }
    memory.unmap();
}

/// In a program of its own: what the switch says of memory that cannot be adopted anyway (the buffers may be in use).
pub(crate) fn switched_off(_: &str) {
    let memory = Memory::anonymous(LEN);
    let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    println!("{:?}", memory.part(8, PAGE).adopt(&file));
}
