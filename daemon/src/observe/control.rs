//! The control socket: one line of JSON asks, one document of JSON answers, the connection ends.
//!
//! Runs on the main runtime. Whoever connects costs little and for a short time: the number of connections, the length
//! of a question and the time for all of it are bounded. What is asked for is collected on a thread of its own, one at a
//! time, because a session's lock may be held by a call that hangs in a driver.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::model::Status;
use crate::claim::Claim;

/// Connections at a time; others wait in the kernel's queue.
const MOST: usize = 8;
/// Bytes of a question.
const LONGEST: u64 = 4096;
/// For a question to arrive.
const TO_ASK: Duration = Duration::from_secs(2);
/// For the answer to be collected.
const TO_COLLECT: Duration = Duration::from_secs(3);
/// For the answer to be taken.
const TO_TAKE: Duration = Duration::from_secs(5);

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Question {
    /// What goes on?
    Status,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Question::Status`].
    Status(Status),
    /// Why there is none: a sentence.
    Error(String),
}

/// Who knows what goes on. May wait for a session's lock.
pub type Source = Arc<dyn Fn() -> Status + Send + Sync>;

/// A served control socket. Dropped: nobody is served any more, and the path is free.
#[derive(Debug)]
pub struct Control {
    server: JoinHandle<()>,
    _claim: Claim,
}

impl Control {
    /// Serves `claim` on the runtime that this is called in.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn start(claim: Claim, source: Source) -> io::Result<Self> {
        let listener = UnixListener::from_std(claim.as_fd().try_clone_to_owned()?.into())?;
        Ok(Self {
            server: tokio::spawn(serve(listener, source)),
            _claim: claim,
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Ends with its future, and all conversations with it.
async fn serve(listener: UnixListener, source: Source) {
    let mut conversations = JoinSet::new();
    let collecting = Arc::default();
    loop {
        while conversations.try_join_next().is_some() {}
        if conversations.len() >= MOST {
            conversations.join_next().await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let (source, collecting) = (Arc::clone(&source), Arc::clone(&collecting));
                conversations.spawn(async move {
                    if let Err(error) = converse(stream, source, collecting).await {
                        tracing::debug!(%error, "somebody at the control socket got no answer");
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "the control socket");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(mut stream: UnixStream, source: Source, collecting: Arc<Mutex<()>>) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    let answer = if peer == 0 || peer == nix::unistd::geteuid().as_raw() {
        match timeout(TO_ASK, read_question(&mut stream)).await?? {
            Some(Question::Status) => collect(source, collecting).await,
            None => Answer::Error("this is no question that vidcompatd knows".to_owned()),
        }
    } else {
        Answer::Error("only root is answered".to_owned())
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    timeout(TO_TAKE, stream.write_all(&text)).await?
}

async fn read_question(stream: &mut UnixStream) -> io::Result<Option<Question>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST))
        .read_until(b'\n', &mut line)
        .await?;
    Ok(serde_json::from_slice(&line).ok())
}

/// What takes too long stays on its thread, and is the only one there.
async fn collect(source: Source, collecting: Arc<Mutex<()>>) -> Answer {
    let slow = || Answer::Error("vidcompatd could not look: a call hangs in a driver".to_owned());
    let Ok(turn) = timeout(TO_COLLECT, collecting.lock_owned()).await else {
        return slow();
    };
    let (sender, receiver) = oneshot::channel();
    let collector = thread::Builder::new().name("status".into()).spawn(move || {
        // Nobody may be waiting any more.
        drop(sender.send(source()));
        drop(turn);
    });
    match collector {
        Err(error) => Answer::Error(format!("vidcompatd has no thread left ({error})")),
        Ok(_) => match timeout(TO_COLLECT, receiver).await {
            Ok(Ok(status)) => Answer::Status(status),
            _ => slow(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{Control, Source};
    use crate::claim::{Claim, Kind};
    use crate::observe::ask::{AskError, status};
    use crate::observe::model::tests::sample;
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::{Duration, Instant};
    use tokio::runtime::Builder;
    use tokio::sync::oneshot;

    /// Runs `act` while `source` is served, and gives what it gives.
    fn with_control<T: Send + 'static>(
        name: &str,
        source: Source,
        act: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> T {
        let folder: PathBuf =
            std::env::temp_dir().join(format!("vidcompat-control-{}-{name}", std::process::id()));
        let path = folder.join("control.sock");
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let outcome = runtime.block_on(async {
            let claim = Claim::new(&path, Kind::Control).expect("a new folder");
            let _control = Control::start(claim, source).expect("a socket");
            let (sender, receiver) = oneshot::channel();
            let path = path.clone();
            std::thread::spawn(move || drop(sender.send(act(&path))));
            receiver.await.expect("an outcome")
        });
        assert!(!path.exists(), "the socket goes with its daemon");
        fs::remove_dir(&folder).expect("an empty folder");
        outcome
    }

    #[test]
    fn who_asks_for_the_status_gets_it() {
        let answer = with_control("asked", Arc::new(sample), status).expect("an answer");
        assert_eq!(answer, sample());
    }

    #[test]
    fn nonsense_and_megabytes_are_answered_with_a_sentence() {
        with_control("nonsense", Arc::new(sample), |path| {
            for question in [
                b"{\"ask\":\"money\"}\n".to_vec(),
                b"\n".to_vec(),
                vec![b'x'; 4096],
            ] {
                let mut stream = UnixStream::connect(path).expect("served");
                stream.write_all(&question).expect("a reader");
                let mut answer = String::new();
                stream.read_to_string(&mut answer).expect("text");
                assert!(answer.contains(r#"{"error":"this is no question"#), "{answer}");
            }
            // What is behind the bound is not read: the writer is told, one way or another.
            let mut stream = UnixStream::connect(path).expect("served");
            let refused = stream.write_all(&vec![b'x'; 16 << 20]).is_err();
            assert!(refused);
        });
    }

    #[test]
    fn who_says_nothing_hinders_nobody_for_long() {
        with_control("silent", Arc::new(sample), |path| {
            let silent: Vec<_> = (0..9)
                .map(|_| UnixStream::connect(path).expect("served"))
                .collect();
            let asked = Instant::now();
            assert!(status(path).is_ok());
            assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
            for mut stream in silent {
                let mut answer = Vec::new();
                // Let go without an answer.
                stream.read_to_end(&mut answer).expect("the end");
                assert!(answer.is_empty());
            }
        });
    }

    #[test]
    fn a_status_that_hangs_is_told_and_delays_nobody_else() {
        let hanging: Source = Arc::new(|| {
            std::thread::sleep(Duration::from_secs(8));
            sample()
        });
        with_control("hanging", hanging, |path| {
            let asked = Instant::now();
            for _ in 0..2 {
                match status(path) {
                    Err(AskError::Refused(reason)) => assert!(reason.contains("hangs"), "{reason}"),
                    other => panic!("{other:?}"),
                }
            }
            assert!(asked.elapsed() < Duration::from_secs(7), "{:?}", asked.elapsed());
        });
    }
}
