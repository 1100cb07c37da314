//! The metrics socket: who connects and asks by HTTP/1.0 gets the metrics, and the connection ends. So Prometheus' exporters,
//! `curl --unix-socket` and `vidcompat metrics` read it, and there is no port in the network.
//!
//! The file's mode says who may: root, and the group `video`, whose members may open the devices anyway. Nothing of a request
//! counts but its first line; how many ask, for how long and with how much is bounded, and what is collected is collected by
//! one thread at a time.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Group, chown};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::ask::AskError;
use super::control::{Source, TO_ASK, TO_COLLECT, TO_TAKE, collect};
use super::metrics::{CONTENT_TYPE, text};
use crate::claim::Claim;

/// Where it is, unless it is told otherwise.
pub const METRICS: &str = "/run/vidcompat/metrics.sock";
/// Whose members may read the metrics.
const GROUP: &str = "video";
/// Connections at a time; others wait in the kernel's queue.
const MOST: usize = 8;
/// Bytes of a request.
const LONGEST: usize = 8192;
/// Bytes of an answer: more than the most devices fill.
const LONGEST_ANSWER: u64 = 64 << 20;
/// For all of an answer, of who asks.
const PATIENCE: Duration = Duration::from_secs(10);

/// A served metrics socket. Dropped: nobody is served any more, and the path is free.
#[derive(Debug)]
pub struct Metrics {
    server: JoinHandle<()>,
    _claim: Claim,
}

impl Metrics {
    /// Serves `claim` on the runtime that this is called in.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn start(claim: Claim, source: Arc<dyn Source>) -> io::Result<Self> {
        let listener = UnixListener::from_std(claim.as_fd().try_clone_to_owned()?.into())?;
        let group = Group::from_name(GROUP).ok().flatten();
        let given = group.map(|group| chown(claim.path(), None, Some(group.gid)));
        if !matches!(given, Some(Ok(()))) {
            tracing::debug!(path = %claim.path().display(), "only root can read the metrics: there is no group {GROUP}");
        }
        Ok(Self {
            server: tokio::spawn(serve(listener, source)),
            _claim: claim,
        })
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: UnixListener, source: Arc<dyn Source>) {
    let (room, collecting) = (Arc::new(Semaphore::new(MOST)), Arc::new(Mutex::new(())));
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (source, collecting) = (Arc::clone(&source), Arc::clone(&collecting));
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, source, collecting).await {
                        tracing::debug!(%error, "somebody at the metrics socket got no answer");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "the metrics socket");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(
    mut stream: UnixStream,
    source: Arc<dyn Source>,
    collecting: Arc<Mutex<()>>,
) -> io::Result<()> {
    let request = timeout(TO_ASK, read_request(&mut stream)).await??;
    let answer = match refusal(&request) {
        Some(status) => response(status, "text/plain", &format!("{status}\n")),
        None => {
            let status = collect("metrics", move || source.status(), TO_COLLECT, &collecting).await;
            match status.and_then(|status| text(status).map_err(|error| error.to_string())) {
                Ok(text) => response("200 OK", CONTENT_TYPE, &text),
                Err(reason) => response("503 Service Unavailable", "text/plain", &format!("{reason}\n")),
            }
        }
    };
    timeout(TO_TAKE, stream.write_all(answer.as_bytes())).await?
}

/// All until the empty line that ends a request, the end, or as much as anybody may send.
async fn read_request(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    while request.len() < LONGEST {
        let mut piece = [0; 1024];
        let count = stream.read(&mut piece).await?;
        request.extend_from_slice(&piece[..count]);
        let ends = |end: &[u8]| request.windows(end.len()).any(|window| window == end);
        if count == 0 || ends(b"\r\n\r\n") || ends(b"\n\n") {
            break;
        }
    }
    Ok(request)
}

/// Why a request is not answered; `None`: it is.
fn refusal(request: &[u8]) -> Option<&'static str> {
    let line = request.split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next(), words.next()) {
        (Some(b"GET"), Some(b"/" | b"/metrics"), Some(b"HTTP/1.0" | b"HTTP/1.1")) => None,
        (Some(b"GET"), Some(_), Some(b"HTTP/1.0" | b"HTTP/1.1")) => Some("404 Not Found"),
        _ => Some("400 Bad Request"),
    }
}

fn response(status: &str, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Asks the daemon that serves `path` for its metrics.
///
/// # Errors
/// See [`AskError`].
pub fn scrape(path: &Path) -> Result<String, AskError> {
    let silent = |source| AskError::Silent {
        path: path.to_owned(),
        source,
    };
    let mut stream = net::UnixStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NoMetrics(path.to_owned()),
        io::ErrorKind::PermissionDenied => AskError::DeniedGroup(path.to_owned(), GROUP),
        _ => silent(error),
    })?;
    let mut answer = String::new();
    let asked = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .and_then(|()| stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n"))
        .and_then(|()| stream.take(LONGEST_ANSWER).read_to_string(&mut answer));
    asked.map_err(silent)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.0 200 ") => Ok(body.to_owned()),
        Some((_, body)) => Err(AskError::Refused(body.trim_end().to_owned())),
        None => Err(silent(io::ErrorKind::InvalidData.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::{Metrics, refusal, scrape};
    use crate::backend::framebuffer::Picture;
    use crate::claim::{Claim, Kind};
    use crate::observe::ask::AskError;
    use crate::observe::control::Source;
    use crate::observe::model::Status;
    use crate::observe::model::tests::sample;
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::sync::Arc;
    use tokio::runtime::Builder;
    use tokio::sync::oneshot;

    struct Fake;

    impl Source for Fake {
        fn status(&self) -> Status {
            sample()
        }

        fn picture(&self, _: Option<&str>) -> Result<(String, Picture), String> {
            Err("no".to_owned())
        }
    }

    #[test]
    fn only_the_metrics_can_be_asked_for() {
        for good in [
            "GET / HTTP/1.0\r\n\r\n",
            "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        ] {
            assert_eq!(refusal(good.as_bytes()), None, "{good}");
        }
        assert_eq!(
            refusal(b"GET /etc/passwd HTTP/1.1\r\n\r\n"),
            Some("404 Not Found")
        );
        for bad in ["", "POST / HTTP/1.0\r\n\r\n", "GET /", "\n\n", "x y z"] {
            assert_eq!(refusal(bad.as_bytes()), Some("400 Bad Request"), "{bad}");
        }
    }

    #[test]
    fn who_asks_by_http_gets_the_metrics_and_who_talks_nonsense_hinders_nobody() {
        let folder = std::env::temp_dir().join(format!("vidcompat-metrics-{}", std::process::id()));
        let path = folder.join("metrics.sock");
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let claim = Claim::new(&path, Kind::Metrics).expect("a new folder");
            let _metrics = Metrics::start(claim, Arc::new(Fake)).expect("a socket");
            let mode = std::fs::metadata(&path).expect("the socket").permissions().mode() & 0o7777;
            assert_eq!(mode, 0o660);
            let (sender, receiver) = oneshot::channel();
            let path = path.clone();
            std::thread::spawn(move || {
                let _silent = UnixStream::connect(&path).expect("served");
                let mut loud = UnixStream::connect(&path).expect("served");
                // As much as is taken.
                let _ = loud.write(&[b'x'; 1 << 16]);
                let mut nonsense = UnixStream::connect(&path).expect("served");
                nonsense.write_all(b"hello\n\n").expect("a reader");
                let mut answer = String::new();
                nonsense.read_to_string(&mut answer).expect("text");
                drop(sender.send((scrape(&path), answer)));
            });
            let (scraped, answer) = receiver.await.expect("an outcome");
            assert!(
                scraped
                    .expect("metrics")
                    .contains("vidcompat_frames_total{device=\"/dev/video0\"")
            );
            assert!(answer.starts_with("HTTP/1.0 400 "), "{answer}");
        });
        assert!(matches!(
            scrape(Path::new("/nowhere")),
            Err(AskError::NoMetrics(_))
        ));
        std::fs::remove_dir(&folder).expect("an empty folder");
    }
}
