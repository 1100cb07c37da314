//! Threads that use the memory while it is adopted and given back.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vidcompat_proto::shim::Outcome;

use crate::memory::{Lender, Memory, PAGE};

const LEN: usize = 64 * PAGE;
const WRITERS: usize = 4;

/// What writers and readers have seen.
#[derive(Default, Debug)]
pub(crate) struct Seen {
    writes: u64,
    /// Own words that were not what was written last.
    lost: u64,
    /// Pairs of which one half is older.
    torn: u64,
    /// Another's word, older than it was before.
    older: u64,
    /// What is missing in the words that all count up.
    uncounted: u64,
}

impl Seen {
    pub(crate) fn is_good(&self) -> bool {
        self.lost + self.torn + self.older + self.uncounted == 0 && self.writes > 0
    }
}

/// In each page a pair of words per writer, 64 bytes apart, and at its end one word for all.
fn writer(memory: Memory, me: usize, stop: &AtomicBool) -> (u64, u64, u64, u64) {
    let (mut writes, mut lost, mut torn, mut older) = (0, 0, 0, 0);
    // There are two processors: the exchange is to come to its turn often, and the writers in between.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
    let pages = memory.len / PAGE;
    let mut own = vec![0u64; pages];
    let mut others = vec![0u64; pages];
    let other = (me + 1) % WRITERS;
    while !stop.load(Ordering::Relaxed) {
        for page in 0..pages {
            let (first, second) = (
                memory.word(page * PAGE + me * 64),
                memory.word(page * PAGE + me * 64 + 8),
            );
            let (was, half) = unsafe { (first.read_volatile(), second.read_volatile()) };
            lost += u64::from(was != own[page]);
            torn += u64::from(half != !was && was != 0);
            own[page] = was.max(own[page]) + 1;
            unsafe { first.write_volatile(own[page]) };
            unsafe { second.write_volatile(!own[page]) };
            // Read by another thread than the one that writes: it may only grow.
            let theirs = unsafe { memory.word(page * PAGE + other * 64).read_volatile() };
            older += u64::from(theirs < others[page]);
            others[page] = theirs;
            let common = unsafe { AtomicU64::from_ptr(memory.word(page * PAGE + PAGE - 8)) };
            common.fetch_add(1, Ordering::Relaxed);
            writes += 1;
        }
    }
    (writes, lost, torn, older)
}

/// Writers at work while `exchange` is done.
pub(crate) fn watched(memory: Memory, exchange: impl FnOnce()) -> Seen {
    let stop = AtomicBool::new(false);
    let mut seen = Seen::default();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|me| {
                let stop = &stop;
                scope.spawn(move || writer(memory, me, stop))
            })
            .collect();
        // An exchange that fails must not leave them running.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(exchange));
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            let (writes, lost, torn, older) = writer.join().unwrap();
            seen.writes += writes;
            seen.lost += lost;
            seen.torn += torn;
            seen.older += older;
        }
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    let counted: u64 = (0..memory.len / PAGE)
        .map(|page| unsafe { memory.word(page * PAGE + PAGE - 8).read() })
        .sum();
    seen.uncounted = seen.writes.abs_diff(counted);
    seen
}

/// The test sees what it is for: copy and mmap over it, as one would do it alone.
pub(crate) fn a_naive_exchange_is_seen(lender: &Lender) {
    let memory = Memory::anonymous(LEN);
    let buffer = lender.buffer(LEN);
    let mut copy = vec![0u8; LEN];
    let started = Instant::now();
    let seen = watched(memory, || {
        for round in 0..2000 {
            if round >= 40 && started.elapsed() > Duration::from_secs(2) {
                break;
            }
            unsafe { memory.at.copy_to_nonoverlapping(copy.as_mut_ptr(), LEN) };
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let at = memory.at.cast();
            let mapped = if round % 2 == 0 {
                unsafe {
                    libc::mmap(
                        at,
                        LEN,
                        prot,
                        libc::MAP_SHARED | libc::MAP_FIXED,
                        buffer.as_raw_fd(),
                        0,
                    )
                }
            } else {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                unsafe { libc::mmap(at, LEN, prot, flags, -1, 0) }
            };
            assert_eq!(mapped, at);
            unsafe { memory.at.copy_from_nonoverlapping(copy.as_ptr(), LEN) };
        }
    });
    println!("    naive: {seen:?}");
    assert!(
        seen.lost > 0 && seen.older > 0 && seen.uncounted > 0,
        "nothing was seen"
    );
    memory.unmap();
}

pub(crate) fn exchanges(memory: Memory, buffer: &OwnedFd, seconds: f32) -> u32 {
    let (started, mut cycles) = (Instant::now(), 0);
    while started.elapsed().as_secs_f32() < seconds {
        assert_eq!(memory.adopt(buffer), Outcome::Done);
        if cycles % 2 == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
        memory.freed();
        assert!(!crate::adopt::any());
        if cycles % 3 == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
        cycles += 1;
    }
    cycles
}

pub(crate) fn no_write_is_lost(lender: &Lender) {
    for (pages, seconds) in [(64, 8.0), (3, 4.0), (200, 4.0)] {
        let memory = Memory::anonymous(pages * PAGE);
        let buffer = lender.buffer(memory.len);
        let mut cycles = 0;
        let seen = watched(memory, || cycles = exchanges(memory, &buffer, seconds));
        println!("    {pages} pages, {cycles} cycles: {seen:?}");
        assert!(seen.is_good() && cycles > 10);
        memory.unmap();
    }
}

/// read(2) and write(2) of another thread, which meet the pages in the kernel.
pub(crate) fn the_kernel_waits_too(lender: &Lender) {
    let memory = Memory::anonymous(LEN);
    memory.fill(0);
    let buffer = lender.buffer(LEN);
    let stop = AtomicBool::new(false);
    let mut failed = 0;
    let mut cycles = 0;
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| system_calls(memory, &stop));
        cycles = exchanges(memory, &buffer, 3.0);
        stop.store(true, Ordering::Relaxed);
        let (calls, efault) = caller.join().unwrap();
        println!("    {cycles} cycles, {calls} calls, EFAULT {efault}");
        failed = efault;
    });
    assert!(failed == 0 && memory.holds(0));
    memory.unmap();
}

/// Writes the memory out to a file and reads it back: how many calls, and how many have failed or come short.
pub(crate) fn system_calls(memory: Memory, stop: &AtomicBool) -> (u64, u64) {
    let file = unsafe { libc::memfd_create(c"copy".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(file >= 0);
    let (mut calls, mut failed) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let written = unsafe { libc::pwrite(file, memory.at.cast(), memory.len, 0) };
        if written == memory.len as isize {
            let read = unsafe { libc::pread(file, memory.at.cast(), memory.len, 0) };
            failed += u64::from(read != memory.len as isize);
        } else {
            failed += 1;
        }
        calls += 2;
    }
    unsafe { libc::close(file) };
    (calls, failed)
}

/// A handler that reconciles, as one that closes a file would: no deadlock with the lock that it meets.
pub(crate) fn signals_come_at_any_time(lender: &Lender) {
    static HANDLED: AtomicU64 = AtomicU64::new(0);
    extern "C" fn handler(_: i32) {
        HANDLED.fetch_add(1, Ordering::Relaxed);
        crate::adopt::reconcile();
    }
    unsafe { libc::signal(libc::SIGALRM, handler as *const () as usize) };
    let timer = |microseconds| {
        let interval = libc::timeval {
            tv_sec: 0,
            tv_usec: microseconds,
        };
        let timer = libc::itimerval {
            it_interval: interval,
            it_value: interval,
        };
        assert_eq!(
            unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) },
            0
        );
    };
    let memory = Memory::anonymous(LEN);
    let buffer = lender.buffer(LEN);
    timer(300);
    let mut cycles = 0;
    let seen = watched(memory, || cycles = exchanges(memory, &buffer, 4.0));
    timer(0);
    let handled = HANDLED.load(Ordering::Relaxed);
    println!("    {cycles} cycles, {handled} signals: {seen:?}");
    assert!(seen.is_good() && handled > 100);
    memory.unmap();
}

pub(crate) fn several_threads_at_once(lender: &Lender) {
    std::thread::scope(|scope| {
        for seed in 0..6 {
            scope.spawn(move || {
                let memory = Memory::anonymous(LEN);
                let buffer = lender.buffer(LEN);
                for round in 0..100 {
                    memory.fill(seed * 1000 + round);
                    assert_eq!(memory.adopt(&buffer), Outcome::Done);
                    assert!(memory.holds(seed * 1000 + round) && memory.is_adopted());
                    memory.fill(seed * 1000 + round + 500);
                    memory.freed();
                    assert!(memory.holds(seed * 1000 + round + 500) && memory.is_ordinary());
                }
                memory.unmap();
            });
        }
    });
    assert!(!crate::adopt::any());
}
