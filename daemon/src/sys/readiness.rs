//! A file in tokio's reactor, by way of an epoll of its own.
//!
//! That epoll is told exactly what is waited for, and tells of each change once. tokio's own translation (mio) asks for
//! input where only errors are wanted, which makes a V4L2 driver begin to read, and takes an error on a file that waits
//! for output as "closed for ever".

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// An epoll with one file in it.
#[derive(Debug)]
struct OneFile(Epoll);

impl AsRawFd for OneFile {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// A file that is watched until this is dropped, and closed with the last of its owners.
#[derive(Debug)]
pub struct Watched {
    epoll: AsyncFd<OneFile>,
    _file: Arc<File>,
}

/// Watches `file` for `events`, and for errors, which epoll always tells of. To be called in a runtime.
///
/// # Errors
/// What epoll says.
pub fn register(file: Arc<File>, events: EpollFlags) -> io::Result<Watched> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&*file, EpollEvent::new(events | EpollFlags::EPOLLET, 0))?;
    // SAFETY: `OneFile` keeps its epoll open and always answers with its one descriptor.
    let epoll = unsafe { AsyncFd::register_with_interest(OneFile(epoll), Interest::READABLE) }?;
    Ok(Watched { epoll, _file: file })
}

impl Watched {
    /// Returns when something is there that has not been told of yet: what was there at the beginning, then each change
    /// that finds something. May be dropped half-way; nothing is lost.
    ///
    /// # Errors
    /// The runtime ends.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            // Cleared first: a change that comes later is seen afterwards.
            self.epoll.readable().await?.clear_ready();
            let mut seen = [EpollEvent::empty()];
            if self.epoll.get_ref().0.wait(&mut seen, EpollTimeout::ZERO)? > 0 {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::register;
    use nix::sys::epoll::EpollFlags;
    use std::fs::File;
    use std::io::{Read, Write, pipe};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::time::timeout;

    const QUIET: Duration = Duration::from_millis(50);
    const SOON: Duration = Duration::from_secs(10);

    fn with_runtime(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(test);
    }

    #[test]
    fn what_is_there_is_told_once_and_each_change_once() {
        with_runtime(async {
            let (mut reader, mut writer) = pipe().expect("a pipe");
            writer.write_all(b"a").expect("room");
            let file = reader.try_clone().expect("a copy");
            let watched = register(Arc::new(File::from(OwnedFd::from(file))), EpollFlags::EPOLLIN);
            let watched = watched.expect("watched");
            for _ in 0..3 {
                let told = timeout(SOON, watched.changed()).await;
                assert!(matches!(told, Ok(Ok(()))));
                assert!(timeout(QUIET, watched.changed()).await.is_err());
                writer.write_all(b"b").expect("room");
            }
            let told = timeout(SOON, watched.changed()).await;
            assert!(matches!(told, Ok(Ok(()))));
            reader.read_exact(&mut [0; 4]).expect("four bytes");
            assert!(timeout(QUIET, watched.changed()).await.is_err());
        });
    }

    #[test]
    fn an_error_that_lasts_is_told_once() {
        with_runtime(async {
            let (reader, writer) = pipe().expect("a pipe");
            drop(reader);
            let file = Arc::new(File::from(OwnedFd::from(writer)));
            let watched = register(file, EpollFlags::EPOLLPRI).expect("watched");
            let told = timeout(SOON, watched.changed()).await;
            assert!(matches!(told, Ok(Ok(()))));
            assert!(timeout(QUIET, watched.changed()).await.is_err());
        });
    }
}
