//! Where the kernel refuses, and what is left behind after many exchanges.

use std::time::{Duration, Instant};

use vidcompat_proto::shim::Outcome;

use crate::memory::{Lender, Memory, PAGE, files, in_child, maps, number};

const LEN: usize = 64 * PAGE;

/// Uses up the number of mappings, and leaves room for a few: pages that alternate in what one may do with them.
struct Crowd {
    memory: Memory,
    used: usize,
}

impl Crowd {
    fn new() -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        Self {
            memory: Memory::mapped(80_000 * PAGE, libc::PROT_NONE, flags),
            used: 0,
        }
    }

    fn set(&self, page: usize, prot: i32) -> bool {
        let page = self.memory.part(page * PAGE, PAGE);
        unsafe { libc::mprotect(page.at.cast(), PAGE, prot) == 0 }
    }

    /// Two mappings more each time, until there is no room.
    fn fill(&mut self) {
        while self.set(2 * self.used + 1, libc::PROT_READ) {
            self.used += 1;
        }
    }

    /// Room for two more.
    fn room(&mut self) {
        self.used -= 1;
        assert!(self.set(2 * self.used + 1, libc::PROT_NONE));
    }
}

pub(crate) fn no_room_for_mappings(lender: &Lender) {
    // In a child: what is used up is the child's.
    let test = || {
        let whole = Memory::anonymous(3 * LEN);
        let memory = whole.part(LEN, LEN);
        whole.fill(1);
        let buffer = lender.buffer(LEN);
        // The first adoption of this process, and what it needs of libc.
        assert_eq!(memory.adopt(&buffer), Outcome::Done);
        memory.freed();
        let mut crowd = Crowd::new();
        let (mut refused, mut kept) = (0, 0);
        for room in 0..12 {
            crowd.fill();
            (0..room).for_each(|_| crowd.room());
            match memory.adopt(&buffer) {
                Outcome::Refused => {
                    refused += 1;
                    assert!(!crate::adopt::any());
                }
                Outcome::Done => {
                    assert!(crate::adopt::any());
                    for room in 0..12 {
                        crowd.fill();
                        (0..room).for_each(|_| crowd.room());
                        whole.fill(room as u64 + 20);
                        memory.freed();
                        assert!(whole.holds(room as u64 + 20));
                        if !crate::adopt::any() {
                            break;
                        }
                        kept += 1;
                        assert!(room < 11);
                    }
                    whole.fill(1);
                }
                other => panic!("{other:?}"),
            }
            assert!(whole.holds(1) && !crate::adopt::any());
            whole.fill(1);
        }
        println!("    refused {refused} of 12, kept for want of room {kept}");
        assert!(refused > 0 && refused < 12 && kept > 0);
    };
    assert!(in_child(test));
}

pub(crate) fn no_room_for_addresses_or_files(lender: &Lender) {
    let limited = |resource, value| {
        // Of 64 bits also in a 32-bit program.
        let mut limit = libc::rlimit64 {
            rlim_cur: 0,
            rlim_max: 0,
        };
        assert_eq!(unsafe { libc::getrlimit64(resource, &raw mut limit) }, 0);
        limit.rlim_cur = limit.rlim_max.min(value);
        assert_eq!(unsafe { libc::setrlimit64(resource, &raw const limit) }, 0);
    };
    let test = || {
        let memory = Memory::anonymous(LEN);
        let buffer = lender.buffer(LEN);
        memory.fill(1);
        let mut outcomes = Vec::new();
        for pages in (0..300).step_by(20) {
            let used = number("status", "VmSize:") << 10;
            limited(libc::RLIMIT_AS, used + (pages * PAGE) as u64);
            let outcome = memory.adopt(&buffer);
            limited(libc::RLIMIT_AS, libc::RLIM_INFINITY);
            assert!(memory.holds(1));
            if outcome == Outcome::Done {
                memory.fill(2);
                let used = number("status", "VmSize:") << 10;
                limited(libc::RLIMIT_AS, used);
                memory.freed();
                limited(libc::RLIMIT_AS, libc::RLIM_INFINITY);
                memory.freed();
                assert!(memory.holds(2) && memory.is_ordinary());
                memory.fill(1);
            }
            assert!(!crate::adopt::any());
            outcomes.push(outcome);
        }
        assert!(
            outcomes.contains(&Outcome::Refused) && outcomes.contains(&Outcome::Done),
            "{outcomes:?}"
        );
        // No number for a file: the daemon's fd has come, the userfaultfd's does not.
        let copy = buffer.try_clone().unwrap();
        let open = files().len() as u64;
        let mut seen = Vec::new();
        for more in 1..5 {
            limited(libc::RLIMIT_NOFILE, open + more);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| memory.adopt(&copy)));
            limited(libc::RLIMIT_NOFILE, 1024);
            seen.push(result.ok());
            assert!(memory.holds(1));
            if seen.last() == Some(&Some(Outcome::Done)) {
                limited(libc::RLIMIT_NOFILE, 3);
                memory.freed();
                limited(libc::RLIMIT_NOFILE, 1024);
                assert!(memory.holds(1));
                memory.freed();
                assert!(memory.holds(1) && memory.is_ordinary());
            }
        }
        println!("    {seen:?}");
        assert!(seen.contains(&Some(Outcome::Done)) && seen.iter().any(|seen| *seen != Some(Outcome::Done)));
        assert!(!crate::adopt::any());
    };
    assert!(in_child(test));
}

pub(crate) fn a_full_table(lender: &Lender) {
    let test = || {
        let own = matches!(lender, Lender::Heap(_));
        let memory: Vec<_> = (0..257).map(|_| Memory::anonymous(PAGE)).collect();
        for (seed, memory) in memory.iter().enumerate() {
            memory.fill(seed as u64);
            let expected = if seed < 256 {
                Outcome::Done
            } else {
                Outcome::TableFull
            };
            assert_eq!(memory.adopt(&lender.buffer(PAGE)), expected);
        }
        for (seed, memory) in memory.iter().enumerate() {
            assert!(!own || memory.holds(seed as u64));
            if seed % 2 == 0 {
                memory.freed();
            }
        }
        for (seed, memory) in memory.iter().enumerate() {
            assert_eq!(memory.is_ordinary(), seed % 2 == 0);
            crate::link::lend(memory.addr(), false);
        }
        crate::adopt::reconcile();
        assert!(
            memory
                .iter()
                .enumerate()
                .all(|(seed, memory)| memory.is_ordinary() && (!own || memory.holds(seed as u64)))
        );
        assert!(!crate::adopt::any());
    };
    assert!(in_child(test));
}

pub(crate) fn nothing_is_left_behind(lender: &Lender) {
    const LEN: usize = 16 * PAGE;
    let test = || {
        let whole = Memory::anonymous(3 * LEN);
        whole.fill(1);
        let memory = whole.part(LEN, LEN);
        let buffer = lender.buffer(LEN);
        let mut before = (String::new(), Vec::new(), 0);
        for cycle in 0..10_000 {
            if cycle == 100 {
                // Once more, for what the first look itself has allocated.
                drop((maps(), files(), number("smaps_rollup", "Rss:")));
                before = (maps(), files(), number("smaps_rollup", "Rss:"));
            }
            assert_eq!(memory.adopt(&buffer), Outcome::Done);
            memory.freed();
        }
        let after = (maps(), files(), number("smaps_rollup", "Rss:"));
        assert!(whole.holds(1) && memory.is_ordinary());
        assert_eq!(before.0, after.0);
        assert_eq!(before.1, after.1);
        println!("    RSS {} KiB, then {} KiB", before.2, after.2);
        assert!(after.2 < before.2 + 256);
        assert_eq!(number("status", "Threads:"), 1);
    };
    assert!(in_child(test));
}

pub(crate) fn what_it_costs(lender: &Lender) {
    for len in [600 << 10, 4 << 20] {
        if len > lender.most() {
            continue;
        }
        let memory = Memory::anonymous(len);
        let buffer = lender.buffer(len);
        let (mut adopting, mut giving, mut forking) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..200 {
            memory.fill(round);
            let started = Instant::now();
            assert_eq!(memory.adopt(&buffer), Outcome::Done);
            adopting.push(started.elapsed());
            if round % 10 == 0 {
                let started = Instant::now();
                assert!(in_child(|| ()));
                forking.push(started.elapsed());
            }
            let started = Instant::now();
            memory.freed();
            giving.push(started.elapsed());
            assert!(memory.holds(round));
        }
        let middle = |times: &mut Vec<Duration>| {
            times.sort();
            times[times.len() / 2].as_micros()
        };
        println!(
            "    {} KiB: adopt {} us, give back {} us (medians of 200); fork and exit while adopted {} us",
            len >> 10,
            middle(&mut adopting),
            middle(&mut giving),
            middle(&mut forking),
        );
        memory.unmap();
    }
}
