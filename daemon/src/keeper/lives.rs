//! How often a daemon that dies is started again, and when.

use std::time::Duration;

/// Deaths in a row before it was ready.
const STILLBORN: u32 = 5;
/// The same of one that takes something over: a few of its files may each end it twice before they are given up (`survive::tries`).
const STILLBORN_HEIR: u32 = 10;
/// Deaths in a row right after it was ready, for whatever kills it comes again with each resent request; or before, by
/// somebody's SIGKILL, which says nothing of the daemon.
const SHORT: u32 = 20;
/// How soon that is.
const RIGHT_AFTER: Duration = Duration::from_millis(50);
/// Before the second start in a row; twice as long each time. Clients wait meanwhile.
const PAUSE: Duration = Duration::from_millis(100);
/// So often it is twice as long.
const LONGER: u32 = 2;

/// What to do after a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Start it again after this.
    Again(Duration),
    /// It has died so often in a row.
    GiveUp(u32),
}

/// The deaths so far.
#[derive(Debug, Default)]
pub(super) struct Lives {
    stillborn: u32,
    short: u32,
}

impl Lives {
    /// It has died, this long after it was ready, if it ever was; of SIGKILL, if it `was_killed`. The next one `takes_over` what
    /// it has stored, if that is anything.
    pub(super) fn died(
        &mut self,
        after_ready: Option<Duration>,
        was_killed: bool,
        takes_over: bool,
    ) -> Verdict {
        match after_ready {
            None if was_killed => self.short += 1,
            None => self.stillborn += 1,
            Some(lived) => {
                self.stillborn = 0;
                self.short = if lived < RIGHT_AFTER { self.short + 1 } else { 0 };
            }
        }
        let most = if takes_over { STILLBORN_HEIR } else { STILLBORN };
        if self.stillborn >= most || self.short >= SHORT {
            return Verdict::GiveUp(self.stillborn.max(self.short));
        }
        // Once may be chance: at once.
        let pause = match self.stillborn {
            0 | 1 => Duration::ZERO,
            more => PAUSE * 2_u32.pow((more - 2).min(LONGER)),
        };
        Verdict::Again(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::{Lives, Verdict};
    use std::time::Duration;

    #[test]
    fn one_that_never_gets_ready_is_given_up_after_pauses_that_grow() {
        let mut lives = Lives::default();
        let pauses = [0, 100, 200, 400].map(|pause| Verdict::Again(Duration::from_millis(pause)));
        assert_eq!([(); 4].map(|()| lives.died(None, false, false)), pauses);
        assert_eq!(lives.died(None, false, false), Verdict::GiveUp(5));
    }

    #[test]
    fn one_that_has_files_to_take_over_may_die_of_a_few_of_them() {
        let mut lives = Lives::default();
        let again = (0..).take_while(|_| matches!(lives.died(None, false, true), Verdict::Again(_)));
        assert_eq!(again.count(), 9);
    }

    #[test]
    fn one_that_gets_ready_is_started_again_at_once_for_ever() {
        let mut lives = Lives::default();
        for _ in 0..1000 {
            assert_eq!(lives.died(None, false, false), Verdict::Again(Duration::ZERO));
            let lived = Some(Duration::from_millis(60));
            assert_eq!(lives.died(lived, false, false), Verdict::Again(Duration::ZERO));
        }
    }

    #[test]
    fn one_that_dies_of_being_ready_is_given_up() {
        let mut lives = Lives::default();
        let soon = Some(Duration::from_millis(3));
        let again = (0..).take_while(|_| lives.died(soon, false, false) == Verdict::Again(Duration::ZERO));
        assert_eq!(again.count(), 19);
    }

    #[test]
    fn one_that_somebody_kills_before_it_is_ready_has_more_patience() {
        let mut lives = Lives::default();
        let again = (0..).take_while(|_| lives.died(None, true, false) == Verdict::Again(Duration::ZERO));
        assert_eq!(again.count(), 19);
        lives.died(Some(Duration::from_secs(1)), true, false);
        assert_eq!(lives.died(None, true, false), Verdict::Again(Duration::ZERO));
    }
}
