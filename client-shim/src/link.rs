//! The way to the daemon: the token of a file, and one question on the socket.
//!
//! Each question has a connection of its own, for there is nowhere to keep one: the program may close any fd, and a child
//! has its parent's. Nothing of what comes back is believed before it is one of the answers there are.
//!
//! A daemon that is killed hangs up, and the next one has the same socket, the same tokens and the same files: it is asked
//! once more. Who connects in between waits in the socket's queue. Every question may be asked twice: what was done is found
//! done, and of what was left to be fetched once the next daemon knows, or says `ENOENT`.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, statat};
use rustix::io::Errno as OsError;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, send, socket_with,
};
use vidcompat_proto::shim::{Answer, Ask, Hello, MESSAGE_BYTES, VERSION};

use crate::{node, sys};

/// How long a daemon may take for one step. It answers in microseconds, and in some milliseconds when it is busy.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// A question is asked so often at most: a daemon also hangs up on those for whom it has no place.
const TRIES: usize = 6;
/// Before the second try; twice as long each time, so a third of a second in all.
const PAUSE: Duration = Duration::from_millis(10);

/// What a file of ours has told about its daemon. Plain bytes: it may outlive the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) hello: Hello,
}

/// Why one try has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    /// It has hung up without a word: it has ended, or has no place for us.
    HungUp,
    Otherwise(LinkError),
}

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkError {
    /// Nobody listens at the place that we see: the daemon has gone.
    NoDaemon,
    /// It is busy, of another version, out of sight, or does not answer in time.
    NoAnswer,
}

impl Link {
    /// Of the file behind `fd`. `None`: it is none of ours, or its daemon is an old one, another version, or dead.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        if !node::is_ours(fd) {
            return None;
        }
        let hello = sys::hello(fd).ok()?;
        (hello.version == VERSION).then_some(Self { hello })
    }

    /// Asks, and waits for the answer, some seconds at most. The fd that comes with it is close-on-exec, and it comes with
    /// the answers that have one and with no others.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub(crate) fn ask(&self, ask: Ask) -> Result<(Answer, Option<OwnedFd>), LinkError> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            match self.ask_once(ask) {
                Ok(answer) => return Ok(answer),
                Err(Failed::Otherwise(error)) => return Err(error),
                Err(Failed::HungUp) => rest(pause),
            }
            pause *= 2;
        }
        self.ask_once(ask).map_err(|failed| match failed {
            Failed::HungUp => LinkError::NoAnswer,
            Failed::Otherwise(error) => error,
        })
    }

    fn ask_once(&self, ask: Ask) -> Result<(Answer, Option<OwnedFd>), Failed> {
        let socket = self.connect().map_err(Failed::Otherwise)?;
        persist(|| send(&socket, &ask.encode(self.hello.token), SendFlags::NOSIGNAL)).map_err(why)?;
        receive(socket.as_fd())
    }

    fn connect(&self) -> Result<OwnedFd, LinkError> {
        let path = self.hello.socket.get(..usize::from(self.hello.socket_len));
        let address = path
            .filter(|path| !path.is_empty())
            .and_then(|path| SocketAddrUnix::new(path).ok())
            .ok_or(LinkError::NoAnswer)?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|_| LinkError::NoAnswer)?;
        // connect, too, waits: for a place in the queue of a daemon that does not accept.
        for which in [Timeout::Send, Timeout::Recv] {
            set_socket_timeout(&socket, which, Some(PATIENCE)).map_err(|_| LinkError::NoAnswer)?;
        }
        match persist(|| connect(&socket, &address)) {
            Ok(()) => Ok(socket),
            Err(OsError::CONNREFUSED) => Err(LinkError::NoDaemon),
            Err(OsError::NOENT) if self.has_folder() => Err(LinkError::NoDaemon),
            Err(_) => Err(LinkError::NoAnswer),
        }
    }

    /// Is the socket's folder there? A daemon that ends leaves it behind. Without it we look from elsewhere: the program
    /// has changed its root (chroot) or what is mounted.
    fn has_folder(&self) -> bool {
        let mut path = self.hello.socket;
        let len = usize::from(self.hello.socket_len).min(path.len());
        let slash = path.iter().take(len).rposition(|byte| *byte == b'/');
        // The slash and the dot, and the zero that ends it.
        let Some([dot, end]) = slash.and_then(|slash| path.get_mut(slash + 1..slash + 3)) else {
            return false;
        };
        (*dot, *end) = (b'.', 0);
        std::ffi::CStr::from_bytes_until_nul(&path)
            .is_ok_and(|folder| statat(CWD, folder, AtFlags::empty()).is_ok())
    }
}

/// Does `call` again as long as signals end it, but not for ever: each time the socket's patience begins anew.
fn persist<T>(mut call: impl FnMut() -> Result<T, OsError>) -> Result<T, OsError> {
    let begin = Instant::now();
    loop {
        match call() {
            Err(OsError::INTR) if begin.elapsed() < PATIENCE => {}
            done => return done,
        }
    }
}

/// Of a connection that was there.
fn why(error: OsError) -> Failed {
    match error {
        OsError::PIPE | OsError::CONNRESET | OsError::NOTCONN => Failed::HungUp,
        _ => Failed::Otherwise(LinkError::NoAnswer),
    }
}

/// Waits; a signal may end it early.
fn rest(pause: Duration) {
    if let Ok(pause) = Timespec::try_from(pause) {
        let _ = poll(&mut [], Some(&pause));
    }
}

fn receive(socket: BorrowedFd<'_>) -> Result<(Answer, Option<OwnedFd>), Failed> {
    let mut message = [0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = persist(|| {
        let mut into = [IoSliceMut::new(&mut message)];
        recvmsg(socket, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    });
    let received = received.map_err(why)?;
    if received.bytes == 0 {
        return Err(Failed::HungUp);
    }
    // The space's padding has room for a second one on 64 bits.
    let mut files = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let mut files = files.by_ref().flatten();
    let file = files.next();
    let one = files.next().is_none();
    drop(files);

    let whole = !received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    let answer = message
        .get(..received.bytes)
        .and_then(|message| Answer::decode(message).ok());
    match answer {
        Some(answer) if whole && one && answer.has_file() == file.is_some() => Ok((answer, file)),
        _ => Err(Failed::Otherwise(LinkError::NoAnswer)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use rustix::io::{FdFlags, fcntl_getfd};
    use rustix::pipe::pipe;
    use vidcompat_proto::Errno;
    use vidcompat_proto::shim::{Answer, Ask, MESSAGE_BYTES};

    use super::{LinkError, PATIENCE, TRIES};
    use crate::testing::{Fake, asked, send, with_signals, without_allocating};

    const ASK: Ask = Ask::NextMove;
    const FILE: Answer = Answer::File { close_on_exec: false };

    fn memfd(contents: &[u8]) -> OwnedFd {
        let mut file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::empty()).unwrap());
        file.write_all(contents).unwrap();
        file.rewind().unwrap();
        file.into()
    }

    #[test]
    fn an_answer_comes_with_its_file_and_nothing_is_allocated() {
        let fake = Fake::answering(ASK, FILE, Some(memfd(b"contents")));
        let link = fake.link();
        let (answer, file) = without_allocating(|| link.ask(ASK)).unwrap();
        assert_eq!(answer, FILE);
        let file = file.unwrap();
        assert!(fcntl_getfd(&file).unwrap().contains(FdFlags::CLOEXEC));
        let mut contents = String::new();
        File::from(file).read_to_string(&mut contents).unwrap();
        assert_eq!(contents, "contents");
    }

    #[test]
    fn an_answer_without_a_file() {
        for answer in [Answer::Nothing, Answer::Yes, Answer::Errno(Errno::EBUSY)] {
            let fake = Fake::answering(ASK, answer, None);
            let (came, file) = fake.link().ask(ASK).unwrap();
            assert_eq!(came, answer);
            assert!(file.is_none());
        }
    }

    #[test]
    fn nonsense_is_no_answer() {
        let good = Answer::Nothing.encode();
        let with = |at: usize, byte: u8| {
            let mut message = good.to_vec();
            message[at] = byte;
            message
        };
        let nonsense: [Vec<u8>; 8] = [
            good[..MESSAGE_BYTES / 2].to_vec(),
            vec![1],
            [&good[..], b"x"].concat(),
            vec![0xff; 100_000],
            with(0, b'V'),
            with(4, 2),
            with(6, 3),
            Answer::Map { offset: 0 }.encode().to_vec(),
        ];
        for message in nonsense {
            let fake = Fake::sending(ASK, message.clone(), Vec::new());
            assert_eq!(
                fake.link().ask(ASK).err(),
                Some(LinkError::NoAnswer),
                "{:?}",
                &message[..1]
            );
        }
    }

    #[test]
    fn files_that_nobody_has_asked_for_are_closed() {
        for (answer, files) in [(Answer::Nothing, 1), (Answer::Yes, 3), (FILE, 2), (FILE, 8)] {
            let (reader, writer) = pipe().unwrap();
            let sent = (0..files).map(|_| writer.try_clone().unwrap()).collect();
            drop(writer);
            let fake = Fake::sending(ASK, answer.encode().to_vec(), sent);
            assert_eq!(fake.link().ask(ASK).err(), Some(LinkError::NoAnswer));
            drop(fake);
            // The end of the pipe comes when nobody has the other end any more.
            assert_eq!(
                rustix::io::read(&reader, &mut [0; 1]),
                Ok(0),
                "{answer:?} with {files}"
            );
        }
    }

    #[test]
    fn a_daemon_that_hangs_up_or_says_nothing_is_no_answer() {
        // Each time it is asked, and there is nobody else.
        let fake =
            Fake::serving_each((0..TRIES).map(|_| |socket: BorrowedFd<'_>| assert_eq!(asked(socket), ASK)));
        assert_eq!(fake.link().ask(ASK).err(), Some(LinkError::NoAnswer));
        drop(fake);
        let fake = Fake::serving_each((0..TRIES).map(|_| |_: BorrowedFd<'_>| {}));
        assert_eq!(fake.link().ask(ASK).err(), Some(LinkError::NoAnswer));
        drop(fake);
        let fake = Fake::serving(|socket| assert_eq!(asked(socket), ASK));
        assert_eq!(
            fake.link().ask(ASK).err(),
            Some(LinkError::NoDaemon),
            "it has gone"
        );

        let (_still, end) = pipe().unwrap();
        let begin = Instant::now();
        let fake = Fake::serving(move |socket| {
            assert_eq!(asked(socket), ASK);
            sleep(PATIENCE * 2);
            drop(end);
        });
        assert_eq!(fake.link().ask(ASK).err(), Some(LinkError::NoAnswer));
        assert!(
            begin.elapsed() >= PATIENCE && begin.elapsed() < PATIENCE * 2,
            "{:?}",
            begin.elapsed()
        );
    }

    #[test]
    fn a_daemon_that_was_killed_is_asked_once_more_when_there_is_another() {
        // Before it has read the question, after it, and while there is none for a while.
        type Serve = Box<dyn FnOnce(BorrowedFd<'_>) + Send>;
        let serves: Vec<Serve> = vec![
            Box::new(|_| {}),
            Box::new(|socket| assert_eq!(asked(socket), ASK)),
            Box::new(|_| sleep(PATIENCE / 4)),
            Box::new(|socket| {
                sleep(PATIENCE / 2);
                assert_eq!(asked(socket), ASK);
                send(socket, &FILE.encode(), &[memfd(b"contents")]);
            }),
        ];
        let fake = Fake::serving_each(serves);
        let link = fake.link();
        let (answer, file) = without_allocating(|| link.ask(ASK)).unwrap();
        assert_eq!(answer, FILE);
        assert!(file.is_some());
    }

    #[test]
    fn a_daemon_that_accepts_nobody_is_no_answer() {
        let fake = Fake::nobody();
        let _listening = fake.listening(0);
        // The queue of 0 has one place.
        let link = fake.link();
        let first = link.connect().unwrap();
        let begin = Instant::now();
        assert_eq!(link.ask(ASK).err(), Some(LinkError::NoAnswer));
        assert!(begin.elapsed() < PATIENCE * 3);
        drop(first);
    }

    #[test]
    fn without_a_socket_or_a_listener_there_is_no_daemon() {
        let fake = Fake::nobody();
        assert_eq!(fake.link().ask(ASK).err(), Some(LinkError::NoDaemon));
        drop(fake.listening(1));
        assert_eq!(fake.link().ask(ASK).err(), Some(LinkError::NoDaemon));
    }

    #[test]
    fn a_daemon_that_is_out_of_sight_has_not_gone() {
        let mut link = Fake::nobody().link();
        let path = b"/vidcompat-has-no-such-folder/socket";
        link.hello.socket[..path.len()].copy_from_slice(path);
        link.hello.socket_len = u16::try_from(path.len()).unwrap();
        assert_eq!(link.ask(ASK).err(), Some(LinkError::NoAnswer));
        // With the longest path, and with one that has no folder.
        link.hello.socket = [b'a'; 108];
        link.hello.socket[0] = b'/';
        link.hello.socket_len = 107;
        assert_eq!(link.ask(ASK).err(), Some(LinkError::NoDaemon));
        link.hello.socket[106] = b'/';
        assert_eq!(link.ask(ASK).err(), Some(LinkError::NoAnswer));
        link.hello.socket[0] = b'a';
        link.hello.socket_len = 10;
        assert_eq!(link.ask(ASK).err(), Some(LinkError::NoAnswer));
    }

    #[test]
    fn a_path_that_makes_no_sense_is_no_answer() {
        let fake = Fake::nobody();
        for length in [0, 109, u16::MAX] {
            let mut link = fake.link();
            link.hello.socket_len = length;
            assert_eq!(link.ask(ASK).err(), Some(LinkError::NoAnswer));
        }
    }

    #[test]
    fn signals_do_not_end_the_wait() {
        let fake = Fake::serving(|socket| {
            assert_eq!(asked(socket), ASK);
            sleep(Duration::from_millis(200));
            send(socket, &FILE.encode(), &[memfd(b"late")]);
        });
        let (answer, file) = with_signals(|| fake.link().ask(ASK)).unwrap();
        assert_eq!(answer, FILE);
        assert!(file.is_some());
    }

    #[test]
    fn signals_do_not_make_the_wait_endless() {
        let fake = Fake::serving(|socket| {
            assert_eq!(asked(socket), ASK);
            sleep(PATIENCE * 3);
        });
        let begin = Instant::now();
        assert_eq!(
            with_signals(|| fake.link().ask(ASK)).err(),
            Some(LinkError::NoAnswer)
        );
        assert!(begin.elapsed() < PATIENCE * 5 / 2, "{:?}", begin.elapsed());
    }

    #[test]
    fn other_files_have_no_link() {
        assert!(super::Link::of(File::open("/dev/null").unwrap().as_fd()).is_none());
    }
}
