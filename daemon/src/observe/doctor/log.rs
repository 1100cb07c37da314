//! What the kernel has said when a device refused a program's pointer, since it was booted.
//!
//! videobuf2 says it only when it is told to (`videobuf2_common.debug`), and dma-contig's complaint about memory in pieces
//! always. The lines do not name the device, and stay until others have pushed them out: so they count only as long as there
//! is a device without a node of ours which may be the one.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::Finding;
use super::camera::Facts;
use super::look::text;

/// What was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Every pointer: the device's queue has no USERPTR.
    Userptr,
    /// This one, by a queue that has USERPTR.
    ThisPointer,
}

/// What the lines have in common (videobuf2-core.c, `vb2_verify_memory_type`, `__prepare_userptr`; videobuf2-dma-contig.c,
/// `vb2_dc_get_userptr`).
const REFUSALS: [(&str, Refused); 3] = [
    ("USERPTR for current setup unsupported", Refused::Userptr),
    ("failed acquiring userspace memory", Refused::ThisPointer),
    ("contiguous mapping is too small", Refused::ThisPointer),
];
const DEBUG: &str = "/sys/module/videobuf2_common/parameters/debug";

/// A line of the kernel's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::observe) struct Line {
    /// When it was written, since the machine was booted.
    pub(in crate::observe) at: Duration,
    /// What it says.
    pub(in crate::observe) text: String,
}

pub(super) fn look(cameras: &[Facts]) -> Finding {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    let debug = text(DEBUG).is_some_and(|level| level != "0");
    judge(lines().as_deref(), now, debug, cameras)
}

fn judge(lines: Option<&[Line]>, now: Duration, debug: bool, cameras: &[Facts]) -> Finding {
    let about = "kernel log";
    let Some(lines) = lines else {
        return Finding::warning(about, "only root may read it here").advise("`sudo vidcompat doctor`");
    };
    let refusals: Vec<_> = lines
        .iter()
        .filter_map(|line| Some((line, refusal(&line.text)?)))
        .collect();
    let told = |count: usize, last: &Line| {
        let times = match count {
            1 => "once".to_owned(),
            count => format!("{count} times"),
        };
        let ago = ago(now.saturating_sub(last.at));
        format!(
            "a device has refused a program's pointers {times}, the last time {ago}: {}",
            last.text
        )
    };
    let suspects = |refused: Refused| {
        let suspects = cameras.iter().filter(move |camera| camera.may_have(refused));
        suspects.map(|camera| camera.path.as_str())
    };
    let open: Vec<_> = refusals
        .iter()
        .filter(|(_, refused)| suspects(*refused).next().is_some())
        .collect();
    match (open.last(), refusals.last()) {
        (Some((last, refused)), _) => {
            let suspects: Vec<_> = suspects(*refused).collect();
            Finding::warning(about, told(open.len(), last)).advise(format!(
                "it may have been {}, where programs have no node of ours: serve it, and run that program there \
                 (`vidcompat run PROGRAM`)",
                suspects.join(" or ")
            ))
        }
        (None, Some((last, _))) => Finding::ok(
            about,
            format!(
                "{}; each device here that does so has a node of ours now, which does not",
                told(refusals.len(), last)
            ),
        ),
        (None, None) if debug => Finding::ok(about, "no device has refused a program's pointer"),
        (None, None) => Finding::ok(
            about,
            format!(
                "no word of a refused pointer; videobuf2 keeps silent about most unless `echo 1 > {DEBUG}`"
            ),
        ),
    }
}

fn refusal(line: &str) -> Option<Refused> {
    let known = REFUSALS.iter().find(|(text, _)| line.contains(text));
    known.map(|(_, refused)| *refused)
}

/// For people: `3 minutes ago`.
fn ago(time: Duration) -> String {
    let seconds = time.as_secs();
    let (number, unit) = match seconds {
        0 => return "just now".to_owned(),
        1..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86400 => (seconds / 3600, "hour"),
        _ => (seconds / 86400, "day"),
    };
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {unit}{plural} ago")
}

/// The kernel's log, as far as it is still there; `None`: not for this user.
pub(in crate::observe) fn lines() -> Option<Vec<Line>> {
    let mut kmsg = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .ok()?;
    let mut lines = Vec::new();
    // A record of 8 KiB is the longest that the kernel gives.
    let mut record = [0; 8192];
    loop {
        match kmsg.read(&mut record) {
            Ok(0) => break,
            Ok(length) => lines.push(line_of(&record[..length])),
            // Lines were lost meanwhile: the next one is there.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            // EAGAIN: that was all.
            Err(_) => break,
        }
    }
    Some(lines)
}

/// `6,339,5140900,-;NET: Registered protocol family 10`, and further lines that begin with a blank. The third number is
/// microseconds.
fn line_of(record: &[u8]) -> Line {
    let text = String::from_utf8_lossy(record);
    let line = text.lines().next().unwrap_or_default();
    let (head, text) = line.split_once(';').unwrap_or(("", line));
    let at = head.split(',').nth(2).and_then(|number| number.parse().ok());
    Line {
        at: Duration::from_micros(at.unwrap_or(0)),
        text: text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::super::camera::tests::{facts, has, path};
    use super::super::camera::{Memory, Ours};
    use super::{Line, Refused, ago, judge, line_of, refusal};
    use std::time::Duration;

    const POINTER: &str = "videobuf2_common: [cap-00000000c0ffee00] __prepare_userptr: failed acquiring userspace memory for plane 0";
    const USERPTR: &str =
        "videobuf2_common: [cap-1] vb2_verify_memory_type: USERPTR for current setup unsupported";

    fn line(at: u64, text: &str) -> Line {
        Line {
            at: Duration::from_secs(at),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_refused_pointer_is_recognised() {
        let record = format!("6,812,92837465,-;{POINTER}\n SUBSYSTEM=x\n");
        let read = line_of(record.as_bytes());
        assert_eq!(
            (read.at, &*read.text),
            (Duration::from_micros(92_837_465), POINTER)
        );
        assert_eq!(refusal(&read.text), Some(Refused::ThisPointer));
        assert_eq!(refusal(USERPTR), Some(Refused::Userptr));
        assert_eq!(
            refusal("vivid-000: V4L2 capture device registered as video0"),
            None
        );
        assert_eq!(line_of(b"nonsense"), line(0, "nonsense"));
    }

    #[test]
    fn a_line_counts_only_while_a_device_that_may_have_caused_it_is_not_served() {
        let now = Duration::from_secs(1000);
        let served = || Ours::Answers { path: path() };
        let lines = [line(100, USERPTR), line(880, USERPTR)];
        let without = [facts(has(false), Ours::None), facts(has(true), served())];
        let finding = judge(Some(&lines), now, false, &without);
        assert_eq!(finding.level, Level::Warning);
        assert!(
            finding
                .what
                .contains("refused a program's pointers 2 times, the last time 2 minutes ago: videobuf2"),
            "{finding:?}"
        );
        assert!(finding.advice.expect("what to do").contains("/dev/video1"));
        // After vidcompat was installed, whatever the log still has in it; the other camera is no matter.
        let with = [facts(has(false), served()), facts(has(true), Ours::None)];
        let finding = judge(Some(&lines), now, false, &with);
        assert_eq!((finding.level, finding.advice), (Level::Ok, None));
        assert!(finding.what.contains("2 minutes ago"), "{}", finding.what);
        // That one may have refused single pointers.
        let lines = [line(999, POINTER)];
        assert_eq!(judge(Some(&lines), now, false, &with).level, Level::Warning);
        assert_eq!(judge(Some(&lines), now, false, &without).level, Level::Ok);
        // What could not be looked at may be the one; a radio is not.
        let busy = [facts(Memory::Busy, Ours::None)];
        assert_eq!(judge(Some(&lines), now, false, &busy).level, Level::Warning);
        let radio = [facts(Memory::NoBuffers, Ours::None)];
        assert_eq!(judge(Some(&lines), now, false, &radio).level, Level::Ok);
        assert_eq!(judge(Some(&[]), now, false, &without).level, Level::Ok);
        assert_eq!(judge(None, now, false, &with).level, Level::Warning);
    }

    #[test]
    fn an_age_is_told_in_its_largest_unit() {
        for (seconds, told) in [
            (0, "just now"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (60, "1 minute ago"),
            (7199, "1 hour ago"),
            (200_000, "2 days ago"),
        ] {
            assert_eq!(ago(Duration::from_secs(seconds)), told);
        }
    }
}
