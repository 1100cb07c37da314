//! What the kernel has said when a device refused a program's pointer.
//!
//! videobuf2 says it only when it is told to (`videobuf2_common.debug`), and dma-contig's complaint about memory in pieces
//! always.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use super::Finding;
use super::look::text;

/// What the lines have in common (videobuf2-core.c, `__prepare_userptr`, `vb2_verify_memory_type`; videobuf2-dma-contig.c,
/// `vb2_dc_get_userptr`).
const REFUSALS: [&str; 3] = [
    "failed acquiring userspace memory",
    "USERPTR for current setup unsupported",
    "contiguous mapping is too small",
];
const DEBUG: &str = "/sys/module/videobuf2_common/parameters/debug";

pub(super) fn look() -> Option<Finding> {
    let about = "kernel log";
    let Some(lines) = lines() else {
        return Some(Finding::warning(about, "only root may read it here").advise("`sudo vidcompat doctor`"));
    };
    let refused: Vec<_> = lines.iter().filter(|line| is_refusal(line)).collect();
    let debug = text(DEBUG).filter(|level| level != "0");
    Some(match (refused.last(), debug) {
        (Some(last), _) => Finding::warning(
            about,
            format!(
                "a device has refused a program's pointers {} times, the last time: {last}",
                refused.len()
            ),
        )
        .advise("run that program on our node of this device (`vidcompat run PROGRAM`)"),
        (None, Some(_)) => Finding::ok(about, "no device has refused a program's pointer"),
        (None, None) => Finding::ok(
            about,
            format!(
                "no word of a refused pointer; videobuf2 keeps silent about most unless `echo 1 > {DEBUG}`"
            ),
        ),
    })
}

fn is_refusal(line: &str) -> bool {
    REFUSALS.iter().any(|refusal| line.contains(refusal))
}

/// The kernel's log, as far as it is still there; `None`: not for this user.
pub(in crate::observe) fn lines() -> Option<Vec<String>> {
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

/// `6,339,5140900,-;NET: Registered protocol family 10`, and further lines that begin with a blank.
fn line_of(record: &[u8]) -> String {
    let text = String::from_utf8_lossy(record);
    let line = text.lines().next().unwrap_or_default();
    line.split_once(';').map_or(line, |(_, line)| line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::{is_refusal, line_of};

    #[test]
    fn a_refused_pointer_is_recognised() {
        let record = b"6,812,92837465,-;videobuf2_common: [vivid-000-vid-cap] __prepare_userptr: failed acquiring userspace \
                       memory for plane 0\n SUBSYSTEM=x\n";
        let line = line_of(record);
        assert!(
            line.starts_with("videobuf2_common: ") && line.ends_with("plane 0"),
            "{line}"
        );
        assert!(is_refusal(&line));
        assert!(!is_refusal("vivid-000: V4L2 capture device registered as video0"));
    }
}
