//! How long a task may take, and who is to blame where it takes longer. Rules only: no clock, no process is asked here.

use std::collections::HashMap;
use std::time::Duration;

use super::whereabouts::Whereabouts;

/// Something that a thread of ours works on and should soon be done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Task {
    /// Which node, by a number of the caller's.
    pub node: usize,
    /// Tells it from others of the node.
    pub id: u64,
    /// The thread.
    pub thread: u32,
    /// Since when, by the clock that [`Judge::look`] is told.
    pub since: Duration,
}

/// When patience ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The operator is told.
    pub slow: Duration,
    /// The last deadline: where it is our own fault we act.
    pub last: Duration,
    /// Time between two looks.
    pub interval: Duration,
}

/// Who is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The device's driver.
    Driver,
    /// The client, whose memory does not answer.
    Client,
    /// It waits for another task of the same node, which is in a driver or in a client's memory.
    Another,
    /// We, as far as can be seen.
    Ourselves,
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Beyond the first deadline, for the first time.
    Slow(Task, Blame),
    /// Beyond the last one, for the first time: not our fault, so nothing can be done.
    Hangs(Task, Blame),
    /// Beyond the last one, and no thread that it may wait for is in a driver or in a client's memory: it will never end.
    Stuck(Task),
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    slow: bool,
    hangs: bool,
    /// Looks in a row at which it seemed to be our own fault.
    suspected: u32,
}

/// Looks in a row that must say the same before we act: a thread that holds a lock may be between two calls.
const SURE: u32 = 3;

/// Remembers what was told.
#[derive(Debug)]
pub struct Judge {
    limits: Limits,
    told: HashMap<Task, Told>,
    last_look: Option<Duration>,
    /// Nobody is blamed for the time before this: we did not run (SIGSTOP, a debugger, a host that was suspended).
    forgiven: Duration,
}

impl Judge {
    /// Nothing was looked at.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            told: HashMap::new(),
            last_look: None,
            forgiven: Duration::ZERO,
        }
    }

    /// Looks at all tasks that are under way. `place` tells where a thread is, `is_held_up` whether any thread of ours that
    /// tasks of that node may wait for is in a driver or in a client's memory; both are asked only for what takes too long.
    pub fn look(
        &mut self,
        now: Duration,
        tasks: &[Task],
        place: impl Fn(u32) -> Whereabouts,
        is_held_up: impl Fn(usize) -> bool,
    ) -> Vec<Finding> {
        if self
            .last_look
            .is_some_and(|last| now.saturating_sub(last) > 3 * self.limits.interval)
        {
            self.forgiven = now;
        }
        self.last_look = Some(now);
        self.told.retain(|task, _| tasks.contains(task));
        let mut findings = Vec::new();
        for task in tasks {
            let age = now.saturating_sub(task.since.max(self.forgiven));
            if age < self.limits.slow {
                continue;
            }
            let blame = match place(task.thread) {
                Whereabouts::Driver => Blame::Driver,
                Whereabouts::Client => Blame::Client,
                Whereabouts::Gone => continue,
                Whereabouts::Lock | Whereabouts::Elsewhere if is_held_up(task.node) => Blame::Another,
                Whereabouts::Lock | Whereabouts::Elsewhere | Whereabouts::Running => Blame::Ourselves,
            };
            let told = self.told.entry(*task).or_default();
            if !std::mem::replace(&mut told.slow, true) {
                findings.push(Finding::Slow(*task, blame));
            }
            if age < self.limits.last {
                continue;
            }
            if blame != Blame::Ourselves {
                told.suspected = 0;
                if !std::mem::replace(&mut told.hangs, true) {
                    findings.push(Finding::Hangs(*task, blame));
                }
                continue;
            }
            told.suspected += 1;
            if told.suspected == SURE {
                findings.push(Finding::Stuck(*task));
            }
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::{Blame, Finding, Judge, Limits, Task};
    use crate::service::whereabouts::Whereabouts;
    use std::time::Duration;

    const LIMITS: Limits = Limits {
        slow: Duration::from_secs(10),
        last: Duration::from_secs(60),
        interval: Duration::from_secs(2),
    };

    fn task(id: u64, since: u64) -> Task {
        Task {
            node: 0,
            id,
            thread: 7,
            since: Duration::from_secs(since),
        }
    }

    /// Looks every two seconds up to `end`: what was found, and when.
    fn looks(
        judge: &mut Judge,
        begin: u64,
        end: u64,
        tasks: &[Task],
        place: Whereabouts,
        held_up: bool,
    ) -> Vec<(u64, Finding)> {
        let mut found = Vec::new();
        for now in (begin..=end).step_by(2) {
            let look = judge.look(Duration::from_secs(now), tasks, |_| place, |_| held_up);
            found.extend(look.into_iter().map(|finding| (now, finding)));
        }
        found
    }

    #[test]
    fn what_hangs_in_a_driver_is_told_twice_and_left_alone() {
        let hangs = task(1, 100);
        let found = looks(
            &mut Judge::new(LIMITS),
            100,
            400,
            &[hangs],
            Whereabouts::Driver,
            true,
        );
        assert_eq!(
            found,
            [
                (110, Finding::Slow(hangs, Blame::Driver)),
                (160, Finding::Hangs(hangs, Blame::Driver))
            ]
        );
    }

    #[test]
    fn who_waits_for_a_call_that_hangs_in_a_driver_is_not_stuck() {
        let waits = task(1, 0);
        let found = looks(&mut Judge::new(LIMITS), 0, 400, &[waits], Whereabouts::Lock, true);
        assert_eq!(
            found,
            [
                (10, Finding::Slow(waits, Blame::Another)),
                (60, Finding::Hangs(waits, Blame::Another))
            ]
        );
    }

    #[test]
    fn a_call_that_hangs_on_one_device_excuses_nobody_who_waits_on_another() {
        let of = |node| Task { node, ..task(1, 0) };
        let mut judge = Judge::new(LIMITS);
        let mut found = Vec::new();
        for now in (0..=100).step_by(2) {
            let look = judge.look(
                Duration::from_secs(now),
                &[of(1), of(2)],
                |_| Whereabouts::Lock,
                |node| node == 2,
            );
            found.extend(
                look.into_iter()
                    .filter(|finding| !matches!(finding, Finding::Slow(..))),
            );
        }
        assert_eq!(
            found,
            [Finding::Hangs(of(2), Blame::Another), Finding::Stuck(of(1))]
        );
    }

    #[test]
    fn a_lock_that_nobody_gives_back_is_our_fault_after_three_looks_beyond_the_last_deadline() {
        let stuck = task(1, 0);
        let found = looks(
            &mut Judge::new(LIMITS),
            0,
            400,
            &[stuck],
            Whereabouts::Lock,
            false,
        );
        assert_eq!(
            found,
            [
                (10, Finding::Slow(stuck, Blame::Ourselves)),
                (64, Finding::Stuck(stuck))
            ]
        );
    }

    #[test]
    fn one_look_at_which_a_driver_was_seen_begins_the_count_again() {
        let (mut judge, waits) = (Judge::new(LIMITS), task(1, 0));
        looks(&mut judge, 0, 62, &[waits], Whereabouts::Lock, false);
        looks(&mut judge, 64, 64, &[waits], Whereabouts::Lock, true);
        let found = looks(&mut judge, 66, 68, &[waits], Whereabouts::Lock, false);
        assert_eq!(found, []);
        let found = looks(&mut judge, 70, 70, &[waits], Whereabouts::Lock, false);
        assert_eq!(found, [(70, Finding::Stuck(waits))]);
    }

    #[test]
    fn requests_that_follow_each_other_are_never_late() {
        let mut judge = Judge::new(LIMITS);
        for now in (0..1_000).step_by(2) {
            let found = looks(
                &mut judge,
                now,
                now,
                &[task(now, now)],
                Whereabouts::Running,
                false,
            );
            assert_eq!(found, []);
        }
    }

    #[test]
    fn time_in_which_we_did_not_run_is_nobodys_fault() {
        let (mut judge, old) = (Judge::new(LIMITS), task(1, 98));
        looks(&mut judge, 90, 100, &[old], Whereabouts::Lock, false);
        // SIGSTOP for an hour.
        let found = looks(&mut judge, 3_700, 3_708, &[old], Whereabouts::Lock, false);
        assert_eq!(found, []);
        let found = looks(&mut judge, 3_710, 3_710, &[old], Whereabouts::Lock, false);
        assert_eq!(found, [(3_710, Finding::Slow(old, Blame::Ourselves))]);
    }

    #[test]
    fn memory_that_a_client_withholds_is_the_clients_fault() {
        let slow = task(1, 0);
        let found = looks(
            &mut Judge::new(LIMITS),
            0,
            100,
            &[slow],
            Whereabouts::Client,
            true,
        );
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], (60, Finding::Hangs(slow, Blame::Client)));
    }
}
