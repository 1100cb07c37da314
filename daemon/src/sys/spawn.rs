//! Starting a program that is handed files (sd_listen_fds(3)): they are its descriptors from 3 on, and `LISTEN_PID` is its
//! own number, which only it can know, so std's `Command` cannot do it.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid, pipe2};

/// Where systemd's protocol begins.
const FIRST: RawFd = 3;
/// What the child says of itself, before its number.
const LISTEN_PID: &[u8] = b"LISTEN_PID=";
/// Of a number.
const DIGITS: usize = 10;

/// Starts `program` with `args` (the first is its name) and `environment`, to which `LISTEN_PID` is added. It has our
/// standard descriptors, `files` from 3 on in this order, and no others; no signal is blocked in it.
///
/// # Errors
/// The system has no process or descriptors left, or there is no such program; then nothing runs.
pub fn spawn(
    program: &CStr,
    args: &[CString],
    environment: &[CString],
    files: &[BorrowedFd<'_>],
) -> io::Result<Pid> {
    let (said, says) = pipe2(OFlag::O_CLOEXEC)?;
    let mut child = Child {
        program,
        args: pointers(args),
        environment: pointers(environment),
        listen_pid: [LISTEN_PID, &[0; DIGITS + 1]].concat(),
        files: files.iter().map(AsRawFd::as_raw_fd).collect(),
        says: says.as_raw_fd(),
    };
    // SAFETY: fork itself has no preconditions. The child does nothing but `run`, which neither allocates nor locks: what other
    // threads were doing at this moment does not concern it. It never returns, so nothing is dropped twice.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => child.run(),
        pid => {
            drop(says);
            let pid = Pid::from_raw(pid);
            match what_was_said(said) {
                None => Ok(pid),
                Some(error) => {
                    waitpid(pid, None)?;
                    Err(error)
                }
            }
        }
    }
}

/// As exec takes them: null at the end, and room for one more.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let strings = strings.iter().map(|text| text.as_ptr());
    strings.chain([ptr::null(), ptr::null()]).collect()
}

/// The pipe ends without a word when the child has become the program.
fn what_was_said(said: OwnedFd) -> Option<io::Error> {
    let mut errno = [0; 4];
    match File::from(said).read_exact(&mut errno) {
        Ok(()) => Some(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
        Err(_) => None,
    }
}

/// Everything that the child of a fork needs to be the program, made before the fork: it must not allocate.
struct Child<'a> {
    program: &'a CStr,
    /// Ends in null, and so does the next; the strings are those that `spawn` was given.
    args: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    listen_pid: Vec<u8>,
    files: Vec<RawFd>,
    /// What goes wrong is written here.
    says: RawFd,
}

impl Child<'_> {
    /// Is the program from now on; or says why not, and ends.
    fn run(&mut self) -> ! {
        let Err(errno) = self.become_program();
        let errno = (errno as i32).to_ne_bytes();
        // SAFETY: as many bytes as the array has. Nobody is there to be told that this fails.
        let _ = unsafe { libc::write(self.says, errno.as_ptr().cast(), errno.len()) };
        // SAFETY: ends the process, and runs nothing.
        unsafe { libc::_exit(127) }
    }

    fn become_program(&mut self) -> Result<Infallible, Errno> {
        write_number(&mut self.listen_pid[LISTEN_PID.len()..], getpid().as_raw());
        let last = self.environment.len() - 2;
        self.environment[last] = self.listen_pid.as_ptr().cast();
        SigSet::empty().thread_set_mask()?;
        self.arrange()?;
        // SAFETY: the path and all strings end in zero and both arrays in null, and all are alive: `self` is.
        unsafe {
            libc::execve(
                self.program.as_ptr(),
                self.args.as_ptr(),
                self.environment.as_ptr(),
            )
        };
        Err(Errno::last())
    }

    /// Puts the files where they belong, and lets all others go at exec.
    fn arrange(&mut self) -> Result<(), Errno> {
        let count = RawFd::try_from(self.files.len()).map_err(|_| Errno::EMFILE)?;
        let end = count.checked_add(FIRST).ok_or(Errno::EMFILE)?;
        // Out of the way first: a file may have a number that another one is to have.
        self.says = above(self.says, end)?;
        for file in &mut self.files {
            if *file < end {
                *file = above(*file, end)?;
            }
        }
        for (file, number) in self.files.iter().zip(FIRST..) {
            // It has another number by now, so the copy is not close-on-exec.
            // SAFETY: it closes what has this number, which in this process nobody uses any more.
            Errno::result(unsafe { libc::dup2(*file, number) })?;
        }
        // What we have inherited from whoever started us is not for it, either.
        // SAFETY: three numbers; nothing is closed before exec.
        let marked = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                end.cast_unsigned(),
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        Errno::result(marked).map(drop)
    }
}

/// Another descriptor of `fd`, close-on-exec, not below `least`.
fn above(fd: RawFd, least: RawFd) -> Result<RawFd, Errno> {
    // SAFETY: numbers only, and nothing is closed.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least) })
}

/// Writes `number`, which is not negative, in decimal to the beginning of `to`, where zeros are.
fn write_number(to: &mut [u8], number: i32) {
    let mut digits = [0; DIGITS];
    let (mut rest, mut at) = (number.unsigned_abs(), DIGITS);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    to[..DIGITS - at].copy_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::{DIGITS, spawn, write_number};
    use nix::sys::wait::{WaitStatus, waitpid};
    use std::ffi::{CStr, CString};
    use std::fs::File;
    use std::io::{Read, Seek};
    use std::os::fd::AsFd;

    #[test]
    fn numbers_are_written_as_people_write_them() {
        for number in [0, 7, 10, 4711, i32::MAX] {
            let mut bytes = [0; DIGITS + 1];
            write_number(&mut bytes, number);
            let text = CStr::from_bytes_until_nul(&bytes).expect("an end");
            assert_eq!(text.to_str(), Ok(number.to_string().as_str()));
        }
    }

    #[test]
    fn the_child_has_its_own_number_the_files_in_their_order_and_no_others() {
        let memfd = |name: &str| {
            let fd = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
            File::from(fd.expect("a memfd"))
        };
        let mut files: Vec<_> = (0..40).map(|number| memfd(&format!("vc-{number}"))).collect();
        // In an order in which their numbers overlap with where they belong.
        files.reverse();
        let mut out = memfd("out");
        let _not_for_it = nix::unistd::dup(out.as_fd()).expect("a descriptor");
        let script = "{ echo $$ $LISTEN_PID $A; n=3; while [ $n -lt 43 ]; do readlink /proc/$$/fd/$n; n=$((n+1)); done; \
                      ls /proc/$$/fd | wc -l; } >&3";
        let given: Vec<_> = [out.as_fd()]
            .into_iter()
            .chain(files.iter().map(AsFd::as_fd))
            .collect();
        let text = |text: &str| CString::new(text).expect("no zero");
        let child = spawn(
            c"/bin/sh",
            &["sh", "-c", script].map(text),
            &["A=b", "PATH=/bin:/usr/bin"].map(text),
            &given,
        )
        .expect("a shell");
        assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
        let mut said = String::new();
        out.rewind().expect("a file");
        out.read_to_string(&mut said).expect("text");
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines[0], format!("{child} {child} b"));
        assert_eq!(lines[1], "/memfd:out (deleted)");
        for (line, number) in lines[2..41].iter().zip((1..40).rev()) {
            assert_eq!(*line, format!("/memfd:vc-{number} (deleted)"));
        }
        // 0 to 2, 3 to 43, and what the shell itself puts aside while its output goes elsewhere.
        let open: usize = lines[41].parse().expect("a number");
        assert!((44..=46).contains(&open), "{open}");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_and_no_process() {
        let error = spawn(c"/no/such/program", &[], &[], &[]).expect_err("nothing there");
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
}
