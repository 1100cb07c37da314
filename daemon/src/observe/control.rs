//! The control socket: one line of JSON asks, one line of JSON answers, the connection ends. A picture's bytes come behind
//! its line: nothing is opened because of a name that somebody gives, and no descriptor is passed.
//!
//! Runs on the main runtime. Whoever connects costs little and for a short time: the number of connections, the length
//! of a question and the time for all of it are bounded. What is asked for is collected on a thread of its own, one of a
//! kind at a time, because a session's lock may be held by a call that hangs in a driver.

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
use crate::backend::framebuffer::Picture;
use crate::claim::Claim;

/// Connections at a time; others wait in the kernel's queue.
const MOST: usize = 8;
/// Bytes of a question.
const LONGEST: u64 = 4096;
/// For a question to arrive.
pub(super) const TO_ASK: Duration = Duration::from_secs(2);
/// For the answer to be collected.
pub(super) const TO_COLLECT: Duration = Duration::from_secs(3);
/// For a picture to be taken: memory of a card is read slowly.
const TO_TAKE_PICTURE: Duration = Duration::from_secs(8);
/// For the answer to be taken.
pub(super) const TO_TAKE: Duration = Duration::from_secs(5);

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Question {
    /// What goes on?
    Status,
    /// What is to be seen?
    Screenshot {
        /// On which framebuffer: its node, or what it stands for. `None`: on the only one.
        fb: Option<String>,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Question::Status`].
    Status(Status),
    /// To [`Question::Screenshot`]: `width * height * 3` bytes of red, green and blue follow behind the end of the line.
    Picture {
        /// Whose: the path of our node.
        node: String,
        /// Pixels.
        width: u32,
        /// Lines.
        height: u32,
    },
    /// Why there is none: a sentence.
    Error(String),
}

/// Who knows what goes on. Each may wait for a session's lock or for a driver.
pub trait Source: Send + Sync {
    /// All of it.
    fn status(&self) -> Status;

    /// What is to be seen on the framebuffer that is called so, or on the only one, and the path of its node.
    ///
    /// # Errors
    /// Why there is none: a sentence.
    fn picture(&self, fb: Option<&str>) -> Result<(String, Picture), String>;
}

/// At most one thread collects of each kind.
#[derive(Debug, Default)]
struct Collecting {
    status: Arc<Mutex<()>>,
    picture: Arc<Mutex<()>>,
}

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
    pub fn start(claim: Claim, source: Arc<dyn Source>) -> io::Result<Self> {
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
async fn serve(listener: UnixListener, source: Arc<dyn Source>) {
    let mut conversations = JoinSet::new();
    let collecting = Arc::new(Collecting::default());
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

async fn converse(
    mut stream: UnixStream,
    source: Arc<dyn Source>,
    collecting: Arc<Collecting>,
) -> io::Result<()> {
    let mut picture = Vec::new();
    let peer = stream.peer_cred()?.uid();
    let answer = if peer == 0 || peer == nix::unistd::geteuid().as_raw() {
        match timeout(TO_ASK, read_question(&mut stream)).await?? {
            Some(Question::Status) => {
                let status = move || source.status();
                let status = collect("status", status, TO_COLLECT, &collecting.status).await;
                status.map_or_else(Answer::Error, Answer::Status)
            }
            Some(Question::Screenshot { fb }) => {
                let take = move || source.picture(fb.as_deref());
                let taken = collect("screenshot", take, TO_TAKE_PICTURE, &collecting.picture).await;
                match taken.and_then(|taken| taken) {
                    Ok((node, taken)) => {
                        picture = taken.rgb;
                        let (width, height) = (taken.width, taken.height);
                        Answer::Picture { node, width, height }
                    }
                    Err(reason) => Answer::Error(reason),
                }
            }
            None => Answer::Error("this is no question that vidcompatd knows".to_owned()),
        }
    } else {
        Answer::Error("only root is answered".to_owned())
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    timeout(TO_TAKE, async {
        stream.write_all(&text).await?;
        stream.write_all(&picture).await
    })
    .await?
}

async fn read_question(stream: &mut UnixStream) -> io::Result<Option<Question>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST))
        .read_until(b'\n', &mut line)
        .await?;
    Ok(serde_json::from_slice(&line).ok())
}

/// What takes too long stays on its thread, and is the only one there.
///
/// # Errors
/// Why there is nothing: a sentence.
pub(super) async fn collect<T: Send + 'static>(
    name: &str,
    what: impl FnOnce() -> T + Send + 'static,
    patience: Duration,
    collecting: &Arc<Mutex<()>>,
) -> Result<T, String> {
    let slow = "vidcompatd could not look: a call hangs in a driver";
    let Ok(turn) = timeout(patience, Arc::clone(collecting).lock_owned()).await else {
        return Err(slow.to_owned());
    };
    let (sender, receiver) = oneshot::channel();
    let collector = thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Nobody may be waiting any more.
        drop(sender.send(what()));
        drop(turn);
    });
    collector.map_err(|error| format!("vidcompatd has no thread left ({error})"))?;
    match timeout(patience, receiver).await {
        Ok(Ok(collected)) => Ok(collected),
        _ => Err(slow.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Control, Source};
    use crate::backend::framebuffer::Picture;
    use crate::claim::{Claim, Kind};
    use crate::observe::ask::{AskError, picture, status};
    use crate::observe::model::Status;
    use crate::observe::model::tests::sample;
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::{Duration, Instant};
    use tokio::runtime::Builder;
    use tokio::sync::oneshot;

    /// A daemon with one framebuffer, /dev/fb64, that takes its time.
    struct Fake {
        takes: Duration,
        picture: Picture,
    }

    fn fake(takes: Duration) -> Arc<dyn Source> {
        let (width, height) = (640, 400);
        let rgb = (0..width * height * 3).map(|byte| u8::try_from(byte % 251).expect("a byte"));
        let picture = Picture {
            width,
            height,
            rgb: rgb.collect(),
        };
        Arc::new(Fake { takes, picture })
    }

    impl Source for Fake {
        fn status(&self) -> Status {
            std::thread::sleep(self.takes);
            sample()
        }

        fn picture(&self, fb: Option<&str>) -> Result<(String, Picture), String> {
            match fb {
                None | Some("/dev/fb64") => Ok(("/dev/fb64".to_owned(), self.picture.clone())),
                Some(other) => Err(format!("no {other}")),
            }
        }
    }

    /// Runs `act` while `source` is served, and gives what it gives.
    fn with_control<T: Send + 'static>(
        name: &str,
        source: Arc<dyn Source>,
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
        let answer = with_control("asked", fake(Duration::ZERO), status).expect("an answer");
        assert_eq!(answer, sample());
    }

    #[test]
    fn a_picture_comes_with_its_size_and_all_of_its_bytes_or_with_the_reason() {
        let (named, only, other) = with_control("picture", fake(Duration::ZERO), |path| {
            (
                picture(path, Some("/dev/fb64")),
                picture(path, None),
                picture(path, Some("/dev/fb9")),
            )
        });
        let (node, named) = named.expect("a picture");
        assert_eq!(
            (node.as_str(), named.width, named.height),
            ("/dev/fb64", 640, 400)
        );
        assert_eq!(named.rgb.len(), 640 * 400 * 3);
        assert!(
            (0..)
                .zip(&named.rgb)
                .all(|(at, byte): (usize, _)| at % 251 == usize::from(*byte))
        );
        assert_eq!(only.expect("the only one").1, named);
        assert!(matches!(other, Err(AskError::Refused(reason)) if reason == "no /dev/fb9"));
    }

    #[test]
    fn nonsense_and_megabytes_are_answered_with_a_sentence() {
        with_control("nonsense", fake(Duration::ZERO), |path| {
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
        with_control("silent", fake(Duration::ZERO), |path| {
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
        with_control("hanging", fake(Duration::from_secs(8)), |path| {
            let asked = Instant::now();
            for _ in 0..2 {
                match status(path) {
                    Err(AskError::Refused(reason)) => assert!(reason.contains("hangs"), "{reason}"),
                    other => panic!("{other:?}"),
                }
            }
            // A picture is nothing that a status waits for, nor the other way round.
            assert!(picture(path, None).is_ok());
            assert!(asked.elapsed() < Duration::from_secs(7), "{:?}", asked.elapsed());
        });
    }
}
