//! What a process and its address space are known by to another daemon, which has none of our descriptors.

use std::io;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// When a process began, and where its program lies: another process with the same number began at another time, and an
/// exec of the same one puts program, heap and stack elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Ticks since the machine's start (`starttime` of proc_pid_stat(5)).
    began: u64,
    /// Of the addresses.
    layout: u32,
}

/// Fields of `/proc/PID/stat`, counted from the one behind the name (`state`, which proc_pid_stat(5) calls 3).
const STARTTIME: usize = 22 - 3;
/// startcode, startstack, start_brk, arg_start, env_start
const ADDRESSES: [usize; 5] = [26 - 3, 28 - 3, 47 - 3, 48 - 3, 50 - 3];

/// Threads of a process that are looked at.
const THREADS: usize = 16;

impl Identity {
    /// Of `process`, by its thread `thread`: a first thread that has ended has no address space any more.
    pub(super) fn of(process: Pid, thread: Pid) -> io::Result<Self> {
        let stat = |path: String| std::fs::read_to_string(path);
        let (leader, thread) = (
            stat(format!("/proc/{process}/stat"))?,
            stat(format!("/proc/{process}/task/{thread}/stat"))?,
        );
        Self::parse(&leader, &thread).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The thread of `process` that this is the identity of, the first one if it lives. All that live have one address space, so a
    /// few tell, and a process of ten thousand holds up nobody.
    pub(super) fn thread_of(self, process: Pid) -> io::Result<Pid> {
        let threads = std::fs::read_dir(format!("/proc/{process}/task"))?;
        let threads = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        std::iter::once(process)
            .chain(threads.map(Pid::from_raw))
            .take(THREADS)
            .find(|thread| Self::of(process, *thread).is_ok_and(|found| found == self))
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
    }

    fn parse(leader: &str, thread: &str) -> Option<Self> {
        // The name is in parentheses and may have some of its own.
        let fields = |stat: &str| stat.rsplit_once(')').map(|(_, fields)| fields.to_owned());
        let (leader, thread) = (fields(leader)?, fields(thread)?);
        let fields: Vec<&str> = thread.split_ascii_whitespace().collect();
        let mut hasher = crc32fast::Hasher::new();
        for at in ADDRESSES {
            hasher.update(fields.get(at)?.as_bytes());
            hasher.update(b" ");
        }
        Some(Self {
            began: leader.split_ascii_whitespace().nth(STARTTIME)?.parse().ok()?,
            layout: hasher.finalize(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Identity;
    use nix::unistd::{Pid, getpid, gettid};
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_itself_and_neither_another_nor_the_program_before_an_exec() {
        let us = Identity::of(getpid(), getpid()).expect("ourselves");
        assert_eq!(
            Identity::of(getpid(), gettid()).expect("ourselves"),
            us,
            "by another thread"
        );
        assert_eq!(us.thread_of(getpid()).expect("ourselves"), getpid());
        let mut child = Command::new("sh")
            .args(["-c", "read _; exec sleep 60"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh(1)");
        let pid = Pid::from_raw(child.id().cast_signed());
        let comm = || std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        while comm().trim() != "sh" {
            std::thread::yield_now();
        }
        let before = Identity::of(pid, pid).expect("our child");
        assert_ne!(before, us);
        std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), b"\n").expect("a reader");
        while comm().trim() != "sleep" {
            std::thread::yield_now();
        }
        assert_ne!(Identity::of(pid, pid).expect("our child"), before);
        child.kill().expect("our child");
        child.wait().expect("our child");
        assert!(
            before.thread_of(pid).is_err() && us.thread_of(pid).is_err(),
            "another program"
        );
        // The thread that we are known by need not be the first one, which may have ended.
        child.kill().expect("our child");
        child.wait().expect("our child");
        assert!(Identity::parse("1 (a) b) R 1", "1 (a) b) R 1").is_none());
    }
}
