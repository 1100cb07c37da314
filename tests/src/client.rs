//! Programs that use a node: those of `tests/clients`, v4l2-ctl, and the like.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::wait;
use crate::video::command;

/// Longer than anything takes that is to come at once, also under an emulator.
pub const AT_ONCE: Duration = Duration::from_secs(5);

/// Runs a program to its end, and is content with status 0 only: its stdout and stderr.
pub fn run(program: &str, args: &[&str], limit: Duration) -> anyhow::Result<String> {
    let (status, output) = run_any(program, args, limit)?;
    ensure!(
        status.success(),
        "{program} {}: {status}\n{output}",
        args.join(" ")
    );
    Ok(output)
}

/// Runs a program to its end.
pub fn run_any(program: &str, args: &[&str], limit: Duration) -> anyhow::Result<(ExitStatus, String)> {
    let mut client = Client::start(program, args)?;
    let status = client
        .end(limit)
        .with_context(|| format!("{program} {}", args.join(" ")))?;
    Ok((status, client.rest()))
}

/// A running program.
#[derive(Debug)]
pub struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Client {
    /// Starts it, with pipes for stdin and for stdout and stderr together.
    pub fn start(program: &str, args: &[&str]) -> anyhow::Result<Self> {
        let (ours, theirs) = std::io::pipe()?;
        let mut command = Command::new(program);
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(theirs.try_clone()?)
            .stderr(theirs);
        let mut child = command.spawn().with_context(|| program.to_owned())?;
        // It holds the writing end of the pipe, which must be the child's alone.
        drop(command);
        let (send, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(ours).split(b'\n').map_while(Result::ok) {
                if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            lines,
        })
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(self.pid(), signal)?)
    }

    /// Writes a line to its stdin.
    pub fn say(&mut self, line: &str) -> anyhow::Result<()> {
        Ok(writeln!(self.stdin.as_mut().context("no stdin")?, "{line}")?)
    }

    /// Its next line of output.
    pub fn line(&self) -> anyhow::Result<String> {
        self.lines
            .recv_timeout(AT_ONCE)
            .context("the client says nothing")
    }

    /// Its next line, if it has been written already.
    pub fn line_if_any(&self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// Lets it see the end of its stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// All lines until it has closed its output.
    pub fn rest(&self) -> String {
        let mut text = String::new();
        while let Ok(line) = self.lines.recv_timeout(AT_ONCE) {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    /// Waits for its end.
    pub fn end(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        wait(&mut self.child, limit)
    }

    /// Has it ended?
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits until its first thread sleeps in DQBUF.
    pub fn until_asleep_in_dqbuf(&mut self) -> anyhow::Result<()> {
        self.until("asleep in DQBUF", |state, syscall| {
            let mut words = syscall.split_ascii_whitespace();
            let (number, command) = (words.next(), words.nth(1));
            state == 'S' && number == Some("16") && command == Some(&format!("{:#x}", command::DQBUF))
        })?;
        // In our case its request may still be on the way to the driver's answer "nothing there".
        thread::sleep(Duration::from_millis(50));
        Ok(())
    }

    /// Waits until its first thread sleeps in read(2).
    pub fn until_asleep_in_read(&mut self) -> anyhow::Result<()> {
        self.until_asleep_in("read", "0")
    }

    /// Waits until its first thread sleeps in write(2).
    pub fn until_asleep_in_write(&mut self) -> anyhow::Result<()> {
        self.until_asleep_in("write", "1")
    }

    fn until_asleep_in(&mut self, what: &str, number: &str) -> anyhow::Result<()> {
        self.until(&format!("asleep in {what}"), |state, syscall| {
            state == 'S' && syscall.split_ascii_whitespace().next() == Some(number)
        })?;
        thread::sleep(Duration::from_millis(50));
        Ok(())
    }

    /// Waits until it is stopped (SIGSTOP).
    pub fn until_stopped(&mut self) -> anyhow::Result<()> {
        self.until("stopped", |state, _| state == 'T')
    }

    fn until(&mut self, what: &str, is: impl Fn(char, &str) -> bool) -> anyhow::Result<()> {
        let (pid, end) = (self.pid(), Instant::now() + AT_ONCE);
        loop {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.chars().next())
                .unwrap_or('?');
            let syscall = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
            if is(state, &syscall) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the client ended ({status}) instead of being {what}: {}",
                    self.rest()
                );
            }
            ensure!(
                Instant::now() < end,
                "the client is not {what} but in state {state}, system call {}",
                syscall.trim()
            );
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Gone already, or soon: one that hangs in a driver must not hang the suite too.
        drop(self.child.kill());
        drop(wait(&mut self.child, Duration::from_secs(1)));
    }
}
