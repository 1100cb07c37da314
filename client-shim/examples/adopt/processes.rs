//! Other processes: children, and a program without privileges.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vidcompat_proto::shim::Outcome;

use crate::memory::{Lender, Memory, PAGE, exit_status, in_child, maps};
use crate::threads;

const LEN: usize = 64 * PAGE;

/// One step in each process at a time.
struct Turns([c_int; 4]);

impl Turns {
    fn new() -> Self {
        let mut ends = [0; 4];
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        assert_eq!(unsafe { libc::pipe(ends[2..].as_mut_ptr()) }, 0);
        Self(ends)
    }

    fn pass(&self, child: bool) {
        let end = self.0[if child { 3 } else { 1 }];
        assert_eq!(unsafe { libc::write(end, [1u8].as_ptr().cast(), 1) }, 1);
    }

    fn wait(&self, child: bool) {
        let (end, mut byte) = (self.0[if child { 0 } else { 2 }], 0u8);
        assert_eq!(
            unsafe { libc::read(end, std::ptr::from_mut(&mut byte).cast(), 1) },
            1
        );
    }
}

/// Another library's handlers, which close a file before ours have had their turn.
pub(crate) fn close_files_at_fork() {
    extern "C" fn handler() {
        crate::adopt::reconcile();
    }
    let handler = Some(handler as unsafe extern "C" fn());
    assert_eq!(unsafe { libc::pthread_atfork(handler, handler, handler) }, 0);
}

pub(crate) fn fork_has_a_copy(lender: &Lender) {
    let whole = Memory::anonymous(3 * LEN);
    whole.fill(1);
    let memory = whole.part(LEN, LEN);
    let lines = whole.lines();
    let buffer = lender.buffer(LEN);
    assert_eq!(memory.adopt(&buffer), Outcome::Done);
    // A part that the program has made read-only, and one that it has given away.
    let (constant, gone) = (memory.part(0, 2 * PAGE), memory.part(10 * PAGE, PAGE));
    assert_eq!(
        unsafe { libc::mprotect(constant.at.cast(), constant.len, libc::PROT_READ) },
        0
    );
    gone.unmap();
    let rest = memory.part(11 * PAGE, LEN - 11 * PAGE);
    let first = rest.word(0);
    let turns = Turns::new();
    unsafe { first.write_volatile(10) };
    let child = unsafe { libc::fork() };
    if child == 0 {
        let test = || {
            assert_eq!(unsafe { first.read_volatile() }, 10);
            turns.wait(true);
            assert_eq!(unsafe { first.read_volatile() }, 10, "the parent's write is seen");
            assert!(rest.is_ordinary() && !crate::adopt::any());
            assert!(!maps().contains("dmabuf"), "{}", maps());
            assert!(constant.lines().len() == 1 && constant.lines()[0].contains(" r--p "));
            assert!(gone.lines().is_empty());
            unsafe { first.write_volatile(30) };
            turns.pass(true);
            turns.wait(true);
            // A process like any other: it may adopt, give back and fork.
            unsafe { first.write_volatile(40) };
            assert_eq!(rest.adopt(&lender.buffer(rest.len)), Outcome::Done);
            assert!(in_child(|| {
                assert_eq!(unsafe { first.read_volatile() }, 40);
                unsafe { first.write_volatile(50) };
                assert!(rest.is_ordinary());
            }));
            assert_eq!(unsafe { first.read_volatile() }, 40);
            rest.freed();
            assert!(rest.is_ordinary());
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
        unsafe { libc::_exit(i32::from(result.is_err())) };
    }
    assert!(rest.is_adopted() && crate::adopt::any());
    unsafe { first.write_volatile(20) };
    turns.pass(false);
    turns.wait(false);
    assert_eq!(unsafe { first.read_volatile() }, 20, "the child's write is seen");
    turns.pass(false);
    assert_eq!(exit_status(child), 0);
    memory.freed();
    assert_eq!(unsafe { first.read_volatile() }, 20);
    assert!(rest.is_ordinary() && !crate::adopt::any());
    assert!(lines.len() == 1 && !maps().contains("dmabuf"));
    whole.part(0, LEN + 10 * PAGE).unmap();
    whole.part(LEN + 11 * PAGE, 2 * LEN - 11 * PAGE).unmap();
}

/// One thread adopts and gives back all the time, another forks: each child finds what was written.
pub(crate) fn fork_at_any_time(lender: &Lender) {
    let memory = Memory::anonymous(LEN);
    memory.fill(5);
    let buffer = lender.buffer(LEN);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let cycles = scope.spawn(|| {
            let mut cycles = 0;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(memory.adopt(&buffer), Outcome::Done);
                std::thread::sleep(Duration::from_micros(cycles % 500));
                memory.freed();
                assert!(memory.is_ordinary());
                cycles += 1;
            }
            cycles
        });
        let (started, mut children) = (Instant::now(), 0);
        let mut bad = 0;
        while started.elapsed() < Duration::from_secs(5) {
            let child = unsafe { libc::fork() };
            if child == 0 {
                let good = memory.holds(5);
                memory.fill(6);
                let ordinary = memory.is_ordinary() && !crate::adopt::any();
                unsafe { libc::_exit(i32::from(!good) + 2 * i32::from(!ordinary)) };
            }
            bad += i32::from(exit_status(child) != 0);
            children += 1;
        }
        stop.store(true, Ordering::Relaxed);
        let cycles = cycles.join().unwrap();
        println!("    {children} children, {cycles} cycles");
        assert!(bad == 0, "{bad} children of {children} had other memory");
        assert!(children > 10 && cycles > 10);
    });
    assert!(memory.holds(5));
    memory.unmap();
}

/// A child that shares the memory does nothing to it, and neither does exec.
pub(crate) fn vfork_and_exec(lender: &Lender) {
    extern "C" fn child(_: *mut c_void) -> c_int {
        // As if it had closed our file before its exec.
        crate::adopt::reconcile();
        crate::adopt::obey(&crate::link::link());
        let arguments = [c"true".as_ptr(), std::ptr::null()];
        unsafe { libc::execv(c"/bin/true".as_ptr(), arguments.as_ptr()) };
        99
    }
    let memory = Memory::anonymous(LEN);
    memory.fill(1);
    assert_eq!(memory.adopt(&lender.buffer(LEN)), Outcome::Done);
    crate::link::lend(memory.addr(), false);
    let stack = Memory::anonymous(64 << 10);
    for flags in [libc::CLONE_VM | libc::CLONE_VFORK, libc::CLONE_VFORK] {
        let top = unsafe { stack.at.add(stack.len) }.cast();
        let pid = unsafe { libc::clone(child, top, flags | libc::SIGCHLD, std::ptr::null_mut()) };
        assert!(pid > 0);
        assert_eq!(exit_status(pid), 0);
        assert!(memory.is_adopted() && memory.holds(1) && crate::adopt::any());
    }
    // posix_spawn
    assert!(
        std::process::Command::new("/bin/true")
            .status()
            .unwrap()
            .success()
    );
    assert!(memory.is_adopted() && memory.holds(1));
    // exec of the process that has adopted itself.
    assert!(in_child(|| {
        assert_eq!(memory.adopt(&lender.buffer(LEN)), Outcome::Done);
        let arguments = [c"true".as_ptr(), std::ptr::null()];
        unsafe { libc::execv(c"/bin/true".as_ptr(), arguments.as_ptr()) };
        panic!("no exec");
    }));
    memory.freed();
    assert!(memory.is_ordinary() && memory.holds(1));
    memory.unmap();
}

/// Becomes nobody.
fn drop_privileges() {
    for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
        assert_eq!(unsafe { libc::syscall(call, 65534, 65534, 65534) }, 0);
    }
}

/// The same without privileges, where no userfaultfd sees the kernel's own accesses: the program's threads lose nothing,
/// and system calls that meet the very moment may fail with EFAULT, but the memory is right.
pub(crate) fn an_unprivileged_program(lender: &Lender) {
    let buffer = lender.buffer(LEN);
    assert!(in_child(|| {
        drop_privileges();
        let memory = Memory::anonymous(LEN);
        let mut cycles = 0;
        let seen = threads::watched(memory, || cycles = threads::exchanges(memory, &buffer, 4.0));
        println!("    {cycles} cycles: {seen:?}");
        assert!(seen.is_good());
        memory.fill(0);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| threads::system_calls(memory, &stop));
            let cycles = threads::exchanges(memory, &buffer, 3.0);
            stop.store(true, Ordering::Relaxed);
            let (calls, efault) = caller.join().unwrap();
            println!("    {cycles} cycles, {calls} calls, EFAULT {efault}");
        });
        assert!(memory.holds(0) && memory.is_ordinary());
    }));
}

/// No thread to read the message of the move: given back all the same.
pub(crate) fn no_thread_to_be_had(lender: &Lender) {
    let buffer = lender.buffer(LEN);
    assert!(in_child(|| {
        drop_privileges();
        let limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        let memory = Memory::anonymous(LEN);
        memory.fill(1);
        assert_eq!(memory.adopt(&buffer), Outcome::Done);
        memory.fill(2);
        assert_eq!(
            unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit) },
            0
        );
        assert!(
            std::thread::Builder::new().spawn(|| ()).is_err(),
            "there is no limit"
        );
        let errno = unsafe { libc::__errno_location() };
        unsafe { errno.write(1234) };
        memory.freed();
        assert_eq!(unsafe { errno.read() }, 1234);
        assert!(memory.is_ordinary() && memory.holds(2) && !crate::adopt::any());
    }));
}
