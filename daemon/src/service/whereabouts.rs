//! Where a thread of ours is at the moment: in a driver, in a client's memory, or waiting for another one of us.
//!
//! `/proc/self/task/TID/syscall` tells which system call a thread sleeps in, and with which descriptor. What the thread is
//! there for is not known here.

use std::fs;

/// Where a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// In a call to a device's driver.
    Driver,
    /// In a copy from or to the memory of a client: the client decides how long that takes (userfaultfd, a file system of its
    /// own).
    Client,
    /// Waiting for a lock, or for another thread.
    Lock,
    /// It runs.
    Running,
    /// In another call.
    Elsewhere,
    /// There is no such thread any more.
    Gone,
}

/// Where thread `tid` of this process is.
#[must_use]
pub fn of(tid: u32) -> Whereabouts {
    let Ok(text) = fs::read_to_string(format!("/proc/self/task/{tid}/syscall")) else {
        return Whereabouts::Gone;
    };
    judge(&text, |fd| {
        let path = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        path.into_os_string().into_string().ok()
    })
}

/// What thread `tid` of this process is called.
#[must_use]
pub fn name(tid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/self/task/{tid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// All threads of this process.
#[must_use]
pub fn threads() -> Vec<u32> {
    let entries = fs::read_dir("/proc/self/task").into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// `syscall` is what the file says, `target` what a descriptor refers to.
fn judge(syscall: &str, target: impl Fn(u64) -> Option<String>) -> Whereabouts {
    let mut words = syscall.split_whitespace();
    let Some(number) = words.next() else {
        return Whereabouts::Gone;
    };
    let Ok(number) = number.parse::<libc::c_long>() else {
        return Whereabouts::Running;
    };
    let first = words
        .next()
        .and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    match number {
        libc::SYS_futex => Whereabouts::Lock,
        libc::SYS_process_vm_readv | libc::SYS_process_vm_writev => Whereabouts::Client,
        // Opening and closing devices; a mapping of one goes with munmap.
        libc::SYS_openat | libc::SYS_close | libc::SYS_mmap | libc::SYS_munmap => Whereabouts::Driver,
        libc::SYS_ioctl
        | libc::SYS_read
        | libc::SYS_write
        | libc::SYS_pread64
        | libc::SYS_pwrite64
        | libc::SYS_preadv
        | libc::SYS_pwritev
        | libc::SYS_readv
        | libc::SYS_writev => match first.and_then(target) {
            // Requests are awaited there, and answers are taken at once.
            Some(path) if path == "/dev/cuse" => Whereabouts::Elsewhere,
            Some(path) if path.starts_with("/dev/") || path.contains("dmabuf") => Whereabouts::Driver,
            Some(path) if path.starts_with("/proc/") => Whereabouts::Client,
            _ => Whereabouts::Elsewhere,
        },
        _ => Whereabouts::Elsewhere,
    }
}

#[cfg(test)]
mod tests {
    use super::{Whereabouts, judge, name, of, threads};
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    fn say(call: libc::c_long, path: &'static str) -> Whereabouts {
        judge(
            &format!("{call} 0x1f 0x0 0x7f00 0x0 0x0 0x0 0x7ffc 0x7f12"),
            |fd| (fd == 31).then(|| path.to_owned()),
        )
    }

    #[test]
    fn a_call_is_judged_by_its_number_and_its_descriptor() {
        assert_eq!(say(libc::SYS_ioctl, "/dev/video0"), Whereabouts::Driver);
        assert_eq!(say(libc::SYS_ioctl, "/dmabuf:"), Whereabouts::Driver);
        assert_eq!(say(libc::SYS_read, "/dev/cuse"), Whereabouts::Elsewhere);
        assert_eq!(say(libc::SYS_pread64, "/proc/77/mem"), Whereabouts::Client);
        assert_eq!(say(libc::SYS_process_vm_writev, ""), Whereabouts::Client);
        assert_eq!(say(libc::SYS_write, "socket:[77]"), Whereabouts::Elsewhere);
        assert_eq!(say(libc::SYS_epoll_pwait, ""), Whereabouts::Elsewhere);
        assert_eq!(judge("running\n", |_| None), Whereabouts::Running);
        assert_eq!(judge("", |_| None), Whereabouts::Gone);
    }

    #[test]
    fn a_thread_that_waits_for_another_is_seen_to() {
        let (tell, told) = channel();
        let (end, ended) = channel::<()>();
        let thread = std::thread::Builder::new().name("waits".to_owned());
        let waiting = thread.spawn(move || {
            let tid = nix::unistd::gettid().as_raw().cast_unsigned();
            tell.send(tid).expect("a listener");
            assert!(ended.recv().is_err());
        });
        let waiting = waiting.expect("a thread");
        let tid = told.recv().expect("its number");
        assert!(threads().contains(&tid));
        assert_eq!(name(tid).as_deref(), Some("waits"));
        let deadline = Instant::now() + Duration::from_secs(10);
        while of(tid) != Whereabouts::Lock && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(of(tid), Whereabouts::Lock);
        drop(end);
        waiting.join().expect("no panic");
        assert_eq!(of(tid), Whereabouts::Gone);
    }
}
